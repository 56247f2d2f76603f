// The dashboard's page: samples come, the last two minutes are drawn.

import { $, Link, element } from "../common/link.js";

const SPAN = 120; // seconds on the screen
const HEIGHT = 112, BOTTOM = 94, TOP = 14; // px of a plot
const NOISY = 50, NOISE_EVERY = 100; // sockets, ms
const MB = 1024 * 1024;

const whole = (value) => Math.round(value).toLocaleString();
const fine = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(0));

/** What is drawn: `series` are functions of a sample, `least` is the smallest top of the scale. */
const PLOTS = [
  { id: "lag", title: "Loop lag", unit: "ms", least: 2, show: fine,
    series: [["mean", (s) => s.lag], ["worst", (s) => s.worst_lag]] },
  { id: "connections", title: "Connections", unit: "open", least: 4, show: whole, series: [["", (s) => s.connections]] },
  { id: "messages", title: "Messages", unit: "a second, out", least: 10, show: whole,
    series: [["out", (s) => s.sent], ["in", (s) => s.received]] },
  { id: "memory", title: "Memory", unit: "MiB", least: 32, show: whole, series: [["", (s) => s.memory / MB]] },
  { id: "cpu", title: "Processor", unit: "% of a core", least: 10, show: (value) => value.toFixed(1),
    series: [["", (s) => s.cpu * 100]] },
  { id: "tasks", title: "Trio tasks", unit: "living", least: 10, show: whole, series: [["", (s) => s.tasks]] },
];

let samples = [];
let interval = 0.5;
let boot = "";
let newest = -1; // seq
let missed = 0;
let cursor = null; // the `at` of the sample that is looked at; null: the newest

// ---------------------------------------------------------------- the connection

const link = new Link({
  silence: 10_000,
  hear({ type, ...message }) {
    heard[type]?.(message);
  },
  lost: () => makeNoise(false),
});

const heard = {
  history(history) {
    interval = history.interval;
    // What another process measured stays on the screen; its samples are numbered otherwise.
    const known = new Set(boot === history.boot ? history.samples.map(({ seq }) => seq) : []);
    samples = samples.filter(({ seq }) => !known.has(seq)).concat(history.samples);
    samples.sort((a, b) => a.at - b.at);
    boot = history.boot;
    newest = history.samples.at(-1)?.seq ?? -1;
    link.ready();
    show();
  },
  sample(sample) {
    if (sample.seq <= newest) return; // it was in the history
    if (newest >= 0) missed += sample.seq - newest - 1;
    newest = sample.seq;
    samples.push(sample);
    show();
  },
  ping: () => link.send({ type: "pong" }),
};

// ---------------------------------------------------------------- the plots

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

for (const plot of PLOTS) {
  const card = element("section", "card");
  const head = element("div", "head");
  const title = element("h2", "", plot.title);
  title.id = `${plot.id}-title`;
  card.setAttribute("aria-labelledby", title.id);
  plot.value = element("p", "value");
  plot.value.id = `${plot.id}-value`;
  head.append(title);
  if (plot.series.length > 1) {
    const legend = element("p", "legend");
    legend.append(...plot.series.map(([name]) => element("span", "", name)));
    head.append(legend);
  }
  plot.svg = svg("svg", { class: "plot", tabindex: 0, role: "img" });
  card.append(head, plot.value, plot.svg);
  $("plots").append(card);
  plot.svg.addEventListener("pointermove", ({ offsetX }) => lookAt(offsetX / plot.svg.clientWidth));
  plot.svg.addEventListener("pointerleave", () => ((cursor = null), show()));
  plot.svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (event.key === "Escape") cursor = null;
    else if (steps) step(steps);
    else return;
    event.preventDefault();
    show();
  });
}

function looked() {
  return samples.find(({ at }) => at === cursor) ?? samples.at(-1);
}

function lookAt(share) {
  const at = (samples.at(-1)?.at ?? 0) - SPAN * (1 - share);
  cursor = samples.reduce((best, s) => (Math.abs(s.at - at) < Math.abs(best.at - at) ? s : best), samples[0])?.at;
  show();
}

function step(by) {
  const index = Math.max(0, Math.min(samples.length - 1, samples.indexOf(looked()) + by));
  cursor = index === samples.length - 1 ? null : samples[index].at;
}

/** A round number that is not below. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((round) => round >= value * 0.999);
}

function show() {
  const last = samples.at(-1);
  if (!last) return;
  samples = samples.filter(({ at }) => at > last.at - SPAN - 2 * interval);
  const at = looked();
  for (const plot of PLOTS) draw(plot, last.at, at);
  const ago = last.at - at.at;
  $("when").textContent = ago > 0 ? `${ago.toFixed(1)} seconds ago` : "The last two minutes";
  $("viewers").textContent = last.viewers;
  $("conflated").textContent = last.conflated;
  $("missed").textContent = missed;
  if (document.querySelector("details").open) showTable();
}

function draw(plot, now, at) {
  const width = plot.svg.clientWidth || 300;
  const values = plot.series.map(([, read]) => samples.map(read));
  const top = ceiling(Math.max(plot.least, ...values.flat()));
  const x = (time) => (width * (time - now + SPAN)) / SPAN;
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * value) / top;
  const parts = [0, 0.5, 1].map((share) => svg("line", { class: "rule", x1: 0, x2: width, y1: y(top * share), y2: y(top * share) }));
  const text = (content, attributes) => {
    const made = svg("text", attributes);
    made.textContent = content;
    return made;
  };
  parts.push(text(`${top.toLocaleString()}`, { x: 0, y: TOP - 4 }), text("2 min ago", { x: 0, y: HEIGHT - 2 }),
    text("now", { x: width, y: HEIGHT - 2, "text-anchor": "end" }));
  const drawn = plot.series.map(([, read], index) => [read, index]).reverse(); // the first one on top
  for (const [read, index] of drawn) {
    let [line, area, start, before] = ["", "", 0, null];
    const close = () => before && (area += `L${x(before.at).toFixed(1)} ${BOTTOM}L${start} ${BOTTOM}Z`);
    for (const sample of samples) {
      const gap = !before || sample.at - before.at > 1.8 * interval;
      const point = `${x(sample.at).toFixed(1)} ${y(read(sample)).toFixed(1)}`;
      if (gap) {
        close();
        start = x(sample.at).toFixed(1);
      }
      line += `${gap ? "M" : "L"}${point}`;
      area += `${gap ? "M" : "L"}${point}`;
      before = sample;
    }
    close();
    if (index === 0) parts.push(svg("path", { class: "area", d: area }));
    parts.push(svg("path", { class: index ? "line second" : "line", d: line }));
  }
  if (cursor !== null) parts.push(svg("line", { class: "cursor", x1: x(at.at), x2: x(at.at), y1: TOP, y2: BOTTOM }));
  plot.svg.replaceChildren(...parts);
  const value = plot.show(plot.series[0][1](at));
  plot.value.replaceChildren(value, element("small", "", plot.unit));
  const range = values[0].length ? `${plot.show(Math.min(...values[0]))} to ${plot.show(Math.max(...values[0]))}` : "";
  plot.svg.setAttribute("aria-label", `${plot.title}: ${value} ${plot.unit}; in two minutes ${range}`);
}

function showTable() {
  const columns = PLOTS.flatMap(({ title, series, show }) => series.map(([name, read]) => [`${title} ${name}`, read, show]));
  const row = (tag, cells) => {
    const made = element("tr");
    made.append(...cells.map((cell) => element(tag, "", cell)));
    if (tag === "th") for (const cell of made.children) cell.scope = "col";
    return made;
  };
  $("head").replaceChildren(row("th", ["Time", ...columns.map(([title]) => title)]));
  $("rows").replaceChildren(
    ...samples.slice(-20).reverse().map((sample) =>
      row("td", [new Date(sample.at * 1000).toLocaleTimeString(), ...columns.map(([, read, show]) => show(read(sample)))])),
  );
}

document.querySelector("details").addEventListener("toggle", show);
new ResizeObserver(show).observe($("plots"));

// ---------------------------------------------------------------- noise

let noise = []; // sockets
let noiseTimer = 0;

function makeNoise(on) {
  clearInterval(noiseTimer);
  for (const socket of noise.splice(0)) socket.close();
  $("noise").setAttribute("aria-pressed", String(on));
  $("noise").textContent = on ? "Stop the noise" : "Make some noise";
  if (!on) return;
  const url = new URL("echo", link.url);
  noise = Array.from({ length: NOISY }, () => new WebSocket(url));
  noiseTimer = setInterval(() => {
    for (const socket of noise) if (socket.readyState === WebSocket.OPEN) socket.send("noise");
  }, NOISE_EVERY);
}

$("noise").addEventListener("click", () => makeNoise(noise.length === 0));

link.to("samples");
