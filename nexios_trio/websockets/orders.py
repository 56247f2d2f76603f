"""What one node asks of all others: messages of a group that no client can name."""

from __future__ import annotations

import base64
import logging
import secrets
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from nexios_trio.brokers.base import Draft, Kind, Message
from nexios_trio.status import check_close
from nexios_trio.websockets.lifetime import Connection

if TYPE_CHECKING:
    from nexios_trio.websockets.hub import Hub

__all__ = ["ORDERS", "Order", "close", "direct", "obey", "order_send"]

logger = logging.getLogger("nexios_trio.groups")

ORDERS: Final = "\x7forders"
"""Not printable, so no group may be called so."""


class Order(msgspec.Struct, omit_defaults=True):
    """An order, and of whom it comes: that node has done its part."""

    do: Literal["close", "send"]
    node: str
    user: str | None = None
    """None: all connections."""
    code: int = 1000
    reason: str | None = None
    kind: Kind = "json"
    data: str = ""
    """Bytes as base64."""

    def draft(self) -> Draft:
        """As a message to all nodes."""
        return Draft("json", msgspec.json.encode(self).decode(), id=secrets.token_hex(16))


_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def order_send(node: str, user: str, draft: Draft) -> Order:
    """To send to every connection of a user."""
    data = base64.b64encode(draft.data).decode() if isinstance(draft.data, bytes) else draft.data
    return Order("send", node, user, kind=draft.kind, data=data)


def obey(hub: Hub, message: Message) -> None:
    """Do what another node asks. Never raises: a newer version may ask what we do not know."""
    try:
        order = _decoder.decode(message.data)
        if order.node == hub.node:
            return
        if order.do == "close":
            close(hub, order.user, order.code, order.reason)
        elif order.user is not None:
            data = base64.b64decode(order.data) if order.kind == "bytes" else order.data
            direct(hub, order.user, Draft(order.kind, data, id=message.id))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        logger.warning("another node asks what this one does not understand: %s", error)


def close(hub: Hub, user: str | None, code: int, reason: str | None) -> int:
    """Close every connection of a user, or (None) of all, on this node; how many."""
    text = check_close(code, reason)
    connections: Collection[Connection] = (
        tuple(hub.connections) if user is None else tuple(hub.users.get(user, ()))
    )
    for connection in connections:
        connection.close_soon(code, text)
    return len(connections)


def direct(hub: Hub, user: str, draft: Draft) -> int:
    """Send to every connection of a user on this node; how many got it."""
    message = Message("", "", None, draft.kind, draft.data, time.time(), None, draft.id)
    return sum(hub.push(connection, message) for connection in tuple(hub.users.get(user, ())))
