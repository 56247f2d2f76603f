"""Settings of the Redis engine: from keywords, or from the query of its URL."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

from attrs import field, fields, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["OnOutage", "RedisSettings"]

OnOutage: TypeAlias = Literal["wait", "fail", "local"]
_OUTAGE: Final = ("wait", "fail", "local")


def _time(_instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongTypeError(f"{attribute.name} is a number of seconds, not {value!r}")
    if not (0 < value < math.inf):
        raise WrongValueError(f"{attribute.name} is more than 0 seconds and finite, not {value!r}")


def _outage(_instance: Any, attribute: Any, value: Any) -> None:
    if value not in _OUTAGE:
        raise WrongValueError(f'on_outage is "wait", "fail" or "local", not {value!r}')


def _prefix(_instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise WrongTypeError(f"prefix is a str such as 'nexios:', not {value!r}")
    if not value or "{" in value or "}" in value or not value.isprintable():
        raise WrongValueError(f"prefix is printable, not empty and without braces, not {value!r}")


@frozen
class RedisSettings:
    """All times in seconds. In a URL: ``redis://host/0?prefix=chat:&on_outage=local``."""

    prefix: str = field(default="nexios:", validator=_prefix)
    """Stands before all keys and channels: one Redis serves several applications."""
    on_outage: OnOutage = field(default="wait", validator=_outage)
    """What group calls do while Redis is away: ``"wait"`` for it, up to ``timeout``; ``"fail"`` with
    `BrokerUnavailable` at once; ``"local"``: a send reaches the members on this node, unrecorded, that is
    without a position."""
    timeout: float = field(default=5.0, validator=_time)
    """What one call may take, waiting for a connection included; then `BrokerUnavailable`."""
    lease: float = field(default=60.0, validator=_time)
    """A presence lasts for so long if its node does not renew it."""
    check: float = field(default=30.0, validator=_time)
    """How often the ends of all groups are compared, since a lost last message shows no hole."""
    once: float = field(default=300.0, validator=_time)
    """For how long a ``message_id=`` is remembered."""

    @classmethod
    def of(cls, query: dict[str, str], **given: Any) -> RedisSettings:
        """From the query of a URL and from keywords, which win (None: not given)."""
        known = {attribute.name: attribute for attribute in fields(cls)}
        unknown = sorted(query.keys() - known.keys())
        if unknown:
            raise WrongValueError(
                f"the URL of Redis has unknown options: {', '.join(unknown)[:200]}; "
                f"known are {', '.join(known)}, db, client_name, tls_ca, tls_cert, tls_key"
            )
        settings: dict[str, Any] = {}
        for name, text in query.items():
            if known[name].type == "float":
                try:
                    settings[name] = float(text)
                except ValueError:
                    raise WrongValueError(
                        f"{name} in the URL is a number of seconds, not {text[:20]!r}"
                    ) from None
            else:
                settings[name] = text
        settings.update({name: value for name, value in given.items() if value is not None})
        return cls(**settings)
