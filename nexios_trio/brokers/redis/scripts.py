"""The Lua scripts that run inside Redis, and the names of its keys."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from attrs import Factory, field, frozen

from nexios_trio.brokers.redis.connection import Command

__all__ = ["CHARGE", "HISTORY", "HOLD", "MEMBERS", "PRESENCE", "PUBLISH", "SETUP", "Keys", "Script"]


@frozen
class Script:
    """A script and its digest. Each connection loads it first, so EVALSHA finds it; one that was flushed
    meanwhile answers NOSCRIPT, and is loaded again."""

    name: str
    source: str = field(repr=False)
    sha: str = field(
        init=False,
        default=Factory(
            lambda self: hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest(),
            takes_self=True,
        ),
    )
    """What EVALSHA wants."""

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``lua/<name>.lua`` of this package."""
        return cls(name, files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8"))


PUBLISH = Script.load("publish")
HISTORY = Script.load("history")
PRESENCE = Script.load("presence")
MEMBERS = Script.load("members")
CHARGE = Script.load("charge")
HOLD = Script.load("hold")

SETUP: tuple[Command, ...] = tuple(
    ("SCRIPT", "LOAD", script.source) for script in (PUBLISH, HISTORY, PRESENCE, MEMBERS, CHARGE, HOLD)
)


@frozen
class Keys:
    """Names of keys and channels: the prefix, then the group in braces, so that on servers which hash keys
    those of a group stay together."""

    prefix: str

    @classmethod
    def of(cls, prefix: str, database: int) -> Keys:
        """Of a database: Redis' channels are common to all of them, so any but 0 is named in the prefix."""
        return cls(f"{prefix}db{database}:" if database else prefix)

    def channel(self, group: str) -> str:
        """Where messages of a group are published."""
        return f"{self.prefix}{{{group}}}"

    def once(self, group: str, name: str) -> str:
        """Where it is noted that a message id was used. Escaped, or a group and an id could be chosen so that
        the key is another group's."""
        escaped = name.replace("%", "%25").replace("}", "%7D")
        return f"{self.channel(group)}:i:{escaped}"

    def bucket(self, name: str) -> str:
        """What has been taken by a rate limit that nodes share."""
        return f"{self.prefix}bucket:{name}"

    def places(self, name: str) -> str:
        """Who holds the places that nodes share."""
        return f"{self.prefix}places:{name}"

    def group(self, channel: str) -> str:
        """The other way round."""
        return channel[len(self.prefix) + 1 : -1]

    def pattern(self, pattern: str) -> str:
        """A pattern of Redis that finds at least what ``fnmatch`` finds: ``?`` and ``[…]`` differ (bytes,
        escapes), so they become ``*`` and the subscriber looks again."""
        loose = ""
        at = 0
        while at < len(pattern):
            sign = pattern[at]
            if sign == "[" and (end := pattern.find("]", at + 2)) > 0:
                at = end
                sign = "*"
            loose += "*" if sign in "*?" else escape(sign)
            at += 1
        return f"{escape(self.prefix)}{{{loose}}}"


def escape(text: str) -> str:
    """``text`` as a pattern of Redis that means just that."""
    return "".join(f"\\{sign}" if sign in "*?[]\\^" else sign for sign in text)
