"""Lines of a file descriptor for Trio, and text for a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import trio

__all__ = ["LongLineError", "indented", "lines", "one_line", "printable"]

_CHUNK: Final = 1 << 16
# What moves the cursor, changes the title or answers in the user's name: a server must not do that (C0 but
# for tab and newline, DEL, C1); and halves of surrogate pairs, which no encoding takes.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class LongLineError(ValueError):
    """A line has more bytes than were allowed."""


async def lines(fd: int, longest: int = 16 << 20) -> AsyncIterator[bytes]:
    """The lines of ``fd`` without their ends (LF or CRLF); the last one need not have one.

    Raises `LongLineError` for one of more than about ``longest`` bytes.

    Waits in Trio, so that it can be cancelled at any time: a thread in ``readline`` would hold up the end of
    the process. What is no terminal, pipe or socket (a file) is read at once.
    """
    rest: list[bytes] = []
    size = 0
    waits = True
    while True:
        if waits:
            try:
                await trio.lowlevel.wait_readable(fd)
            except OSError:  # EPERM: epoll takes no files; they are always readable
                waits = False
        else:
            await trio.lowlevel.checkpoint()
        data = os.read(fd, _CHUNK)
        if not data:
            break
        first, *more = data.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > longest:
            raise LongLineError(f"a line has more than {longest:,} bytes")
        for following in more:
            yield b"".join(rest).removesuffix(b"\r")
            rest = [following]
            size = len(following)
    if last := b"".join(rest):
        yield last.removesuffix(b"\r")


def printable(text: str) -> str:
    """``text`` with its control characters written out, for a terminal."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """The same where a line is ours: what a server says in it begins no other."""
    return printable(text).replace("\n", "\\n")


def indented(text: str) -> str:
    """A JSON object or array over several lines, its numbers and strings as they came; else ``text``."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return msgspec.json.format(text, indent=2)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return text
