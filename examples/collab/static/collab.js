// The page of the shared text: a Yjs document, a textarea that follows it, and the cursors of others.

import { $, Link, element, recall, remember, uuid } from "../common/link.js";
import * as Y from "./vendor/yjs.js";

const [STATE, UPDATE] = [0, 1]; // first bytes of binary messages
const CURSOR_EVERY = 100, FLAG_LASTS = 3_000; // ms

const text = $("text");
const key = recall("collab.key", uuid(), sessionStorage); // who we are, also after a reload
remember("collab.key", key, sessionStorage);

const link = new Link({ opened, hear, lost, kept: "What you write is kept until then." });
let doc, shared, undo;
let name = "";
let user = "";
let waiting = false; // whether edits of ours may not have reached the server
let refused = false; // whether it does not take them: there is no room
const people = new Map(); // user -> {name, anchor, head}

// ---------------------------------------------------------------- the connection

function open() {
  name = documentName();
  document.title = name;
  $("title").textContent = name;
  const plain = element("a", "", "As plain text");
  plain.href = `documents/${encodeURIComponent(name)}.txt`;
  $("plain").replaceChildren(plain);
  link.leave();
  makeDocument();
  people.clear();
  showText();
  showPeople();
  link.to(`documents/${encodeURIComponent(name)}/ws`);
}

function opened() {
  link.send({ type: "hello", name: $("name").value, key });
}

function lost(code) {
  refused = code === 1008;
  for (const person of people.values()) person.anchor = person.head = null;
  showCursors();
  showSaved();
}

function hear(message) {
  if (!(message instanceof ArrayBuffer)) return heard[message.type]?.(message);
  const [kind, bytes] = [new Uint8Array(message)[0], new Uint8Array(message, 1)];
  if (kind === UPDATE) {
    Y.applyUpdate(doc, bytes, "server");
  } else {
    // What the server lacks, and what we have, so that it tells us what we lack.
    sendBytes(UPDATE, Y.encodeStateAsUpdate(doc, bytes));
    sendBytes(STATE, Y.encodeStateVector(doc));
    waiting = refused = false;
    link.ready();
    showSaved();
    sendCursor();
  }
}

const heard = {
  welcome({ user: ours, people: present }) {
    user = ours;
    people.clear();
    for (const { user, name } of present) people.set(user, { name, anchor: null, head: null });
    showPeople();
  },
  "presence.join"({ user: who, metadata }) {
    if (who !== user && !people.has(who)) tell(`${metadata.name} has come`);
    people.set(who, { anchor: null, head: null, ...people.get(who), name: metadata.name });
    showPeople();
    sendCursor(); // who comes does not know where we are
  },
  "presence.leave"({ user: who, metadata }) {
    people.delete(who);
    tell(`${metadata.name} has gone`);
    showPeople();
    showCursors();
  },
  cursor({ user: who, anchor, head }) {
    const person = people.get(who);
    if (!person) return;
    Object.assign(person, { anchor, head, moved: Date.now() });
    showCursors();
    setTimeout(showCursors, FLAG_LASTS + 50); // a name covers what stands above it, so it goes
  },
  ping: () => link.send({ type: "pong" }),
};

function sendBytes(kind, bytes) {
  const message = new Uint8Array(bytes.length + 1);
  message[0] = kind;
  message.set(bytes, 1);
  return link.send(message);
}

function showSaved() {
  $("saved").textContent = refused ? "Your last changes do not fit. Copy them, then reload the page."
    : !link.connected ? (waiting ? "Your changes wait for the connection" : "")
    : "Everything is with the server";
}

// ---------------------------------------------------------------- the document and the textarea

function makeDocument() {
  doc?.destroy();
  doc = new Y.Doc();
  shared = doc.getText("text");
  undo = new Y.UndoManager(shared, { trackedOrigins: new Set(["me"]) });
  waiting = refused = false;
  doc.on("update", (update, origin) => {
    if (origin === "server") return;
    if (!link.connected || !sendBytes(UPDATE, update)) waiting = true;
    showSaved();
  });
  shared.observe((_event, { origin }) => {
    if (origin === "me") showCursors();
    else showText();
  });
}

/** Put the document into the textarea. Our own cursor stays at its characters. */
function showText() {
  const value = shared.toString();
  if (text.value !== value) {
    const [start, end] = own.map((place) => index(place));
    const direction = text.selectionDirection;
    text.value = value;
    if (document.activeElement === text) text.setSelectionRange(start ?? value.length, end ?? value.length, direction);
  }
  showCursors();
}

/** What the user has changed in the textarea: one piece was replaced by another. */
function takeInput() {
  const [before, after] = [shared.toString(), text.value];
  if (before === after) return;
  let start = 0;
  // The piece ends where the cursor is: without that, a letter typed into a row of the same ones would go astray.
  const tail = after.length - text.selectionEnd;
  let end = 0;
  while (end < tail && end < before.length && before.at(-1 - end) === after.at(-1 - end)) end++;
  const most = Math.min(before.length, after.length) - end;
  while (start < most && before[start] === after[start]) start++;
  while (end < Math.min(before.length, after.length) - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  if (low(before, start) || low(after, start)) start--; // never half an emoji
  if (low(before, before.length - end) || low(after, after.length - end)) end--;
  doc.transact(() => {
    if (before.length - end > start) shared.delete(start, before.length - end - start);
    if (after.length - end > start) shared.insert(start, after.slice(start, after.length - end).toWellFormed?.() ?? after.slice(start, after.length - end));
  }, "me");
}

/** Whether here is the second half of a pair of surrogates. */
function low(string, at) {
  const code = string.charCodeAt(at);
  return code >= 0xdc00 && code < 0xe000;
}

text.addEventListener("input", (event) => {
  if (!event.isComposing) takeInput();
  moved();
});
text.addEventListener("compositionend", () => {
  takeInput();
  moved();
});
text.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const pressed = event.key.toLowerCase();
  if (pressed === "z" && !event.shiftKey) undo.undo();
  else if (pressed === "y" || pressed === "z") undo.redo();
  else return;
  event.preventDefault(); // the browser's own undo knows nothing of others
});

// ---------------------------------------------------------------- cursors

let own = [null, null]; // our selection, as places that move with the text
let cursorTimer = 0;

/** A place in the text as it travels: the id of a character, or none for the end. */
function place(at) {
  const { item, assoc } = Y.createRelativePositionFromTypeIndex(shared, at);
  return { item: item && [item.client, item.clock], assoc };
}

/** Where that place is now; null if we do not have the character yet. */
function index(where) {
  if (!where) return null;
  const item = where.item && { client: where.item[0], clock: where.item[1] };
  const json = item ? { item, assoc: where.assoc } : { tname: "text", assoc: where.assoc };
  try {
    const found = Y.createAbsolutePositionFromRelativePosition(Y.createRelativePositionFromJSON(json), doc);
    return found?.type === shared ? found.index : null;
  } catch {
    return null;
  }
}

/** Our cursor may have moved: note where, and tell the others soon. */
function moved() {
  if (document.activeElement !== text || text.value !== shared.toString()) return;
  own = [place(text.selectionStart), place(text.selectionEnd)];
  cursorTimer ||= setTimeout(() => {
    cursorTimer = 0;
    sendCursor();
  }, CURSOR_EVERY);
  showPeople();
}

function sendCursor() {
  if (!link.connected || !own[0]) return;
  const [start, end] = own;
  const backward = text.selectionDirection === "backward";
  link.send({ type: "cursor", anchor: backward ? end : start, head: backward ? start : end });
}

document.addEventListener("selectionchange", moved);
for (const event of ["select", "keyup", "pointerup", "focus"]) text.addEventListener(event, moved);

function hueOf(who) {
  return `hue${Number.parseInt(who.slice(0, 2), 16) & 7}`;
}

/** Draw the others' cursors and selections below the text. */
function showCursors() {
  const value = text.value;
  const marks = []; // {at, to, who}: selections, and carets where at === to
  for (const [who, { anchor, head }] of people) {
    const [from, to] = [index(anchor), index(head)];
    if (who === user || to === null) continue;
    if (from !== null && from !== to) marks.push({ at: Math.min(from, to), to: Math.max(from, to), who });
    marks.push({ at: to, to, who, caret: true });
  }
  const cuts = [...new Set([0, value.length, ...marks.flatMap(({ at, to }) => [at, to])])].sort((a, b) => a - b);
  const parts = [];
  for (const [number, at] of cuts.entries()) {
    for (const { who } of marks.filter((mark) => mark.caret && mark.at === at)) parts.push(caret(who));
    const next = cuts[number + 1];
    if (next === undefined) break;
    const piece = value.slice(at, next);
    const selected = marks.find((mark) => !mark.caret && mark.at <= at && mark.to >= next);
    if (!selected) {
      parts.push(piece);
      continue;
    }
    const selection = element("span", `selection ${hueOf(selected.who)}`);
    selection.append(element("span", "", piece));
    parts.push(selection);
  }
  $("mirror").replaceChildren(...parts, "\u200b"); // so that a last empty line has its height
  for (const made of $("mirror").querySelectorAll(".caret"))
    made.classList.toggle("right", made.offsetLeft > $("mirror").clientWidth * 0.7);
  showPeople();
}

function caret(who) {
  const made = element("span", `caret ${hueOf(who)}`);
  const { name, moved } = people.get(who);
  made.append(element("span", Date.now() - moved < FLAG_LASTS ? "flag" : "flag past", name));
  return made;
}

function showPeople() {
  const lines = (at) => text.value.slice(0, at).split("\n").length;
  const sorted = [...people].sort(([, one], [, other]) => one.name.localeCompare(other.name));
  $("people").replaceChildren(
    ...sorted.map(([who, person]) => {
      const item = element("li", hueOf(who));
      const at = who === user ? index(own[1]) : index(person.head);
      item.append(element("bdi", "", person.name));
      if (who === user) item.append(element("span", "you", " (you)"));
      if (at !== null) item.append(element("span", "where", `line ${lines(at)}`));
      return item;
    }),
  );
}

function tell(what) {
  $("news").textContent = what;
}

// ---------------------------------------------------------------- the user

function documentName() {
  let wanted = "";
  try {
    wanted = decodeURIComponent(location.hash.slice(1));
  } catch {
    // a broken address
  }
  const tidy = wanted.trim().toLowerCase().replace(/\s+/g, "-").replace(/[^\p{L}\p{N}_-]/gu, "");
  return [...tidy].slice(0, 32).join("") || "notes";
}

$("me").addEventListener("submit", (event) => {
  event.preventDefault();
  text.focus();
});
$("name").addEventListener("change", () => {
  const wanted = $("name").value.trim();
  $("name").value = /[^\s\p{C}]/u.test(wanted) ? wanted : recall("collab.name", "Guest");
  remember("collab.name", $("name").value);
  link.open(); // we come back by that name
});
$("go").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = $("other").value;
  $("other").value = "";
});
addEventListener("hashchange", () => {
  if (documentName() === name) return;
  if (waiting && !confirm("Your changes have not reached the server. Leave them behind?")) location.hash = name;
  else open();
});
addEventListener("beforeunload", (event) => {
  if (waiting) event.preventDefault(); // what was written offline would be lost
});

$("name").value = recall("collab.name", `Guest ${Math.floor(Math.random() * 900 + 100)}`);
open();
text.focus();
