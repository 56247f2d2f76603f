"""What is asked of Redis: the scripts' arguments and what their answers mean. No tasks, no state."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field, frozen

from nexios_trio.brokers.base import Draft, Message
from nexios_trio.brokers.redis.connection import Command
from nexios_trio.brokers.redis.parcels import MISFITS, Event, decode_event, decode_message, encode_tail
from nexios_trio.brokers.redis.scripts import HISTORY, MEMBERS, PUBLISH, Keys
from nexios_trio.brokers.redis.tracks import Page, Request
from nexios_trio.config import HistoryLimits

__all__ = ["Publishing", "Store", "milliseconds"]

PAGE: Final = 500
"""Messages that one answer holds, at most."""
PAGE_BYTES: Final = 128 << 10
"""The message that reaches this is the last one of an answer: a slow link may not carry more in its time, and
a node that catches up holds as much of each group."""


def milliseconds(seconds: float) -> int:
    """At least one."""
    return max(1, round(seconds * 1000))


@frozen
class Publishing:
    """A publish on its way: what is asked, and what the message will be known by."""

    command: Command
    draft: Draft
    nonce: str
    stamp: int = 0
    """POSIX time in milliseconds, if Redis does not give it."""


@define
class Store:
    """``clock`` gives POSIX time in seconds; None: Redis' own clock, which all nodes share."""

    keys: Keys
    limits: HistoryLimits
    once: float
    """Seconds for which a message id is remembered."""
    clock: Callable[[], float] | None = None
    node: str = field(factory=lambda: secrets.token_urlsafe(6))
    """Random: this publisher, in this process."""
    _number: int = 0

    def now(self) -> str:
        """For a script: empty, or the time in milliseconds."""
        return "" if self.clock is None else str(round(self.clock() * 1000))

    def publishing(self, group: str, draft: Draft, *, keep: bool) -> Publishing:
        """The command for `published`; each one has the next number, and has to be sent in this order."""
        self._number += 1
        channel = self.keys.channel(group)
        nonce = f"{self._number}-{self.node}"
        if not keep and not draft.once:
            # Nothing is to be remembered, so it needs no script. Sent twice after a lost connection, the
            # subscribers know it by its nonce.
            stamp = round((time.time() if self.clock is None else self.clock()) * 1000)
            header = b'[0,"","%s","",%d,%s]\n' % (nonce.encode(), stamp, encode_tail(draft))
            data = draft.data if isinstance(draft.data, bytes) else draft.data.encode()
            return Publishing(("PUBLISH", channel, header + data), draft, nonce, stamp)
        once = milliseconds(self.once) if draft.once else 0
        command: Command = (
            "EVALSHA",
            PUBLISH.sha,
            3,
            f"{channel}:s",
            f"{channel}:m",
            self.keys.once(group, draft.id) if once else f"{channel}:m",
            channel,
            draft.data,
            encode_tail(draft),
            nonce,  # the epoch, if there is none: as random as the node, and given once
            self.node,
            self._number,
            once,
            1 if keep else 0,
            self.limits.messages,
            self.limits.bytes,
            milliseconds(self.limits.age),
            self.now(),
        )
        return Publishing(command, draft, nonce)

    def published(self, group: str, publishing: Publishing, reply: Any) -> tuple[Message, bool]:
        """The message, and whether it is new."""
        if publishing.stamp:
            reply = "", 0, publishing.nonce, "", publishing.stamp, 1
        epoch, offset, nonce, _, sent_at, fresh = reply
        draft = publishing.draft
        return (
            Message(
                group,
                _text(epoch) if offset else "",
                int(offset) or None,
                draft.kind,
                draft.data,
                int(sent_at) / 1000,
                draft.sender,
                draft.id,
                draft.exclude,
                _text(nonce),
            ),
            bool(fresh),
        )

    def reading(self, group: str, *, since: int | None = None, last: int | None = None) -> Command:
        """The command for `page`: all after an offset, a page of it, or the ``last`` ones (None: all)."""
        channel = self.keys.channel(group)
        what: tuple[str, int, int, int] = ("last", 0, -1 if last is None else last, 0)
        if since is not None:
            what = ("since", since, PAGE, PAGE_BYTES)
        return (
            "EVALSHA",
            HISTORY.sha,
            3,
            f"{channel}:s",
            f"{channel}:m",
            f"{channel}:pm",
            secrets.token_urlsafe(9),
            milliseconds(self.limits.age),
            self.now(),
            *what,
        )

    def events(self, group: str, version: int) -> Command:
        """The presence events after this one."""
        return ("XRANGE", f"{self.keys.channel(group)}:pe", f"({version}-0", "+")

    def asked(self, request: Request) -> list[Command]:
        """The commands for one request of the feed; two answers make a `page`."""
        if request.since is None:
            return [self.reading(request.group, last=0)]
        version = request.version if request.event_epoch else 0
        return [self.reading(request.group, since=request.since), self.events(request.group, version)]

    def page(self, group: str, reply: Any, events: Any = ()) -> Page:
        """The answer to `reading`, and to `events`."""
        epoch, offset, nonce, now, payloads, event_epoch, version, full = reply
        oldest = int(now) / 1000 - self.limits.age
        messages: list[tuple[Message, str]] = []
        decoded: list[Event] = []
        # What others have put there is left out; it shows as a hole.
        for payload in payloads:
            with contextlib.suppress(*MISFITS):
                messages.append(decode_message(group, payload))
        for entry in events:
            with contextlib.suppress(*MISFITS):
                decoded.append(decode_event(group, entry[1][1]))
        kept = [message for message in messages if message[0].sent_at > oldest]
        return Page(
            _text(epoch),
            int(offset),
            _text(nonce),
            kept,
            full == 1 and bool(messages) and messages[-1][0].offset != offset,
            _text(event_epoch),
            int(version),
            decoded,
        )

    def forgetting(self, stream: str | bytes) -> Command:
        """Empties it. It stays, with its time to live: what is written next would not set a new one."""
        return ("XTRIM", stream, "MAXLEN", 0)

    def reading_members(self, group: str) -> Command:
        """Who is present; see ``members.lua``."""
        channel = self.keys.channel(group)
        return ("EVALSHA", MEMBERS.sha, 2, f"{channel}:ph", f"{channel}:pz", self.now())


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
