"""Just enough WebM: a recording taken apart into what a player needs first and pieces that it can begin with.

An EBML element is an id, a size and a body (RFC 8794 §4-6); a Segment has Info, Tracks and Clusters, a
Cluster has a Timestamp and SimpleBlocks (RFC 9559 §5.1). Media Source Extensions take the first as an
initialization segment and a Cluster that begins with a key frame as a media segment (W3C, WebM Byte Stream
Format §3-4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from attrs import frozen

EBML: Final = 0x1A45DFA3
SEGMENT: Final = 0x18538067
INFO: Final = 0x1549A966
TIMESTAMP_SCALE: Final = 0x2AD7B1
DURATION: Final = 0x4489
TRACKS: Final = 0x1654AE6B
CLUSTER: Final = 0x1F43B675
TIMESTAMP: Final = 0xE7
SIMPLE_BLOCK: Final = 0xA3
KEY_FRAME: Final = 0x80
MILLISECONDS: Final = 1_000_000  # nanoseconds


class FormatError(ValueError):
    """A file that this module cannot stream."""


@frozen
class Element:
    """One element: its id and its body."""

    id: int
    body: bytes

    def encode(self) -> bytes:
        head = self.id.to_bytes((self.id.bit_length() + 7) // 8, "big")
        return head + (len(self.body) | 1 << 56).to_bytes(8, "big") + self.body

    def children(self) -> Iterator[Element]:
        return elements(self.body)

    def number(self) -> int:
        return int.from_bytes(self.body, "big")


def elements(data: bytes) -> Iterator[Element]:
    """The elements that follow each other in ``data``. Raises `FormatError`."""
    at = 0
    while at < len(data):
        name, at = _variable(data, at, keep_marker=True)
        size, at = _variable(data, at, keep_marker=False)
        if at + size > len(data):
            raise FormatError(f"an element 0x{name:X} of {size} bytes, but only {len(data) - at} are left")
        yield Element(name, data[at : at + size])
        at += size


def _variable(data: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """A number whose first bits say how many bytes it has (RFC 8794 §4)."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8 or at + length > len(data):
        raise FormatError("the file is cut short or no WebM")
    value = int.from_bytes(data[at : at + length], "big")
    return value if keep_marker else value & ~(1 << 7 * length), at + length


@frozen
class Recording:
    """A recording that can be played round and round."""

    init: bytes
    """What a player needs first, of a stream without an end."""
    pieces: tuple[bytes, ...]
    """The blocks of the clusters; each piece begins with a key frame."""
    starts: tuple[int, ...]
    """When each piece begins, in ms."""
    duration: int
    """Of all, in ms."""

    @classmethod
    def read(cls, data: bytes) -> Recording:
        """Take a file apart. Raises `FormatError`."""
        top = {element.id: element for element in elements(data)}
        if not {EBML, SEGMENT} <= top.keys():
            raise FormatError("no WebM: it has no Segment")
        parts = [*top[SEGMENT].children()]
        clusters = [part for part in parts if part.id == CLUSTER]
        found = {part.id: part for part in parts}
        if not clusters or not {INFO, TRACKS} <= found.keys():
            raise FormatError("expected Info, Tracks and Clusters")
        info = {part.id: part for part in found[INFO].children()}
        if TIMESTAMP_SCALE in info and info[TIMESTAMP_SCALE].number() != MILLISECONDS:
            raise FormatError("expected timestamps in milliseconds")
        if DURATION not in info:
            raise FormatError("expected a Duration")
        form = "!f" if len(info[DURATION].body) == 4 else "!d"
        duration = round(struct.unpack(form, info[DURATION].body)[0])
        endless = b"".join(part.encode() for part in found[INFO].children() if part.id != DURATION)
        init = top[EBML].encode() + SEGMENT.to_bytes(4, "big") + b"\x01" + b"\xff" * 7  # of unknown size
        init += Element(INFO, endless).encode() + found[TRACKS].encode()
        taken = [_take(cluster) for cluster in clusters]
        return cls(init, tuple(blocks for _, blocks in taken), tuple(start for start, _ in taken), duration)

    @property
    def piece_length(self) -> float:
        """Seconds from one piece to the next, on the average."""
        return self.duration / len(self.pieces) / 1000

    def cluster(self, number: int) -> bytes:
        """The ``number``-th cluster of an endless stream, with its place in it."""
        round_, index = divmod(number, len(self.pieces))
        start = round_ * self.duration + self.starts[index]
        timestamp = Element(TIMESTAMP, start.to_bytes(8, "big")).encode()
        return Element(CLUSTER, timestamp + self.pieces[index]).encode()


def _take(cluster: Element) -> tuple[int, bytes]:
    """When a cluster begins, and its blocks."""
    start, blocks = 0, []
    for part in cluster.children():
        if part.id == TIMESTAMP:
            start = part.number()
        elif part.id == SIMPLE_BLOCK:
            blocks.append(part)
    # A SimpleBlock: track number, timestamp in the cluster (2 bytes), flags
    if not blocks or not blocks[0].body[3] & KEY_FRAME:
        raise FormatError(f"the cluster at {start} ms does not begin with a key frame")
    return start, b"".join(block.encode() for block in blocks)
