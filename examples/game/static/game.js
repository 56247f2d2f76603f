// The game's page. It decides nothing: it sends what the player wants, and draws what the server says.

import { $, Link, element, recall, remember } from "../common/link.js";

const INPUTS = 60; // a second
const BEHIND = 100; // ms: we draw the past, where there is a snapshot on either side
const REACH = 60; // px of dragging for full speed
const COLOURS = 8;

const canvas = $("arena");
const context = canvas.getContext("2d");
const still = matchMedia("(prefers-reduced-motion: reduce)");

let arena = { width: 1600, height: 900, ship: 24, star: 14 };
let names = {};
let mine = 0; // id of our ship
let playing = false; // whether we want one
let seq = 0;

// ---------------------------------------------------------------- the connection

const link = new Link({
  silence: 25_000,
  hear: ({ type, ...message }) => heard[type]?.(message),
  lost() {
    mine = 0; // the picture stays
    $("rate").textContent = 0;
  },
});

const heard = {
  arena(sizes) {
    arena = sizes;
    snapshots.length = aheads.length = 0;
    link.ready();
    if (playing) link.send({ type: "join", name: $("name").value });
  },
  welcome({ id }) {
    mine = id;
    seq = 0;
    $("notice").textContent = "";
    $("join").hidden = true;
    canvas.focus();
  },
  roster(roster) {
    for (const [id, name] of Object.entries(roster.names)) if (!(id in names)) tell(`${name} has come`);
    for (const [id, name] of Object.entries(names)) if (!(id in roster.names)) tell(`${name} has gone`);
    names = roster.names;
    for (const id of angles.keys()) if (!(id in names)) angles.delete(id);
    $("watching").textContent = roster.watching;
    showScores();
  },
  state: take,
  problem({ text }) {
    if (mine) return console.info(text);
    playing = false;
    $("notice").textContent = text;
    $("join").hidden = false;
  },
  ping: () => link.send({ type: "pong" }),
};

function tell(text) {
  $("news").textContent = text;
}

// ---------------------------------------------------------------- snapshots, and between them

const snapshots = []; // {at, ships: Map(id -> [x, y, vx, vy, score]), stars}
const aheads = []; // the server's time minus ours, by the last two seconds' messages; the fastest one tells

function take({ at, ships, stars }) {
  const last = snapshots.at(-1);
  if (last && at < last.at) snapshots.length = aheads.length = 0; // another server
  if (aheads.push(at - performance.now()) > 40) aheads.shift();
  snapshots.push({ at, ships: new Map(ships.map(([id, ...rest]) => [id, rest])), stars });
  if (snapshots.length > 20) snapshots.shift();
  received.push(performance.now());
  scoresChanged();
}

/** Where everything was `BEHIND` ms ago. */
function between() {
  const at = performance.now() + Math.max(...aheads) - BEHIND;
  let next = snapshots.findIndex((snapshot) => snapshot.at > at);
  if (next < 0) next = snapshots.length - 1; // nothing newer: it stands still
  const after = snapshots[next];
  const before = snapshots[Math.max(0, next - 1)];
  const span = after.at - before.at;
  const share = span > 0 ? Math.min(1, Math.max(0, (at - before.at) / span)) : 1;
  const ships = [];
  for (const [id, [x, y, vx, vy]] of after.ships) {
    const [x0, y0, vx0, vy0] = before.ships.get(id) ?? [x, y, vx, vy];
    const mix = (from, to) => from + (to - from) * share;
    ships.push({ id, x: mix(x0, x), y: mix(y0, y), vx: mix(vx0, vx), vy: mix(vy0, vy) });
  }
  return { ships, stars: after.stars };
}

// ---------------------------------------------------------------- the canvas

const colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["--grid", "--star", "--label", ...Array.from({ length: COLOURS }, (_, i) => `--ship${i}`)];
  for (const name of names) colours[name] = style.getPropertyValue(name);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);
readColours();

const angles = new Map(); // id -> where the bow points, kept while a ship stands

function draw() {
  requestAnimationFrame(draw);
  const { clientWidth, clientHeight } = canvas;
  const ratio = devicePixelRatio || 1;
  const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  // On a phone the arena stands upright: what is right in the world is down on the screen.
  const upright = height > width;
  const scale = upright ? Math.min(width / arena.height, height / arena.width)
    : Math.min(width / arena.width, height / arena.height);
  const [w, h] = upright ? [arena.height, arena.width] : [arena.width, arena.height];
  context.setTransform(scale, 0, 0, scale, (width - w * scale) / 2, (height - h * scale) / 2);
  const place = upright ? (x, y) => [arena.height - y, x] : (x, y) => [x, y];
  drawGrid(w, h);
  if (!snapshots.length) return;
  const { ships, stars } = between();
  for (const [id, x, y] of stars) drawStar(...place(x, y), still.matches ? 0 : performance.now() / 1500 + id);
  for (const ship of ships) drawShip(ship, place, upright, scale / ratio, w, h);
}

function drawGrid(w, h) {
  context.strokeStyle = colours["--grid"];
  context.lineWidth = 2;
  context.beginPath();
  for (let x = 0; x <= w; x += 100) context.moveTo(x, 0), context.lineTo(x, h);
  for (let y = 0; y <= h; y += 100) context.moveTo(0, y), context.lineTo(w, y);
  context.stroke();
  context.strokeRect(1, 1, w - 2, h - 2);
}

function drawStar(x, y, turn) {
  context.fillStyle = colours["--star"];
  context.beginPath();
  for (let i = 0; i < 10; i++) {
    const [angle, radius] = [turn + (i * Math.PI) / 5, i % 2 ? arena.star * 0.48 : arena.star];
    context.lineTo(x + Math.sin(angle) * radius, y - Math.cos(angle) * radius);
  }
  context.fill();
}

function drawShip({ id, x, y, vx, vy }, place, upright, zoom, w, h) {
  if (Math.hypot(vx, vy) > 20) angles.set(id, Math.atan2(vy, vx));
  const [px, py] = place(x, y);
  const angle = (angles.get(id) ?? -Math.PI / 2) + (upright ? Math.PI / 2 : 0);
  const r = arena.ship;
  context.save();
  context.translate(px, py);
  context.rotate(angle);
  context.fillStyle = colours[`--ship${id % COLOURS}`];
  context.beginPath();
  context.moveTo(r, 0);
  context.lineTo(-r * 0.8, r * 0.75);
  context.lineTo(-r * 0.4, 0);
  context.lineTo(-r * 0.8, -r * 0.75);
  context.closePath();
  context.fill();
  context.restore();
  const size = Math.min(40, Math.max(18, 12 / zoom)); // on the screen never below 12 px, if there is room
  context.font = `${id === mine ? 700 : 500} ${size}px ui-sans-serif, system-ui, sans-serif`;
  context.textAlign = "center";
  context.fillStyle = colours["--label"];
  const label = id === mine ? "You" : (names[id] ?? "");
  const half = context.measureText(label).width / 2; // a name stays within the arena, above the ship if need be
  context.fillText(label, Math.min(Math.max(px, half), w - half), py + r + size < h ? py + r + size : py - r - size / 3);
}

requestAnimationFrame(draw);

// ---------------------------------------------------------------- scores

const received = []; // when the snapshots of the last second came
let scoresShown = 0;

function scoresChanged() {
  const now = performance.now();
  while (received[0] < now - 1000) received.shift();
  if (now - scoresShown < 250) return;
  $("rate").textContent = received.length;
  showScores();
}

function showScores() {
  scoresShown = performance.now();
  const ships = [...(snapshots.at(-1)?.ships ?? [])].filter(([id]) => id in names);
  ships.sort(([a, one], [b, other]) => other[4] - one[4] || a - b);
  $("nobody").hidden = ships.length > 0;
  $("scores").replaceChildren(
    ...ships.map(([id, ship]) => {
      const item = element("li", `ship${id % COLOURS}${id === mine ? " mine" : ""}`);
      item.append(element("bdi", "", names[id]));
      if (id === mine) item.append(element("span", "you", " (you)"));
      item.append(element("span", "points", ship[4]));
      return item;
    }),
  );
}

// ---------------------------------------------------------------- the player

const KEYS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  KeyA: [-1, 0], KeyD: [1, 0], KeyW: [0, -1], KeyS: [0, 1],
};
const held = new Set();
let drag = null; // {id, x, y, dx, dy}

canvas.addEventListener("keydown", (event) => {
  if (!(event.code in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  held.add(event.code);
});
canvas.addEventListener("keyup", ({ code }) => held.delete(code));
canvas.addEventListener("blur", () => held.clear());
canvas.addEventListener("pointerdown", ({ pointerId, clientX, clientY }) => {
  canvas.setPointerCapture(pointerId);
  drag = { id: pointerId, x: clientX, y: clientY, dx: 0, dy: 0 };
});
canvas.addEventListener("pointermove", ({ pointerId, clientX, clientY }) => {
  if (drag?.id === pointerId) Object.assign(drag, { dx: clientX - drag.x, dy: clientY - drag.y });
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, ({ pointerId }) => {
    if (drag?.id === pointerId) drag = null;
  });

/** Where the player wants to go, on the screen. */
function wanted() {
  if (drag) {
    const length = Math.max(REACH, Math.hypot(drag.dx, drag.dy));
    return [drag.dx / length, drag.dy / length];
  }
  let [x, y] = [0, 0];
  for (const code of held) [x, y] = [x + KEYS[code][0], y + KEYS[code][1]];
  return [Math.sign(x), Math.sign(y)];
}

setInterval(() => {
  if (!mine) return;
  const [x, y] = wanted();
  const upright = canvas.height > canvas.width;
  link.send({ type: "steer", seq: seq++, x: upright ? y : x, y: upright ? -x : y });
}, 1000 / INPUTS);

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  $("name").setCustomValidity(/[^\s\p{C}]/u.test(name) ? "" : "Please enter a name");
  if (!$("join").reportValidity()) return;
  $("name").value = name;
  remember("game.name", name);
  playing = true;
  if (!link.connected) return; // we join as soon as it is
  link.send({ type: "join", name });
});
$("name").addEventListener("input", () => $("name").setCustomValidity(""));

$("name").value = recall("game.name", "");
$("join").hidden = false;
$("name").focus();
link.to("play");
