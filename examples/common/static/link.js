// A WebSocket that comes back by itself, and shows how it is: in #status, and in #banner when it is gone.

export const $ = (id) => document.getElementById(id);

export function element(tag, className = "", text = undefined) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never innerHTML: what people write is text
  return made;
}

/** What was remembered under this key: in `localStorage` by all tabs, in `sessionStorage` by this one, reloads too. */
export function recall(key, otherwise, storage = localStorage) {
  try {
    return JSON.parse(storage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(key, value, storage = localStorage) {
  try {
    storage.setItem(key, JSON.stringify(value));
  } catch {
    // Private windows may have no storage; the page works without.
  }
}

/** Without half an emoji, which JSON could carry but UTF-8 cannot. */
export function whole(text) {
  return text.toWellFormed?.() ?? text;
}

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID(); // missing on plain http beyond localhost
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

const PATIENCE = 10_000; // ms for a connection to come about
const FATAL = [1007, 1008, 4001, 4401, 4403]; // it would end the same way again, or begin a quarrel of two tabs
const STATES = {
  connecting: ["Connecting", ""],
  connected: ["Connected", ""],
  restarting: ["Server restarts", "The server is restarting. This page comes back by itself."],
  reconnecting: ["Reconnecting", "The connection is gone. This page comes back by itself."],
  offline: ["Offline", "You are offline. This page comes back when you do."],
  stopped: ["Disconnected", "The server has ended the connection"],
};

export class Link {
  /**
   * `hear(data)` gets each message: an object from JSON, or an ArrayBuffer. `opened()` is called when the server
   * can be talked to; `ready()` is to be called once it has answered. `lost(code, reason)` is called at each end.
   * `silence` is how many ms the server may say nothing. `kept` tells what becomes of what the user does meanwhile.
   */
  constructor({ hear, opened = () => {}, lost = () => {}, silence = 45_000, kept = "" }) {
    Object.assign(this, { hear, opened, onLost: lost, silence, kept });
    this.url = null;
    this.socket = null;
    this.connected = false;
    this.wanted = false;
    this.failures = 0;
    this.restarting = false;
    this.heard = 0;
    this.timer = 0;
    setInterval(() => this.watch(), 2_000);
    addEventListener("online", () => this.wanted && this.retry());
    addEventListener("offline", () => this.wanted && this.end(1006, ""));
    $("retry").addEventListener("click", () => this.retry());
  }

  /** Connect to this place of the server, and come back to it from now on. */
  to(path) {
    this.url = new URL(path, location.href);
    this.url.protocol = this.url.protocol.replace("http", "ws");
    this.url.hash = "";
    this.failures = 0;
    this.open();
  }

  /** Connect afresh, now. */
  open() {
    this.drop();
    this.wanted = true;
    this.show(this.failures ? this.away() : "connecting");
    this.heard = Date.now();
    const socket = (this.socket = new WebSocket(this.url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.opened();
    socket.onmessage = ({ data }) => {
      this.heard = Date.now();
      this.hear(typeof data === "string" ? JSON.parse(data) : data);
    };
    socket.onclose = ({ code, reason }) => this.end(code, reason);
  }

  ready() {
    this.connected = true;
    this.failures = 0;
    this.restarting = false;
    this.show("connected");
  }

  retry() {
    this.failures = Math.max(1, this.failures);
    this.open();
  }

  /** Stay away until the next `open()`. */
  leave() {
    this.wanted = false;
    this.drop();
  }

  /** Let go of the socket; nothing that still comes from it counts. */
  drop() {
    clearTimeout(this.timer);
    this.connected = false;
    if (!this.socket) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.socket = null;
  }

  end(code, reason) {
    this.drop();
    if (FATAL.includes(code)) {
      this.wanted = false;
      this.show("stopped", reason);
      return this.onLost(code, reason);
    }
    if (code === 1012) this.restarting = true; // service restart
    // Exponential backoff up to 30 s, half of it left to chance: not everybody comes back in the same moment.
    const most = Math.min(30_000, 500 * 2 ** this.failures++);
    this.timer = setTimeout(() => this.open(), most / 2 + (Math.random() * most) / 2);
    this.show(this.away(), code === 1013 ? reason : ""); // 1013: there is no room now, and the reason says why
    this.onLost(code, reason);
  }

  away() {
    return !navigator.onLine ? "offline" : this.restarting ? "restarting" : "reconnecting";
  }

  /** Send a message if there is a connection; an object goes as JSON. Returns whether there was one. */
  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    const binary = message instanceof ArrayBuffer || ArrayBuffer.isView(message);
    this.socket.send(binary ? message : JSON.stringify(message));
    return true;
  }

  /** A connection may die without a word: when a laptop sleeps, when a phone loses its network. */
  watch() {
    if (this.socket && Date.now() - this.heard > (this.connected ? this.silence : PATIENCE)) this.end(1006, "");
  }

  show(state, reason = "") {
    const [label, explanation] = STATES[state];
    const text = !explanation ? "" // connected, or about to be
      : state === "stopped" ? `${explanation}${reason && `: ${reason}`}.`
      : reason ? `The server says: ${reason}. This page tries again soon. ${this.kept}`
      : `${explanation} ${this.kept}`;
    $("status").dataset.state = state;
    document.body.classList.toggle("away", text !== "");
    $("banner").hidden = !text;
    for (const [id, said] of [["status", label], ["banner-text", text.trim()]])
      if ($(id).textContent !== said) $(id).textContent = said; // what is set again is read out again
  }
}
