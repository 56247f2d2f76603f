// Lines over time as SVG. Nothing is set through style attributes: the page's policy forbids them.

const WIDTH = 420, HEIGHT = 150, LEFT = 46, RIGHT = 6, TOP = 8, BOTTOM = 20;
const SPAN = 300; // seconds that are shown
const NS = "http://www.w3.org/2000/svg";

function make(name, attributes, parent) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

// 1, 2 or 5 times a power of ten, at least `most`
function nice(most, least) {
  const wanted = Math.max(most, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((factor) => factor * power).find((bound) => bound >= wanted * 0.999);
}

export class Chart {
  // lines: [[key of a point, label], ...]; format: value to text; least: the smallest top of the scale
  constructor(figure, title, lines, format, least) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.least = least;
    const caption = document.createElement("figcaption");
    const heading = document.createElement("b");
    heading.textContent = title;
    caption.append(heading);
    if (lines.length > 1) {
      lines.forEach(([, label], index) => {
        const entry = document.createElement("span");
        entry.className = `line-${index}`;
        entry.textContent = label;
        caption.append(entry);
      });
    }
    figure.append(caption);
    this.svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" }, figure);
    this.labels = [0, 1, 2].map((step) => {
      const y = HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * step) / 2;
      make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }, this.svg);
      return make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.svg);
    });
    for (const [share, text] of [[0, "5 min ago"], [1, "now"]]) {
      const x = LEFT + share * (WIDTH - LEFT - RIGHT);
      make("text", { x, y: HEIGHT - 4, "text-anchor": share ? "end" : "start" }, this.svg).textContent = text;
    }
    this.paths = lines.map((_, index) => make("path", { class: `line-${index}`, d: "" }, this.svg));
    this.fit(figure);
  }

  // Text is to keep its shape at any width: the picture is as wide as the place for it.
  fit(figure) {
    new ResizeObserver(([entry]) => {
      this.width = Math.max(240, Math.round(entry.contentRect.width));
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
      for (const line of this.svg.querySelectorAll("line")) line.setAttribute("x2", this.width - RIGHT);
      for (const text of this.svg.querySelectorAll('text[y="146"][text-anchor="end"]')) text.setAttribute("x", this.width - RIGHT);
      if (this.points) this.draw(this.points);
    }).observe(figure);
  }

  draw(points) {
    this.points = points;
    if (!points.length) return;
    const width = this.width || WIDTH;
    const now = points.at(-1).time;
    const shown = points.filter((point) => point.time >= now - SPAN);
    const values = shown.flatMap((point) => this.lines.map(([key]) => point[key] ?? 0));
    const top = nice(Math.max(...values), this.least);
    this.labels.forEach((label, step) => { label.textContent = this.format((top * step) / 2); });
    const x = (time) => LEFT + ((time - now + SPAN) / SPAN) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    this.lines.forEach(([key], index) => {
      let path = "", pen = false;
      for (const point of shown) {
        const value = point[key];
        if (value === null || value === undefined) { pen = false; continue; }
        // A value between two gaps is a point: a line of no length with round ends would not be seen.
        path += `${pen ? "L" : "M"}${x(point.time).toFixed(1)} ${y(value).toFixed(1)}${pen ? "" : "h1"}`;
        pen = true;
      }
      this.paths[index].setAttribute("d", path);
    });
    const last = shown.at(-1);
    const told = this.lines.map(([key, label]) => `${label} ${last[key] === null ? "none" : this.format(last[key])}`);
    this.svg.setAttribute("aria-label", `${this.title}: ${told.join(", ")}; highest in 5 minutes ${this.format(Math.max(...values))}`);
  }
}
