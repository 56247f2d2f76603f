"""Sending to groups from outside of the app: other programs, over Redis or over HTTP.

`Publisher` and `SyncPublisher` need the extra ``redis``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nexios_trio.publishing.http import Sender, publish_endpoint

if TYPE_CHECKING:
    from nexios_trio.publishing.publisher import Publisher
    from nexios_trio.publishing.sync import SyncPublisher

__all__ = ["Publisher", "Sender", "SyncPublisher", "publish_endpoint"]


def __getattr__(name: str) -> Any:
    # Only when they are asked for: the endpoint works without Redis.
    if name == "Publisher":
        from nexios_trio.publishing.publisher import Publisher

        return Publisher
    if name == "SyncPublisher":
        from nexios_trio.publishing.sync import SyncPublisher

        return SyncPublisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
