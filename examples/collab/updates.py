"""What a Yjs update may hold here, checked before the CRDT library sees it.

A CRDT library trusts its peers. Well-formed but absurd updates can leave parts waiting for what never
comes, and with pycrdt 0.14 some damaged ones end in a Rust panic, or in an endless loop. So this module
reads the format (Yjs 13, "update v1") and lets pass only what an editor of plain text sends: insertions into
one text whose neighbours are known, and deletions of what is there.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import define, frozen

from nexios_trio import PeerError

MAX_CLIENT: Final = (1 << 53) - 1  # Yjs gives each page load a random number
MAX_CLOCK: Final = (1 << 31) - 1
MAX_SPAN: Final = 1_000_000  # characters that one update may add or mark as deleted

_ORIGIN, _RIGHT_ORIGIN, _PARENT_SUB, _CONTENT = 0x80, 0x40, 0x20, 0x1F
_GC, _DELETED, _STRING = 0, 1, 4


class UpdateError(PeerError):
    """Bytes that are no update for our documents."""

    close_code = 1007


@frozen
class _Id:
    client: int
    clock: int


@frozen
class _Struct:
    """A run of characters, or what is left of one."""

    id: _Id
    length: int
    needs: tuple[_Id, ...]
    text: int
    """Characters that it adds."""


@define
class _Reader:
    data: bytes
    at: int = 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise UpdateError("the update is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def number(self, most: int) -> int:
        """A varint, 7 bits a byte, low ones first."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 49:
                raise UpdateError("a number is too large")
        if value > most:
            raise UpdateError("a number is too large")
        return value

    def count(self) -> int:
        """Of things that take at least one byte each."""
        return self.number(len(self.data) - self.at)

    def id(self) -> _Id:
        return _Id(self.number(MAX_CLIENT), self.number(MAX_CLOCK))

    def string(self) -> str:
        size = self.count()
        raw = self.data[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise UpdateError("a text is no UTF-8") from None

    def end(self) -> None:
        if self.at != len(self.data):
            raise UpdateError("bytes follow the update")


def read_state_vector(data: bytes) -> dict[int, int]:
    """How much of each client somebody has. Raises `UpdateError`."""
    reader = _Reader(data)
    vector = {}
    for _ in range(reader.count()):
        have = reader.id()
        vector[have.client] = have.clock
    reader.end()
    return vector


def _structs(reader: _Reader, name: str) -> Iterator[_Struct]:
    for _ in range(reader.count()):
        count = reader.count()
        start = reader.id()
        clock = start.clock
        if not count:
            raise UpdateError("a client with nothing")
        for _ in range(count):
            struct = _struct(reader, _Id(start.client, clock), name)
            clock += struct.length
            if clock > MAX_CLOCK:
                raise UpdateError("a number is too large")
            yield struct


def _struct(reader: _Reader, own: _Id, name: str) -> _Struct:
    info = reader.byte()
    content = info & _CONTENT
    needs: list[_Id] = []
    if content == _GC:
        if info:
            raise UpdateError("an unknown kind of content")
    else:
        if info & _ORIGIN:
            needs.append(reader.id())
        if info & _RIGHT_ORIGIN:
            needs.append(reader.id())
        if not needs:
            if info & _PARENT_SUB or reader.number(1) != 1 or reader.string() != name:
                raise UpdateError("only one text is edited here")
        elif info & _PARENT_SUB:
            raise UpdateError("only one text is edited here")
    if content == _STRING:
        text = reader.string()
        length = len(text.encode("utf-16-le")) // 2
        added = length
    elif content in (_GC, _DELETED):
        length, added = reader.number(MAX_SPAN), 0
    else:
        raise UpdateError("only plain text is edited here")
    if not length:
        raise UpdateError("an insertion of nothing")
    return _Struct(own, length, tuple(needs), added)


@frozen
class Checked:
    """An update that is good for a document."""

    known: dict[int, int]
    """How much of each client is there once it was applied."""
    added: int
    """Characters that are new."""
    deletes: bool


def check(data: bytes, known: Mapping[int, int], name: str) -> Checked:
    """Whether this update fits a document that has so much of each client and one text of this name.

    Nothing is changed. Raises `UpdateError`.
    """
    reader = _Reader(data)
    waiting: defaultdict[int, deque[_Struct]] = defaultdict(deque)
    span = 0
    for struct in _structs(reader, name):
        span += struct.length
        if span > MAX_SPAN:
            raise UpdateError("the update is too large")
        waiting[struct.id.client].append(struct)
    after = dict(known)
    added = _integrate(waiting, after)
    deletes = reader.count()  # clients of which something is deleted
    for _ in range(deletes):
        client = reader.number(MAX_CLIENT)
        for _ in range(reader.count()):
            clock, length = reader.number(MAX_CLOCK), reader.number(MAX_CLOCK)
            if not length or clock + length > after.get(client, 0):
                raise UpdateError("it deletes what nobody has")
    reader.end()
    return Checked(after, added, deletes > 0)


def _integrate(waiting: Mapping[int, deque[_Struct]], after: dict[int, int]) -> int:
    """Go through the structs in an order in which each finds what it needs, as the library does."""
    added = 0
    progress = True
    while progress:
        progress = False
        for client, structs in waiting.items():
            while structs:
                struct = structs[0]
                here = after.get(client, 0)
                if struct.id.clock > here or any(
                    need.clock >= after.get(need.client, 0) for need in struct.needs
                ):
                    break
                structs.popleft()
                progress = True
                end = struct.id.clock + struct.length
                if end > here:
                    after[client] = end
                    added += min(struct.text, end - here)
    if any(waiting.values()):
        raise UpdateError("it builds on what nobody has")
    return added
