"""The app: a page, and one WebSocket per writer. A document is a group."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio
from attrs import define, field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from examples.collab.document import Document
from examples.collab.protocol import STATE, UPDATE, Cursor, CursorOf, Hello, Person, Welcome
from examples.collab.updates import UpdateError
from examples.common.pages import serve_page
from nexios_trio import (
    Group,
    Heartbeat,
    Limits,
    NexiosApp,
    Overflow,
    Rate,
    RateLimit,
    WebSocket,
    WebSocketException,
)

DOCUMENT: Final = re.compile(r"[\w-]{1,32}")
HELLO_WITHIN: Final = 10.0  # seconds
MAX_DOCUMENTS: Final = 200  # that are kept
MAX_WRITERS: Final = 50  # of one document
WRITING: Final = RateLimit(Rate(40, burst=80), bytes=Rate(512 << 10, burst=4 << 20))
PING: Final = '{"type":"ping"}'
PONG: Final = '{"type":"pong"}'


@define(eq=False)
class Shelf:
    """The documents by name. The one that nobody has open and that was used least recently goes first."""

    documents: OrderedDict[str, Document] = field(factory=OrderedDict)
    open: dict[str, int] = field(factory=dict)

    def take(self, name: str) -> Document:
        if name not in self.documents:
            unused = [other for other in self.documents if not self.open.get(other)]
            if len(self.documents) >= MAX_DOCUMENTS and not unused:
                raise WebSocketException(1013, "no place left, try again later")
            if len(self.documents) >= MAX_DOCUMENTS:
                del self.documents[unused[0]]
            self.documents[name] = Document()
        self.documents.move_to_end(name)
        self.open[name] = self.open.get(name, 0) + 1
        return self.documents[name]

    def put_back(self, name: str) -> None:
        self.open[name] -= 1
        if not self.open[name]:
            del self.open[name]


@asynccontextmanager
async def lifespan(app: NexiosApp) -> AsyncIterator[dict[str, Shelf]]:
    app.state.shelf = Shelf()
    yield {"shelf": app.state.shelf}


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=2 << 20, inbox_bytes=2 << 20, outbox_bytes=8 << 20),
    heartbeat=Heartbeat(interval=20, timeout=20, message=PING),
)
serve_page(app, Path(__file__).parent / "static")


@app.get("/documents/{name}.txt")
async def plain_text(request: Request) -> Response:
    document = app.state.shelf.documents.get(request.path_params["name"])
    return (
        PlainTextResponse("no such document", 404) if document is None else PlainTextResponse(document.text)
    )


@app.ws_route("/documents/{name}/ws", rate_limit=WRITING)
async def write(ws: WebSocket, name: str) -> None:
    if not DOCUMENT.fullmatch(name):
        await ws.reject(404, "a document has a name of 1 to 32 letters, digits, - and _")
        return
    await ws.accept()
    with trio.move_on_after(HELLO_WITHIN) as patience:
        hello = await ws.receive_json(type=Hello)
    if patience.cancelled_caught:
        raise WebSocketException(1008, "the first message is a hello")
    if not hello.name:
        raise WebSocketException(1007, "a name needs a visible character")
    user = hashlib.sha256(f"{name} {hello.key}".encode()).hexdigest()[:12]  # others see this, not the key
    shelf: Shelf = ws.state.shelf
    document = shelf.take(name)
    try:
        # A writer that does not read is closed with 1013, and comes back for what it lacks.
        writers = ws.join(f"text.{name}", presence={"name": hello.name}, user_id=user)
        if len(writers) >= MAX_WRITERS:
            raise WebSocketException(1013, "no place left, try again later")
        async with writers, ws.join(f"cursors.{name}", overflow=Overflow.CONFLATE("user")) as cursors:
            people = [Person(each.user, each.metadata["name"]) for each in await writers.presence.list()]
            await ws.send_json(Welcome(user, people))
            await ws.send_bytes(STATE + document.state)
            await talk(ws, document, writers, cursors, user)
    finally:
        shelf.put_back(name)


async def talk(ws: WebSocket, document: Document, writers: Group, cursors: Group, user: str) -> None:
    while (message := await ws.receive())["type"] != "websocket.disconnect":
        data, text = message["bytes"], message["text"]
        if text == PONG:
            continue
        if text is not None:
            cursor = read_cursor(text)
            said = CursorOf(user, cursor.anchor, cursor.head)
            await cursors.send(said, exclude_self=True, save_history=False)
        elif data[:1] == STATE:
            await ws.send_bytes(UPDATE + document.since(data[1:]))
        elif data[:1] == UPDATE:
            # Others may get updates in another order, which is what CRDTs are for.
            if document.apply(data[1:]):
                await writers.send(data, exclude_self=True, save_history=False)
        else:
            raise UpdateError("a binary message begins with 0 or 1")


def read_cursor(text: str) -> Cursor:
    try:
        return msgspec.json.decode(text, type=Cursor)
    except (msgspec.DecodeError, RecursionError):
        raise UpdateError("a text message is a cursor") from None
