"""The HTTP endpoint that publishes: tokens, bodies, answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
import trio

from nexios_trio import NexiosApp
from nexios_trio.brokers import Message
from nexios_trio.exceptions import BrokerUnavailable, WrongTypeError, WrongValueError
from nexios_trio.publishing import publish_endpoint

TOKEN = "a token of sixteen".replace(" ", "-")
OTHER = "another token, later".replace(" ", "-").replace(",", "")


async def post(app: Any, body: Any, token: str | None = TOKEN, method: str = "POST") -> httpx2.Response:
    headers = {} if token is None else {b"authorization": f"Bearer {token}".encode("latin-1")}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://testserver"
    ) as client:
        return await client.request(method, "/publish/", content=content, headers=headers)


def mounted() -> NexiosApp:
    app = NexiosApp()
    app.mount("/publish", publish_endpoint(app.channels, tokens=[TOKEN, OTHER], body_bytes=1000))
    return app


async def test_a_post_is_sent_to_the_group(autojump_clock: trio.abc.Clock) -> None:
    app = mounted()
    raw = base64.b64encode(b"\0\xff").decode()
    orders: list[tuple[dict[str, Any], Any]] = [
        ({"group": "g", "payload": {"a": [1, None]}}, {"a": [1, None]}),
        ({"group": "g", "payload": "text"}, "text"),
        ({"group": "g", "payload": None}, None),
        ({"group": "g", "base64": raw}, b"\0\xff"),
        ({"group": "g", "payload": 1, "save_history": False}, 1),
    ]
    async with app.running(), app.channels.subscribe("g") as messages:
        for order, expected in orders:
            answer = await post(app, order)
            message = await anext(messages)
            assert (answer.status_code, message.payload) == (200, expected)
            position = None if message.position is None else str(message.position)
            assert answer.json() == {"id": message.id, "position": position}
        answers = [await post(app, {"group": "g", "payload": 2, "message_id": "once"}, OTHER) for _ in "ab"]
        assert answers[0].json() == answers[1].json()
        assert answers[0].json()["id"] == "once"
        await app.channels.send("g", "end")
        assert [(await anext(messages)).payload for _ in "ab"] == [2, "end"]


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\xe9" * 16])
async def test_without_a_token_nothing_is_sent(token: str | None, autojump_clock: trio.abc.Clock) -> None:
    app = mounted()
    async with app.running():
        answer = await post(app, {"group": "g", "payload": 1}, token)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await app.broker.history("g")).position.offset == 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        ({"payload": 1}, "missing required field `group`"),
        ({"group": "g"}, "either payload or base64"),
        ({"group": "g", "payload": 1, "base64": ""}, "either payload or base64"),
        ({"group": "g", "base64": "?"}, ""),
        ({"group": "g", "payload": 1, "save": True}, "unknown field `save`"),
        ({"group": "g", "payload": 1, "save_history": "yes"}, "Expected `bool`"),
        ({"group": "", "payload": 1}, "a group name has"),
        ({"group": "x" * 201, "payload": 1}, "too long"),
        ({"group": "g", "payload": 1, "message_id": ""}, "message_id has 1 to 200"),
        (b'{"group": "g", "payload": "\xff"}', ""),
    ],
)
async def test_a_body_that_is_none_is_told_why(body: Any, why: str, autojump_clock: trio.abc.Clock) -> None:
    app = mounted()
    async with app.running():
        answer = await post(app, body)
        assert answer.status_code == 400
        assert why in answer.json()["error"]
        assert (await post(app, {"group": "g", "payload": 1})).status_code == 200


async def flood(app: Any, token: str) -> tuple[int, int]:
    """The status of a request whose body does not end, and how many chunks of 400 bytes were read."""
    read = 0
    statuses: list[int] = []

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 400, "more_body": True}

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    headers = [(b"authorization", f"Bearer {token}".encode()), (b"host", b"testserver")]
    scope = {"type": "http", "method": "POST", "path": "/publish/", "root_path": "", "query_string": b""}
    await app({**scope, "headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)
    return statuses[0], read


async def test_methods_and_sizes_are_bounded(autojump_clock: trio.abc.Clock) -> None:
    app = mounted()
    async with app.running():
        assert (await post(app, b"", method="GET")).status_code == 405
        for token, status, read in ((TOKEN, 413, 3), ("wrong", 401, 0)):
            assert await flood(app, token) == (status, read)


async def test_a_broker_that_is_away_is_503() -> None:
    class Away:
        async def send(self, group: str, payload: Any, **options: Any) -> Message:
            raise BrokerUnavailable("redis://secret-host", "is away")

    answer = await post(publish_endpoint(Away(), tokens=[TOKEN]), {"group": "g", "payload": 1})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "secret-host" not in answer.text


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (TOKEN, WrongTypeError),
        ([], WrongValueError),
        ([17], WrongTypeError),
        (["too short"], WrongValueError),
        (["with spaces in between it"], WrongValueError),
    ],
)
def test_tokens_that_are_none_are_refused(tokens: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="token") as caught:
        publish_endpoint(NexiosApp().channels, tokens=tokens)
    assert "too short" not in str(caught.value)


async def test_it_serves_http_only() -> None:
    with pytest.raises(WrongTypeError, match="serves HTTP"):
        await publish_endpoint(NexiosApp().channels, tokens=[TOKEN])({"type": "websocket"}, None, None)  # type: ignore[arg-type]
