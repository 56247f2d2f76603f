import { Chart } from "./charts.js";

const $ = (id) => document.getElementById(id);
const PROTOCOL = "nexios.dashboard";
const HISTORY = 600;
const SHORTEST = 500, LONGEST = 15000; // ms between two attempts

let socket = null, token = "", pause = SHORTEST, timer = 0;
let may = { control: false, trace: false };
let points = [], state = null, shown = "";

// How numbers are written

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = (value) => (value >= 10000 ? short.format(value) : whole.format(value));
const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : count(value));

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${+(value * 1000).toPrecision(3)} ms`;
  return `${+value.toPrecision(3)} s`;
}

function age(value) {
  const [s, m, h] = [value % 60, (value / 60) % 60, value / 3600].map(Math.floor);
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function bytes(value) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return `${+value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} GiB`;
}

// Tables and lists: what is there is changed in place, so that focus and selection stay

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const link = (kind, name, text) => ({ href: `#${kind}/${encodeURIComponent(name)}`, text: text ?? name });

// columns: [title, value of a row: text, or {href, text}, "number" or other class of the cell]
function table(id, columns, rows, empty) {
  const node = $(id);
  if (!node.tHead) {
    const head = node.createTHead().insertRow();
    for (const [title, , kind] of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      if (kind === "number") cell.className = kind;
      head.append(cell);
    }
    node.createTBody();
  }
  const body = node.tBodies[0];
  if (!rows.length) {
    if (!body.rows[0]?.cells[0]?.classList.contains("empty")) {
      body.replaceChildren();
      const cell = body.insertRow().insertCell();
      cell.className = "empty";
      cell.colSpan = columns.length;
    }
    put(body.rows[0].cells[0], empty);
    return;
  }
  if (body.rows[0]?.cells[0]?.classList.contains("empty")) body.replaceChildren();
  while (body.rows.length > rows.length) body.rows[body.rows.length - 1].remove();
  rows.forEach((row, index) => {
    const line = body.rows[index] ?? body.insertRow();
    columns.forEach(([, value, kind], column) => {
      const cell = line.cells[column] ?? line.insertCell();
      if (kind && cell.className !== kind) cell.className = kind;
      const content = value(row);
      if (content && typeof content === "object") {
        const anchor = cell.firstElementChild ?? cell.appendChild(document.createElement("a"));
        if (anchor.getAttribute("href") !== content.href) anchor.href = content.href;
        put(anchor, content.text);
      } else put(cell, String(content ?? ""));
    });
  });
}

function facts(id, entries) {
  const node = $(id);
  while (node.children.length > entries.length) node.lastChild.remove();
  entries.forEach(([title, value], index) => {
    let box = node.children[index];
    if (!box) {
      box = node.appendChild(document.createElement("div"));
      box.append(document.createElement("dt"), document.createElement("dd"));
    }
    put(box.children[0], title);
    put(box.children[1], value);
  });
}

const CONNECTION = [
  ["Connection", (row) => link("connection", row.id)],
  ["Path", (row) => row.path],
  ["User", (row) => row.user ?? "–"],
  ["Address", (row) => row.peer],
  ["Age", (row) => age(row.seconds), "number"],
  ["In", (row) => count(row.in), "number"],
  ["Out", (row) => count(row.out), "number"],
];

const charts = [
  new Chart($("chart-connections"), "Connections", [["connections", "open"]], count, 10),
  new Chart($("chart-messages"), "Messages per second", [["in", "in"], ["out", "out"]], rate, 10),
  new Chart($("chart-latency"), "Latency", [["p50", "p50"], ["p95", "p95"], ["p99", "p99"]], seconds, 0.001),
];

// Pages: the overview, a group, a connection

function place() {
  const [kind, name] = location.hash.slice(1).split("/", 2);
  if (!name || (kind !== "connection" && kind !== "group")) return { kind: "" };
  try {
    return { kind, name: decodeURIComponent(name) };
  } catch { // not a link of ours
    return { kind: "" };
  }
}

function send(command) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
}

function show() {
  const { kind, name } = place();
  send({ do: "show", connection: kind === "connection" ? name : null, group: kind === "group" ? name : null });
  draw();
}

function draw() {
  const { kind, name } = place();
  const ready = state !== null;
  $("overview").hidden = kind !== "" || !ready;
  $("group-page").hidden = kind !== "group" || !ready;
  $("connection-page").hidden = kind !== "connection" || !ready;
  if (!ready) return;
  const heading = kind ? `${kind === "group" ? "Group" : "Connection"} ${name}` : "Dashboard";
  document.title = `${heading} · ${state.server.host}`;
  put($("server"), `${state.server.host}, process ${state.server.pid}${state.server.broker ? "" : ", broker away"}`);
  $("drain").hidden = !may.control || state.server.leaving;
  if (kind === "group") drawGroup(name);
  else if (kind === "connection") drawConnection(name);
  else drawOverview();
  if (shown !== location.hash) {
    // Whoever goes to another page by keyboard goes on reading there.
    if (kind) $(`${kind}-title`).focus();
    else if (shown) $("main").focus();
    shown = location.hash;
  }
}

function drawOverview() {
  const point = points.at(-1);
  facts("tiles", [
    ["Connections", count(point.connections)],
    ["Messages in", `${rate(point.in)}/s`],
    ["Messages out", `${rate(point.out)}/s`],
    ["Latency p50", seconds(point.p50)],
    ["Latency p99", seconds(point.p99)],
    ["Event loop late", seconds(point.loop_lag)],
    ["Waiting to be sent", bytes(point.waiting_bytes)],
  ]);
  for (const chart of charts) chart.draw(points);
  table("slow", [
    CONNECTION[0], CONNECTION[2],
    ["Path", (row) => row.path],
    ["Messages", (row) => count(row.waiting), "number"],
    ["Bytes", (row) => bytes(row.waiting_bytes), "number"],
    ["Dropped", (row) => count(row.dropped), "number"],
  ], state.slow, "Nobody: every client reads what it is sent.");
  put($("groups-count"), state.groups.count ? count(state.groups.count) : "");
  table("groups", [
    ["Group", (row) => link("group", row.name)],
    ["Members", (row) => count(row.members), "number"],
  ], state.groups.largest, "No group has members.");
  table("routes", [
    ["Route", (row) => row.name],
    ["Open", (row) => count(row.open), "number"],
    ["Opened", (row) => count(row.opened), "number"],
    ["In", (row) => count(row.in), "number"],
    ["Out", (row) => count(row.out), "number"],
    ["Rejected", (row) => count(row.rejected), "number"],
  ], state.routes, "No connection has been opened yet.");
  table("ends", [
    ["What", ([what]) => what],
    ["How often", ([, often]) => count(often), "number"],
  ], [
    ...Object.entries(state.closed).map(([code, often]) => [`closed with ${code}`, often]),
    ...Object.entries(state.refused).map(([cause, often]) => [cause, often]),
  ], "Nothing has ended, nobody was refused.");
  const more = state.found > state.connections.length ? `, the newest ${state.connections.length} are listed` : "";
  put($("found"), `${count(state.found)}${more}`);
  table("connections", CONNECTION, state.connections, $("find").value ? "None that matches." : "Nobody is connected.");
}

function drawGroup(name) {
  const group = state.group?.name === name ? state.group : { count: 0, members: [] };
  put($("group-title"), `Group ${name}: ${count(group.count)} ${group.count === 1 ? "member" : "members"} here`);
  table("members", CONNECTION, group.members, "Nobody is in this group.");
}

function drawConnection(name) {
  put($("connection-title"), `Connection ${name}`);
  const connection = state.connection?.id === name ? state.connection : null;
  const gone = Boolean(connection?.gone);
  $("gone").hidden = !gone;
  $("connection-body").hidden = gone || !connection;
  if (gone || !connection) return;
  facts("facts", [
    ["Path", connection.path],
    ["Route", connection.route || "–"],
    ["User", connection.user ?? "–"],
    ["Address", connection.peer || "–"],
    ["State", connection.state],
    ["Age", age(connection.seconds)],
    ["Subprotocol", connection.subprotocol ?? "–"],
    ["Ping", seconds(connection.latency)],
    ["Messages in", `${count(connection.in)} (${bytes(connection.bytes_in)})`],
    ["Messages out", `${count(connection.out)} (${bytes(connection.bytes_out)})`],
    ["Received, not read", count(connection.inbox)],
    ["Waiting to be sent", `${count(connection.waiting)} (${bytes(connection.waiting_bytes)})`],
    ["Dropped", count(connection.dropped)],
    ["Groups", connection.groups.join(", ") || "–"],
  ]);
  $("disconnect").hidden = !may.control;
  $("disconnect-user").hidden = !may.control || connection.user === null;
  $("trace").hidden = !may.trace;
  $("trace").setAttribute("aria-pressed", String(connection.traced));
  put($("trace"), connection.traced ? "Stop the trace" : "Trace frames");
  drawTasks(connection.tasks);
  $("frames-section").hidden = !connection.traced;
  if (connection.traced) drawFrames(connection.frames);
}

function drawTasks(tasks) {
  const key = JSON.stringify(tasks);
  const node = $("tasks");
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  const lists = [];
  for (const { name, depth, where } of tasks) {
    lists.length = Math.min(lists.length, depth + 1);
    if (!lists[depth]) {
      const list = document.createElement("ul");
      list.className = "tree";
      (depth ? lists[depth - 1].lastElementChild : node).append(list);
      if (!depth) node.replaceChildren(list);
      lists[depth] = list;
    }
    const item = document.createElement("li");
    const place = document.createElement("span");
    place.className = "where";
    place.textContent = ` ${where}`;
    item.append(name, place);
    lists[depth].append(item);
  }
}

function drawFrames(frames) {
  const masked = frames.length > 0 && frames[0].payload === undefined;
  put($("frames-hint"), masked ? "Payloads are masked." : "");
  table("frames", [
    ["Time", (frame) => new Date(frame.time * 1000).toISOString().slice(11, 23)],
    ["Way", (frame) => (frame.direction === "in" ? "→ in" : "← out")],
    ["Type", (frame) => frame.type],
    ["Size", (frame) => whole.format(frame.size), "number"],
    ["Payload", (frame) => frame.payload ?? "•••", "payload"],
  ], [...frames].reverse(), "No message since the trace began.");
}

// Buttons

async function sure(text, yes) {
  put($("sure-text"), text);
  put($("sure-yes"), yes);
  $("sure").returnValue = "no";
  $("sure").showModal();
  await new Promise((resolve) => { $("sure").addEventListener("close", resolve, { once: true }); });
  return $("sure").returnValue === "yes";
}

$("drain").addEventListener("click", async () => {
  if (await sure("Drain this worker? Every connection is closed with 1012, and no new one is let in until it is started again.", "Drain")) {
    send({ do: "drain" });
  }
});
$("disconnect").addEventListener("click", async () => {
  const { name } = place();
  if (await sure(`Disconnect ${name}?`, "Disconnect")) send({ do: "disconnect", connection: name });
});
$("disconnect-user").addEventListener("click", async () => {
  const user = state?.connection?.user;
  if (user && (await sure(`Disconnect all connections of ${user}?`, "Disconnect"))) send({ do: "disconnect_user", text: user });
});
$("trace").addEventListener("click", () => send({ do: "trace", on: $("trace").getAttribute("aria-pressed") !== "true" }));
$("find").addEventListener("input", () => send({ do: "find", text: $("find").value }));
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  connect();
});
window.addEventListener("hashchange", show);

// The connection

function tell(text, kind = "") {
  $("notice").dataset.kind = kind;
  put($("notice"), text);
  $("notice").hidden = !text;
}

function status(text, kind) {
  put($("status"), text);
  $("status").dataset.state = kind;
  document.body.classList.toggle("stale", kind !== "good" && state !== null);
  // What cannot be done now cannot be pressed.
  for (const id of ["drain", "disconnect", "disconnect-user", "trace"]) $(id).disabled = kind !== "good";
}

const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

function connect() {
  clearTimeout(timer);
  const where = new URL("dashboard-live", location.href.replace(/[?#].*/, ""));
  where.protocol = where.protocol === "https:" ? "wss:" : "ws:";
  const protocols = token ? [PROTOCOL, `base64url.bearer.${base64url(token)}`] : [PROTOCOL];
  const mine = (socket = new WebSocket(where, protocols));
  let opened = false;
  mine.addEventListener("message", (event) => {
    if (mine !== socket) return;
    opened = true;
    take(JSON.parse(event.data));
  });
  mine.addEventListener("close", (event) => { if (mine === socket) lost(opened, event); });
}

function take(message) {
  if (message.type === "hello") {
    may = message;
    pause = SHORTEST;
    $("sign-in").hidden = true;
    tell("");
    status("Connected", "good");
    if ($("find").value) send({ do: "find", text: $("find").value });
    show();
  } else if (message.type === "told") tell(message.text, "told");
  else {
    // The answer to a command may overtake the history.
    if (message.history) points = [];
    for (const point of message.points) {
      if (point.time > (points.at(-1)?.time ?? 0)) points.push(point);
    }
    points.splice(0, points.length - HISTORY);
    state = message;
    if (points.length) draw();
  }
}

async function lost(opened, event) {
  status("Reconnecting", "bad");
  if (opened && event.code !== 1006) {
    tell(event.code === 1012 ? "The worker drains or restarts." : `The server has closed this page's connection: ${event.reason || event.code}.`);
  }
  let answers = false;
  if (!opened) {
    try {
      answers = (await fetch("dashboard.css", { cache: "no-store" })).ok;
    } catch {
      tell("The server does not answer. What is shown is how it was; this page goes on trying.");
    }
    $("sign-in").hidden = !answers;
    if (answers) tell("");
  } else if (event.code === 1006) tell("The connection to the server broke. What is shown is how it was.");
  if (answers) status("Not let in", "bad");
  timer = setTimeout(connect, pause * (0.5 + Math.random()));
  pause = Math.min(pause * 2, LONGEST);
}

connect();
