"""`Publisher`: sends to the groups of an app from a Trio program of its own."""

from __future__ import annotations

import secrets
import ssl
from types import TracebackType
from typing import Any

import trio

from nexios_trio.brokers.base import Message
from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.scripts import SETUP, Keys
from nexios_trio.brokers.redis.settings import RedisSettings
from nexios_trio.brokers.redis.store import Store
from nexios_trio.config import HistoryLimits, Limits
from nexios_trio.exceptions import WrongStateError
from nexios_trio.websockets.payloads import check_group_name, draft_of

__all__ = ["Publisher"]


class Publisher:
    """``async with Publisher("redis://…") as publisher: await publisher.send("news", payload)``.

    ``url`` is that of the app's broker, with the same ``prefix``. ``history`` are the app's `HistoryLimits`:
    whoever sends, trims. Entering waits for the first attempt to connect and raises `BrokerRefused` if trying
    again will not help; a Redis that is away is waited for by each send.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1",
        history: HistoryLimits | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address, query = Address.parse(url, tls=tls)
        self.settings = RedisSettings.of(query, prefix=prefix, timeout=timeout)
        keys = Keys.of(self.settings.prefix, self.address.database)
        self._store = Store(keys, history or HistoryLimits(), self.settings.once)
        self._link = Link(self.address, timeout=self.settings.timeout, setup=SETUP)
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Publisher {self.address} prefix={self.settings.prefix!r}>"

    async def __aenter__(self) -> Publisher:
        if self._nursery is not None:
            raise WrongStateError("this Publisher is entered already; make another one")
        self._store.node = secrets.token_urlsafe(6)  # two processes may be copies of one
        self._link.reset()
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        self._nursery.start_soon(self._link.run)
        try:
            with trio.move_on_after(self.settings.timeout):
                await self._link.wait_tried()
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(kind, error, traceback)

    async def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        self._nursery = None
        if isinstance(error, trio.Cancelled):
            await self._nursery_manager.__aexit__(kind, error, traceback)
        else:  # what the block raises goes on as it is, not as one of a group
            await self._nursery_manager.__aexit__(None, None, None)

    async def send(
        self, group: str, payload: Any, *, save_history: bool = True, message_id: str | None = None
    ) -> Message:
        """Send to all members of a group; see `Group.send`.

        Sends of several tasks go over one connection, in the order of the calls. A checkpoint; cancelled, it
        was sent to all or to none. Raises `BrokerUnavailable` after ``timeout``: with ``uncertain`` it may
        have been sent, and sending it again with the same ``message_id`` does no harm.
        """
        if self._nursery is None:
            raise WrongStateError(
                "this Publisher is not open; write `async with Publisher(...) as publisher:` around the sends"
            )
        check_group_name(group, Limits().group_name_length)
        await trio.lowlevel.checkpoint_if_cancelled()
        publishing = self._store.publishing(
            group, draft_of(payload, message_id=message_id), keep=save_history
        )
        message, _ = self._store.published(group, publishing, await self._link.call(*publishing.command))
        return message
