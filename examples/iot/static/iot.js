// The operator's page: a table of devices that is kept up to date, and commands for them.

import { $, Link, element, recall, remember } from "../common/link.js";

const ACTIONS = [
  ["Blink", "blink", 5, "Blink for five seconds"],
  ["Faster", "interval", 250, "Measure four times a second"],
  ["Slower", "interval", 5000, "Measure every five seconds"],
  ["Restart", "restart", 0, "Restart"],
];
const SHOWN = 40; // commands

const devices = new Map(); // id -> {row, cells}
const commands = new Map(); // id -> row
let key = recall("iot.key", "", sessionStorage);
let skew = 0; // the server's clock minus ours, in seconds

// ---------------------------------------------------------------- the connection

const link = new Link({
  silence: 25_000,
  opened: () => link.send({ token: key }),
  hear: ({ type, ...message }) => heard[type]?.(message),
  lost(code) {
    for (const { cells } of devices.values()) enable(cells, false);
    if (code === 4401) showLogin("That key is not right.");
  },
});

const heard = {
  fleet({ now, devices: rows, commands: given }) {
    skew = now - Date.now() / 1000;
    remember("iot.key", key, sessionStorage);
    $("login").hidden = true;
    if ($("fleet").hidden) {
      $("fleet").hidden = false;
      $("filter").focus();
    }
    const known = new Set(rows.map(({ id }) => id));
    for (const id of [...devices.keys()]) if (!known.has(id)) forget(id);
    for (const row of rows) heard.device(row);
    $("notice").textContent = "";
    commands.clear();
    for (const row of given) commands.set(row.id, row);
    showCommands();
    showCount();
    link.ready();
    for (const { cells } of devices.values()) enable(cells, true);
  },
  device(row) {
    let device = devices.get(row.id);
    if (!device) {
      device = { row, cells: makeRow(row.id) };
      devices.set(row.id, device);
      place(row.id, device.cells.tr);
    }
    device.row = row;
    showDevice(device);
    showCount();
  },
  command(row) {
    commands.delete(row.id); // the newest change last
    commands.set(row.id, row);
    while (commands.size > SHOWN) commands.delete(commands.keys().next().value);
    showCommands();
  },
  problem({ text }) {
    $("notice").textContent = text;
  },
};

function showLogin(why = "") {
  link.leave();
  $("fleet").hidden = true;
  $("login").hidden = false;
  $("refused").textContent = why;
  $("banner").hidden = true;
  $("status").textContent = "Not logged in";
  $("status").dataset.state = "stopped";
  $("key").value = "";
  $("key").focus();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  $("refused").textContent = "";
  link.to("operators");
});

$("logout").addEventListener("click", () => {
  key = "";
  remember("iot.key", "", sessionStorage);
  showLogin();
});

// ---------------------------------------------------------------- devices

function makeRow(id) {
  const tr = element("tr");
  const cells = { tr };
  const name = element("th", "", id);
  name.scope = "row";
  tr.append(name);
  for (const name of ["state", "temperature", "humidity", "battery", "heard"]) tr.append((cells[name] = element("td", name)));
  cells.state.append((cells.mark = element("span")));
  const box = element("div");
  cells.buttons = ACTIONS.map(([label, action, argument, title]) => {
    const button = element("button", "quiet outlined", label);
    button.type = "button";
    button.title = title;
    button.setAttribute("aria-label", `${title}: ${id}`);
    button.disabled = !link.connected;
    button.addEventListener("click", () => {
      $("notice").textContent = "";
      link.send({ type: "give", device: id, action, argument });
    });
    return button;
  });
  box.append(...cells.buttons);
  const actions = element("td", "actions");
  actions.append(box);
  tr.append(actions);
  return cells;
}

function enable({ buttons }, on) {
  for (const button of buttons) button.disabled = !on;
}

/** Rows stand in the order of their names. */
function place(id, tr) {
  const after = [...devices.keys()].filter((other) => other > id).sort()[0];
  $("rows").insertBefore(tr, after ? devices.get(after).cells.tr : null);
  tr.hidden = !id.includes($("filter").value.trim());
}

function forget(id) {
  devices.get(id).cells.tr.remove();
  devices.delete(id);
}

function set(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

function showDevice({ row, cells }) {
  const unit = (value, digits, name) => (value === null ? "–" : `${value.toFixed(digits)} ${name}`);
  cells.tr.className = row.online ? "online" : "offline";
  set(cells.mark, row.online ? "online" : "offline");
  set(cells.temperature, unit(row.temperature, 1, "°C"));
  set(cells.humidity, unit(row.humidity, 0, "%"));
  set(cells.battery, unit(row.battery, 2, "V"));
  showHeard({ row, cells });
}

function showHeard({ row, cells }) {
  const ago = Math.max(0, Date.now() / 1000 + skew - row.heard);
  set(cells.heard, ago < 2 ? "now" : ago < 90 ? `${ago.toFixed(0)} s ago` : `${(ago / 60).toFixed(0)} min ago`);
}

function showCount() {
  const online = [...devices.values()].filter(({ row }) => row.online).length;
  set($("count"), `${online} of ${devices.size} online`);
  $("table").hidden = !devices.size;
  $("none").hidden = devices.size > 0;
}

$("filter").addEventListener("input", () => {
  const wanted = $("filter").value.trim();
  for (const [id, { cells }] of devices) cells.tr.hidden = !id.includes(wanted);
});

setInterval(() => {
  for (const device of devices.values()) showHeard(device);
}, 1000);

// ---------------------------------------------------------------- commands

const STATES = { waiting: "waiting", done: "done", refused: "refused", failed: "no answer" };

function showCommands() {
  $("no-commands").hidden = commands.size > 0;
  $("commands").replaceChildren(
    ...[...commands.values()].reverse().map((row) => {
      const item = element("li");
      const what = element("p", "what");
      const name = element("span");
      name.append(element("b", "", row.device), ` ${row.action}${row.argument ? ` ${row.argument}` : ""}`);
      what.append(name, element("span", `mark ${row.state}`, STATES[row.state]));
      const time = new Date(row.at * 1000).toLocaleTimeString();
      item.append(what, element("p", "dim", `${time}, ${row.attempts} attempt${row.attempts === 1 ? "" : "s"}`));
      return item;
    }),
  );
}

if (key) link.to("operators");
else showLogin();
