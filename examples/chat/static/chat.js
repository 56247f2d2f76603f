// The chat's page. Three parts: the connection, what is on the screen, and what the user does.

import { $, Link, element, recall, remember, uuid, whole } from "../common/link.js";

const ROOMS = ["lobby", "trio", "random"]; // offered to everybody
const MAX_WAITING = 100; // messages kept while there is no connection
const MAX_SHOWN = 500; // messages kept on the screen
const HISTORY = 50; // messages that the server sends to who comes
const TYPING_EVERY = 2_000, TYPING_LASTS = 4_000; // ms
const SAME_BREATH = 5 * 60_000; // ms within which messages of one person stand together

const me = { name: recall("chat.name", ""), shown: "", user: "", key: recall("chat.key", uuid(), sessionStorage) };
remember("chat.key", me.key, sessionStorage); // who comes back with it, also by a reload, has the old place
let room = "";
let waiting = []; // {id, room, text, at}: not yet seen coming back from the server

/** What people type as a room, as the server wants it. */
function roomName(typed) {
  const tidy = typed.trim().toLowerCase().replace(/\s+/g, "-").replace(/[^\p{L}\p{N}_-]/gu, "");
  return [...tidy].slice(0, 32).join("");
}

// ---------------------------------------------------------------- the connection

let position = null; // of the last message that we have: where we resume
let early = []; // what came before the welcome

const link = new Link({
  opened() {
    early = [];
    link.send({ type: "join", name: me.shown || me.name, key: me.key, since: position });
  },
  /** What is for the whole room comes as the payload of an envelope. */
  hear({ position: place, payload, ...direct }) {
    if (payload && !link.connected) return early.push(payload);
    if (payload && place) position = place;
    const event = payload ?? direct;
    heard[event.type]?.(event);
  },
  lost() {
    forgetTyping();
    showWaiting();
  },
  kept: "What you write is kept until then.",
});

const heard = {
  welcome({ user, name, place, recovered, history, people }) {
    position = place;
    me.user = user;
    me.shown = name;
    showMe();
    present.clear();
    for (const [user, name] of Object.entries(people)) present.set(user, name);
    showPeople();
    link.ready();
    showHistory(history, early.filter(({ type }) => type === "said"), recovered);
    for (const event of early) if (event.type !== "said") heard[event.type]?.(event);
    early = [];
    showWaiting();
    // What of ours came back has arrived before the connection broke; the rest goes out now.
    for (const message of waiting) if (message.room === room) sendWaiting(message);
  },
  "presence.join"({ user, metadata }) {
    present.set(user, metadata.name);
    showPeople();
  },
  "presence.leave"({ user }) {
    present.delete(user);
    showPeople();
  },
  said(message) {
    showMessage(message, { fresh: true });
  },
  typing({ name }) {
    if (name !== me.shown) showTyping(name);
  },
  problem({ text }) {
    notify(`The server did not take a message: ${text}`);
  },
  ping() {
    link.send({ type: "pong" });
  },
};

function sendWaiting({ id, text }) {
  link.send({ type: "say", id, text });
}

// ---------------------------------------------------------------- the screen

const shown = new Set(); // ids of the messages on the screen
let last = null; // the message at the bottom
let unread = 0;

function dress(avatar, name) {
  let hash = 0;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 0x9e3779b1);
  avatar.className = `avatar hue${hash >>> 29}`;
  avatar.textContent = [...name][0]?.toUpperCase() ?? "";
  avatar.setAttribute("aria-hidden", "true");
  return avatar;
}

function showMe() {
  const name = me.shown || me.name;
  dress($("my-avatar"), name);
  $("my-name").textContent = name;
}

const present = new Map(); // user -> name

function showPeople() {
  $("count").textContent = present.size;
  $("people").replaceChildren(
    ...[...present].sort(([, a], [, b]) => a.localeCompare(b)).map(([user, name]) => {
      const item = element("li");
      item.append(dress(element("span"), name), element("bdi", "", name));
      if (user === me.user) item.append(element("span", "you", "(you)"));
      return item;
    }),
  );
  for (const name of typists.keys()) if (![...present.values()].includes(name)) stopTyping(name);
}

function atBottom() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function toBottom() {
  $("log").scrollTop = $("log").scrollHeight;
  $("jump").hidden = true;
}

function messageElement({ name, text, at }, { mine, first, fresh }) {
  const item = element("article", `message${mine ? " mine" : ""}${first ? " first" : ""}${fresh ? " fresh" : ""}`);
  const byline = element("header", first ? "byline" : "byline unseen"); // read out, but seen once
  const when = new Date(at);
  const time = element("time", "", when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = when.toISOString();
  time.title = when.toLocaleString();
  byline.append(element("bdi", "who", mine ? "You" : name), time);
  if (first) item.append(dress(element("span"), name));
  item.append(byline, element("p", "bubble", text));
  return item;
}

function showMessage(message, { fresh }) {
  const ours = waiting.findIndex(({ id }) => id === message.id);
  if (ours >= 0) waiting.splice(ours, 1);
  if (shown.has(message.id)) return ours >= 0 && showWaiting();
  const follow = atBottom();
  const mine = message.user === me.user;
  const first = last?.user !== message.user || Date.parse(message.at) - Date.parse(last.at) > SAME_BREATH;
  const item = messageElement(message, { mine, first, fresh: fresh && ours < 0 });
  item.dataset.id = message.id;
  shown.add(message.id);
  last = message;
  $("messages").append(item);
  while ($("messages").childElementCount > MAX_SHOWN) {
    shown.delete($("messages").firstElementChild.dataset.id);
    $("messages").firstElementChild.remove();
  }
  stopTyping(message.name);
  if (ours >= 0) showWaiting();
  if (follow) toBottom();
  else $("jump").hidden = false;
  if (fresh && document.hidden) showTitle(++unread);
}

/** The last messages, or all that we missed, and what was said while they were on their way. */
function showHistory(history, early, recovered) {
  const log = $("log");
  const follow = atBottom();
  log.setAttribute("aria-busy", "true"); // not fifty announcements
  if (!recovered && shown.size && history.length === HISTORY && !history.some(({ id }) => shown.has(id))) {
    $("messages").append(element("p", "gap", "Some messages are missing here"));
    last = null;
  }
  for (const message of [...history, ...early]) showMessage(message, { fresh: false });
  if (follow) toBottom();
  log.removeAttribute("aria-busy");
}

/** Our own messages that the server has not confirmed stand below all others. */
function showWaiting() {
  const note = link.connected ? "Sending" : "Waiting for the connection";
  const ours = waiting.filter((message) => message.room === room);
  $("pending").replaceChildren(
    ...ours.map((message, i) => {
      const first = i === 0 && last?.user !== me.user;
      const item = messageElement({ ...message, name: me.shown || me.name }, { mine: true, first });
      item.classList.add("waiting");
      item.append(element("p", "state", note));
      return item;
    }),
  );
}

function clearLog() {
  shown.clear();
  last = null;
  $("messages").replaceChildren();
  present.clear();
  $("people").replaceChildren();
  $("count").textContent = "";
  $("jump").hidden = true;
  forgetTyping();
  notify("");
}

const typists = new Map(); // name -> timer

function showTyping(name) {
  clearTimeout(typists.get(name));
  typists.set(name, setTimeout(() => stopTyping(name), TYPING_LASTS));
  showTypists();
}

function stopTyping(name) {
  clearTimeout(typists.get(name));
  if (typists.delete(name)) showTypists();
}

function forgetTyping() {
  for (const name of typists.keys()) stopTyping(name);
}

function showTypists() {
  const names = [...typists.keys()].map((name) => element("bdi", "", name));
  $("typing").classList.toggle("on", names.length > 0);
  $("typists").replaceChildren(
    ...(names.length === 0 ? []
      : names.length === 1 ? [names[0], " is typing"]
      : names.length === 2 ? [names[0], " and ", names[1], " are typing"]
      : ["Several people are typing"]),
  );
}

function showTitle(count) {
  document.title = room ? `${count ? `(${count}) ` : ""}#${room}` : "Chat";
}

function showRooms() {
  const known = [...new Set([...ROOMS, ...recall("chat.rooms", []), room])];
  $("rooms").replaceChildren(
    ...known.map((name) => {
      const anchor = element("a");
      anchor.href = `#${encodeURIComponent(name)}`;
      if (name === room) anchor.setAttribute("aria-current", "page");
      const sign = element("span", "dim", "#");
      sign.setAttribute("aria-hidden", "true");
      anchor.append(sign, element("bdi", "", name));
      const item = element("li");
      item.append(anchor);
      return item;
    }),
  );
}

let noticeTimer = 0;

function notify(text) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  if (text) noticeTimer = setTimeout(() => notify(""), 8_000);
}

// ---------------------------------------------------------------- the user

const fine = matchMedia("(pointer: fine)"); // a keyboard that does not cover half of the screen

function roomInAddress() {
  try {
    return roomName(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return "";
  }
}

function showEntrance() {
  link.leave();
  room = "";
  showTitle(0);
  $("chat").hidden = true;
  $("entrance").hidden = false;
  $("name").value = me.name;
  $("room").value = roomInAddress() || ROOMS[0];
  $("name").focus();
  $("name").select();
}

function enter(name) {
  room = name;
  position = null;
  me.shown = "";
  if (!ROOMS.includes(room)) {
    const others = recall("chat.rooms", []).filter((other) => other !== room && !ROOMS.includes(other));
    remember("chat.rooms", [...others, room].slice(-5));
  }
  if (roomInAddress() !== room) history.pushState(null, "", `#${encodeURIComponent(room)}`);
  $("entrance").hidden = true;
  $("chat").hidden = false;
  $("room-name").textContent = room;
  clearLog();
  showMe();
  showRooms();
  showTitle((unread = 0));
  openSide(false);
  link.to(`rooms/${encodeURIComponent(room)}/ws`);
  showWaiting();
  (fine.matches ? $("text") : $("title")).focus();
}

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = whole($("name").value.trim());
  const wanted = roomName($("room").value);
  $("name").setCustomValidity(/[^\s\p{C}]/u.test(name) ? "" : "Please enter a name");
  $("room").setCustomValidity(wanted ? "" : "Please enter letters or digits");
  if (!$("join").reportValidity()) return;
  me.name = name;
  me.key = uuid(); // somebody else, to the others
  remember("chat.key", me.key, sessionStorage);
  remember("chat.name", name);
  enter(wanted);
});
for (const id of ["name", "room"]) $(id).addEventListener("input", () => $(id).setCustomValidity(""));

$("go").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = roomName($("go-room").value);
  $("go-room").value = "";
  if (wanted && wanted !== room) enter(wanted);
});

addEventListener("hashchange", () => {
  const wanted = roomInAddress();
  if (room && wanted && wanted !== room) enter(wanted);
});

const text = $("text");
let typedAt = 0;

function fit() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = { id: uuid(), room, text: whole(text.value.trim()), at: new Date().toISOString() };
  if (!/[^\s\p{C}]/u.test(message.text)) return;
  if (waiting.length >= MAX_WAITING) return notify("Too many messages are waiting for the connection.");
  waiting.push(message);
  text.value = "";
  typedAt = 0;
  fit();
  showWaiting();
  toBottom();
  if (link.connected) sendWaiting(message);
  text.focus();
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

text.addEventListener("input", () => {
  fit();
  if (!text.value.trim() || !link.connected || Date.now() - typedAt < TYPING_EVERY) return;
  typedAt = Date.now();
  link.send({ type: "typing" });
});

$("jump").addEventListener("click", () => {
  toBottom();
  text.focus();
});
$("log").addEventListener("scroll", () => {
  if (atBottom()) $("jump").hidden = true;
}, { passive: true });
// The log shrinks when the keyboard of a phone comes up, or the banner: the last message stays in view.
let wasAtBottom = true;
$("log").addEventListener("scroll", () => (wasAtBottom = atBottom()), { passive: true });
new ResizeObserver(() => wasAtBottom && toBottom()).observe($("log"));

$("retry").addEventListener("click", () => text.focus());
$("rename").addEventListener("click", showEntrance);

$("share").hidden = !navigator.clipboard; // it needs https or localhost
$("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {
    return notify(`Copying is not allowed here. The link is ${location.href}`);
  }
  $("share-label").textContent = $("aside").textContent = "Link copied";
  $("share").classList.add("done");
  setTimeout(() => {
    $("share-label").textContent = "Copy link";
    $("aside").textContent = "";
    $("share").classList.remove("done");
  }, 2_500);
});

const narrow = matchMedia("(max-width: 720px)");

/** On a phone the side is a drawer: while it is open, it alone can be reached. */
function openSide(open) {
  const drawer = open && narrow.matches;
  const had = $("side").classList.contains("open");
  $("side").classList.toggle("open", drawer);
  $("veil").hidden = !drawer;
  $("main").inert = drawer;
  $("menu").setAttribute("aria-expanded", String(drawer));
  if (drawer) $("shut").focus();
  else if (had) $("menu").focus();
}

$("menu").addEventListener("click", () => openSide(true));
$("shut").addEventListener("click", () => openSide(false));
$("veil").addEventListener("click", () => openSide(false));
$("rooms").addEventListener("click", () => openSide(false));
addEventListener("keydown", (event) => event.key === "Escape" && openSide(false));
narrow.addEventListener("change", () => openSide(false));
document.addEventListener("visibilitychange", () => !document.hidden && showTitle((unread = 0)));

addEventListener("beforeunload", (event) => {
  if (waiting.length) event.preventDefault(); // they would be lost
});

if (me.name && roomInAddress()) enter(roomInAddress());
else showEntrance();
