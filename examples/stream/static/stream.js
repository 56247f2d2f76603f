// The viewer's page: segments come over the WebSocket and go into a MediaSource; and a chat.

import { $, Link, element, recall, remember, whole } from "../common/link.js";

const [INIT, SEGMENT] = [0, 1];
const MIME = 'video/webm; codecs="vp9"';
const PLAYABLE = Boolean(window.MediaSource?.isTypeSupported(MIME)); // not on an iPhone
const BEHIND = 1.2; // seconds behind the newest picture that we stay
const FAR = 4; // seconds behind, then we jump
const KEEP = 10; // seconds of the past
const SHOWN = 200; // messages

const video = $("video");
let wanted = !matchMedia("(prefers-reduced-motion: reduce)").matches; // whether it is to play
let expected = null; // number of the next segment
let skipped = 0;

// ---------------------------------------------------------------- the player

const player = {
  source: null,
  buffer: null,
  queue: [],

  /** Begin afresh, with what a stream has first. */
  start(init) {
    this.stop();
    if (!PLAYABLE) return ($("trouble").textContent = "This browser cannot play WebM with VP9 from a script; the chat works.");
    $("trouble").textContent = "";
    this.queue = [init];
    const source = (this.source = new MediaSource());
    source.addEventListener("sourceopen", () => {
      if (source !== this.source) return;
      URL.revokeObjectURL(video.src);
      this.buffer = source.addSourceBuffer(MIME);
      this.buffer.addEventListener("updateend", () => this.tend());
      this.tend();
    }, { once: true });
    video.src = URL.createObjectURL(source);
  },

  stop() {
    this.source = this.buffer = null;
    this.queue = [];
  },

  push(segment) {
    if (!PLAYABLE || (!wanted && this.buffer)) return; // every segment begins anew: those of a pause are not needed
    this.queue.push(segment);
    if (this.queue.length > 30) this.queue.splice(1, 1); // the tab sleeps
    this.tend();
  },

  tend() {
    const { buffer } = this;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    try {
      const { buffered } = buffer;
      if (buffered.length) {
        this.follow(buffered);
        const old = video.currentTime - KEEP;
        if (buffered.start(0) < old - KEEP) return buffer.remove(0, old);
      }
      const next = this.queue.shift();
      if (next) buffer.appendBuffer(next);
    } catch (error) {
      $("trouble").textContent = `The video cannot be shown: ${error.message}`;
    }
  },

  /** Stay within what there is, and close to its end. */
  follow(buffered) {
    const last = buffered.length - 1;
    const [start, end] = [buffered.start(last), buffered.end(last)];
    const now = video.currentTime;
    if (now < start - 0.3) {
      let inside = false;
      for (let i = 0; i < last; i++) inside ||= now >= buffered.start(i) && now < buffered.end(i) - 0.1;
      if (!inside) video.currentTime = start; // over a gap
    }
    if (end - now > FAR) video.currentTime = Math.max(start, end - BEHIND);
    $("behind").textContent = Math.max(0, end - video.currentTime).toFixed(1);
    if (wanted && video.paused) video.play().catch(() => pause()); // the browser may want a click first
  },
};

setInterval(() => player.tend(), 250);

function pause() {
  wanted = false;
  video.pause();
  showPlay();
}

function showPlay() {
  $("play").textContent = wanted ? "Pause" : "Play";
}

$("play").addEventListener("click", () => {
  if (wanted) return pause();
  wanted = true;
  player.tend();
  showPlay();
});
$("full").hidden = !video.requestFullscreen;
$("full").addEventListener("click", () => video.requestFullscreen().catch(() => {}));
showPlay();

// ---------------------------------------------------------------- the connection

const link = new Link({
  silence: 8_000, // there is a segment each second
  hear(message) {
    if (message instanceof ArrayBuffer) take(message);
    else heard[message.type]?.(message);
  },
  lost() {
    expected = null;
  },
});

function take(message) {
  const head = new DataView(message);
  const number = head.getUint32(1);
  const data = new Uint8Array(message, 5);
  if (head.getUint8(0) === INIT) {
    player.start(data);
    link.ready();
  } else if (head.getUint8(0) === SEGMENT) {
    if (expected !== null) skipped += number - expected;
    expected = number + 1;
    $("skipped").textContent = skipped;
    player.push(data);
  }
}

const shown = new Set(); // ids of messages
const heard = {
  history({ said }) {
    for (const message of said) heard.said(message);
  },
  said({ id, name, text, at }) {
    if (shown.has(id)) return;
    shown.add(id);
    const log = $("log");
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const item = element("li");
    const when = new Date(at);
    const time = element("time", "", when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
    time.dateTime = when.toISOString();
    item.append(element("bdi", "who", name), time, element("p", "", text));
    log.append(item);
    item.dataset.id = id;
    while (log.childElementCount > SHOWN) {
      shown.delete(log.firstElementChild.dataset.id);
      log.firstElementChild.remove();
    }
    if (follow) log.scrollTop = log.scrollHeight;
    $("quiet").hidden = true;
  },
  viewers: ({ count }) => ($("viewers").textContent = count),
  problem: ({ text }) => ($("notice").textContent = text),
  ping: () => link.send({ type: "pong" }),
};

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const [name, text] = [$("name").value.trim(), $("text").value.trim()];
  if (!/[^\s\p{C}]/u.test(name) || !/[^\s\p{C}]/u.test(text)) return;
  remember("stream.name", name);
  $("notice").textContent = "";
  if (link.connected && link.send({ type: "say", name: whole(name), text: whole(text) })) $("text").value = "";
  else $("notice").textContent = "There is no connection; your message stays here.";
  $("text").focus();
});

$("name").value = recall("stream.name", "");
$("play").disabled = $("full").disabled = !PLAYABLE;
link.to("watch");
