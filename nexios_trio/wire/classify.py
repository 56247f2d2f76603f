"""Which protocol a TCP stream speaks, from its first bytes."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

__all__ = ["PEEK_BYTES", "Kind", "classify"]

PEEK_BYTES: Final = 32 << 10
"""More than this is never needed: a head this long that names no upgrade is somebody else's to refuse."""

_METHOD: Final = b"GET "
_REQUEST_LINE: Final = re.compile(rb"GET [^ \r\n]*+ HTTP/1\.[1-9]\r\n")
_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*?\bwebsocket\b[^\r\n]*+\r\n")  # in lower case


class Kind(Enum):
    """What a stream is."""

    WEBSOCKET = "websocket"
    """An HTTP/1.1 GET that asks for an upgrade to WebSocket; `RequestReader` says whether rightly."""
    OTHER = "other"
    """Anything else: HTTP without an upgrade, HTTP/1.0, the preface of HTTP/2, a TLS ClientHello, noise."""
    UNDECIDED = "undecided"
    """Too little has come."""


def classify(beginning: bytes) -> Kind:
    """Say what a stream is that begins with these bytes; more of it never changes an answer that was given.

    Most foreign protocols show in the first byte or the first line. A request that may be an upgrade is
    undecided until its line of that name has come, or its end. A stream that ends while undecided is
    `Kind.OTHER`.
    """
    if not beginning.startswith(_METHOD[: len(beginning)]):
        return Kind.OTHER
    beginning = beginning[:PEEK_BYTES]
    if b"\r\n" in beginning and not _REQUEST_LINE.match(beginning):
        return Kind.OTHER
    end = beginning.find(b"\r\n\r\n")
    head = (beginning[: end + 4] if end >= 0 else beginning).lower()
    line_feed = _LINE_FEED.search(head) if head.count(b"\n") != head.count(b"\r\n") else None
    if _UPGRADE.search(head, 0, line_feed.start() if line_feed else len(head)):
        return Kind.WEBSOCKET
    if line_feed or end >= 0 or len(beginning) == PEEK_BYTES:
        return Kind.OTHER
    return Kind.UNDECIDED
