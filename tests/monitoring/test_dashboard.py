"""The dashboard's WebSocket and files: who is let in, what is told, and what its commands do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import FirstMessage, Identity, Limits, NexiosApp, Overflow, WebSocket
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.monitoring.dashboard import Dashboard
from nexios_trio.monitoring.dashboard.app import FILES
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected

LIVE = "/ops/dashboard-live"


async def by_query(ws: WebSocket) -> Identity | None:
    user = ws.query_params.get("user")
    return None if user is None else Identity(user, scopes=["ops"] if user == "root" else [])


def shown(**options: Any) -> NexiosApp:
    app = NexiosApp(limits=Limits(outbox_messages=5), allowed_origins="*")

    @app.ws_route("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        ws.identify(ws.query_params.get("user", "ann"))
        ws.start_soon(nap)
        async with ws.join(room, overflow=Overflow.DROP_OLDEST):
            async for text in ws.iter_text():
                await ws.send_text(text)

    async def nap() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="the nap's own task")

    options = {"authenticate": by_query, "requires": "ops", **options}
    app.mount("/ops", Dashboard(app, **options))
    return app


class Viewer:
    def __init__(self, ws: TestWebSocket, hello: dict[str, Any]) -> None:
        self.ws = ws
        self.hello = hello

    async def state(self) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = await self.ws.receive_json()
            if message["type"] == "state":
                return message

    async def asks(self, **command: Any) -> dict[str, Any]:
        """The state that is the answer to a command: the one that comes while the clock stands still."""
        await self.ws.send_json(command)
        return await self.state()

    async def told(self, **command: Any) -> str:
        await self.ws.send_json(command)
        while True:
            message = await self.ws.receive_json()
            if message["type"] == "told":
                text: str = message["text"]
                return text


@asynccontextmanager
async def viewing(
    client: TestClient, path: str = LIVE + "?user=root", **options: Any
) -> AsyncIterator[Viewer]:
    async with client.connect(path, **options) as ws:
        hello = await ws.receive_json()
        assert hello["type"] == "hello"
        yield Viewer(ws, hello)


async def test_a_viewer_sees_connections_groups_and_routes_but_not_himself() -> None:
    async with TestClient(shown()) as client, client.connect("/rooms/7?user=bob") as ws:
        await ws.send_text("hello")
        await ws.receive_text()
        async with viewing(client) as viewer:
            assert viewer.hello == {"type": "hello", "control": True, "trace": False}
            state = await viewer.state()
    assert state["found"] == 1
    (connection,) = state["connections"]
    assert (connection["path"], connection["route"], connection["user"]) == (
        "/rooms/7",
        "/rooms/{room}",
        "bob",
    )
    assert (connection["in"], connection["out"]) == (1, 1)
    assert (connection["bytes_in"], connection["bytes_out"]) == (5, 5)
    assert state["groups"] == {"count": 1, "largest": [{"name": "7", "members": 1}]}
    (route,) = state["routes"]
    assert (route["name"], route["open"], route["in"]) == ("/rooms/{room}", 1, 1)
    assert state["points"][-1]["connections"] == 1
    assert state["server"]["leaving"] is False
    assert state["slow"] == []


async def test_a_route_of_the_user_s_may_be_called_as_the_dashboard_s_own() -> None:
    app = shown()

    @app.ws_route("/dashboard-live")
    async def live(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()

    async with TestClient(app) as client, client.connect("/dashboard-live"):
        with pytest.raises(WebSocketRejected):
            await client.connect(LIVE).__aenter__()
        async with viewing(client) as viewer:
            state = await viewer.state()
    assert [each["path"] for each in state["connections"]] == ["/dashboard-live"]
    assert [(each["name"], each["open"], each["rejected"]) for each in state["routes"]] == [
        ("/dashboard-live", 1, 0)
    ]


async def test_points_come_each_second_with_rates_and_percentiles(autojump_clock: MockClock) -> None:
    async with TestClient(shown()) as client, client.connect("/rooms/7") as ws:
        async with viewing(client) as viewer:
            await viewer.state()
            before = trio.current_time()
            for _ in range(20):
                await ws.send_text("x")
                await ws.receive_text()
            (point,) = (await viewer.state())["points"]
            assert trio.current_time() - before == pytest.approx(1)
            assert (point["in"], point["out"]) == (pytest.approx(20), pytest.approx(20))
            assert point["p50"] is not None
            assert point["p99"] < 0.001
            (point,) = (await viewer.state())["points"]
            assert (point["in"], point["out"], point["p50"]) == (0, 0, None)


async def test_who_comes_later_sees_how_it_was_before(autojump_clock: MockClock) -> None:
    async with TestClient(shown()) as client:
        await trio.sleep(60.5)
        async with viewing(client) as viewer:
            points = (await viewer.state())["points"]
    assert len(points) == 14  # one in five seconds, and one as he came


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        (LIVE, {}, 401),
        (LIVE + "?user=bob", {}, 403),
        (LIVE + "?user=root", {"headers": {"origin": "https://evil.example"}}, 403),
    ],
)
async def test_nobody_else_is_let_in(path: str, options: dict[str, Any], status: int) -> None:
    async with TestClient(shown()) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect(path, **options):
                pass
    assert rejected.value.status == status


async def test_the_app_s_own_authentication_holds_as_well() -> None:
    async def nobody(ws: WebSocket) -> None:
        return None

    app = NexiosApp(authenticate=nobody)
    app.mount("/ops", Dashboard(app, authenticate=by_query))
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect(LIVE + "?user=root"):
                pass
    assert rejected.value.status == 401


async def test_slow_consumers_are_listed_the_slowest_first(autojump_clock: MockClock) -> None:
    app = shown()
    async with TestClient(app, window=1) as client:
        async with client.connect("/rooms/a?user=slow") as slow, client.connect("/rooms/b?user=fast"):
            await wait_all_tasks_blocked()
            await slow.stall()
            for number in range(20):
                await app.channels.send("a", number)
            async with viewing(client) as viewer:
                (entry,) = (await viewer.state())["slow"]
    assert entry["user"] == "slow"
    assert entry["waiting"] == 5
    assert entry["dropped"] > 0


async def test_one_connection_s_page_has_its_tasks() -> None:
    async with TestClient(shown()) as client, client.connect("/rooms/7"):
        async with viewing(client) as viewer:
            (listed,) = (await viewer.state())["connections"]
            state = await viewer.asks(do="show", connection=listed["id"])
            chosen = state["connection"]
            gone = await viewer.asks(do="show", connection="nobody")
            assert gone["connection"] == {"id": "nobody", "gone": True}
            assert (await viewer.asks(do="show"))["connection"] is None
    assert chosen["state"] == "open"
    assert chosen["groups"] == ["7"]
    tasks = {task["name"].rpartition(".")[2]: task for task in chosen["tasks"]}
    nap, inner = tasks["nap"], tasks["the nap's own task"]
    assert nap["where"].startswith("shown.<locals>.nap (test_dashboard.py:")
    assert inner["depth"] == nap["depth"] + 1
    assert chosen["tasks"][0]["depth"] == 0
    assert "room (test_dashboard.py:" in chosen["tasks"][0]["where"]


async def test_one_group_s_page_has_its_members() -> None:
    async with TestClient(shown()) as client:
        async with client.connect("/rooms/7?user=ann"), client.connect("/rooms/7?user=bob"):
            await wait_all_tasks_blocked()
            async with viewing(client) as viewer:
                await viewer.state()
                group = (await viewer.asks(do="show", group="7"))["group"]
                nothing = (await viewer.asks(do="show", group="8"))["group"]
    assert group["count"] == 2
    assert [member["user"] for member in group["members"]] == ["ann", "bob"]
    assert nothing == {"name": "8", "count": 0, "members": []}


async def test_connections_are_found_by_their_facts() -> None:
    async with TestClient(shown()) as client:
        async with client.connect("/rooms/7?user=ann"), client.connect("/rooms/8?user=bob"):
            async with viewing(client) as viewer:
                assert (await viewer.state())["found"] == 2
                for text, users in (
                    ("BOB", ["bob"]),
                    ("rooms/7", ["ann"]),
                    ("nobody", []),
                    ("", ["bob", "ann"]),
                ):
                    state = await viewer.asks(do="find", text=text)
                    assert [each["user"] for each in state["connections"]] == users
                    assert state["found"] == len(users)


# Frames


@pytest.mark.parametrize("payloads", [False, True])
async def test_frames_are_traced_from_when_somebody_asks_and_masked_unless_shown(payloads: bool) -> None:
    app = shown(trace=True, payloads=payloads)
    async with TestClient(app) as client, client.connect("/rooms/7") as ws:
        async with viewing(client) as viewer:
            (listed,) = (await viewer.state())["connections"]
            await viewer.asks(do="show", connection=listed["id"])
            await ws.send_text("before")
            await ws.receive_text()
            chosen = (await viewer.asks(do="trace", on=True))["connection"]
            assert (chosen["traced"], chosen["frames"]) == (True, [])
            await ws.send_text("secret" * 100)
            await ws.receive_text()
            frames = (await viewer.asks(do="show", connection=listed["id"]))["connection"]["frames"]
            assert [(frame["direction"], frame["type"], frame["size"]) for frame in frames] == [
                ("in", "text", 600),
                ("out", "text", 600),
            ]
            assert [frame.get("payload") for frame in frames] == (
                [("secret" * 100)[:200]] * 2 if payloads else [None, None]
            )
            chosen = (await viewer.asks(do="trace", on=False))["connection"]
            assert (chosen["traced"], chosen["frames"]) == (False, [])
        assert watchers(app) == [()]


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_trace_ends_with_its_viewer_and_with_his_choice(leaves: bool) -> None:
    app = shown(trace=True)
    async with TestClient(app) as client, client.connect("/rooms/7"):
        async with viewing(client) as viewer:
            (listed,) = (await viewer.state())["connections"]
            await viewer.asks(do="show", connection=listed["id"])
            await viewer.asks(do="trace", on=True)
            assert len(watchers(app)[0]) == 1
            if leaves:
                await viewer.ws.drop()
                await wait_all_tasks_blocked()
            else:
                await viewer.asks(do="show")
            assert watchers(app)[0] == ()


async def test_a_dashboard_that_may_not_trace_does_not() -> None:
    app = shown()
    async with TestClient(app) as client, client.connect("/rooms/7"):
        async with viewing(client) as viewer:
            (listed,) = (await viewer.state())["connections"]
            await viewer.asks(do="show", connection=listed["id"])
            assert (await viewer.asks(do="trace", on=True))["connection"]["traced"] is False
            assert watchers(app)[0] == ()


def watchers(app: NexiosApp) -> list[tuple[object, ...]]:
    return [
        connection.tally.watchers
        for connection in app.connections
        if connection.tally is not None and connection.route == "/rooms/{room}"
    ]


# Commands


async def test_the_operator_disconnects_a_connection_and_a_user(caplog: pytest.LogCaptureFixture) -> None:
    async with TestClient(shown()) as client:
        async with (
            client.connect("/rooms/1?user=ann") as one,
            client.connect("/rooms/2?user=bob") as two,
            client.connect("/rooms/3?user=bob") as three,
            viewing(client) as viewer,
        ):
            newest, _, oldest = (await viewer.state())["connections"]
            assert (newest["user"], oldest["user"]) == ("bob", "ann")
            told = await viewer.told(do="disconnect", connection=oldest["id"])
            assert told == "The connection is closed."
            assert await one.wait_closed() == (1008, "disconnected by the operator")
            told = await viewer.told(do="disconnect_user", text="bob")
            assert told == "Closed 2 connections of bob."
            for ws in (two, three):
                assert await ws.wait_closed() == (1008, "disconnected by the operator")
            told = await viewer.told(do="disconnect", connection=oldest["id"])
            assert told == "That connection is over already."
    assert "'root' on the dashboard: disconnect_user 'bob'" in caplog.text


async def test_the_log_names_what_was_ended_whatever_else_the_command_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with TestClient(shown()) as client, client.connect("/rooms/1") as ws, viewing(client) as viewer:
        (listed,) = (await viewer.state())["connections"]
        await viewer.told(do="disconnect", connection=listed["id"], text="somebody else")
        assert await ws.wait_closed() == (1008, "disconnected by the operator")
    assert f"'root' on the dashboard: disconnect '{listed['id']}'" in caplog.text
    assert "somebody else" not in caplog.text


async def test_the_operator_drains_the_worker(autojump_clock: MockClock) -> None:
    app = shown()
    async with TestClient(app) as client, client.connect("/rooms/1") as ws:
        async with viewing(client) as viewer:
            assert "drains" in await viewer.told(do="drain")
            assert await ws.wait_closed() == (1012, "service restart")
            assert await viewer.ws.wait_closed() == (1012, "service restart")
            assert app.leaving
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/rooms/1"):
                pass
        assert rejected.value.status == 503


async def test_a_dashboard_without_control_does_nothing() -> None:
    app = shown(control=False)
    async with TestClient(app) as client, client.connect("/rooms/1?user=bob") as ws:
        async with viewing(client) as viewer:
            assert viewer.hello["control"] is False
            (listed,) = (await viewer.state())["connections"]
            for command in (
                {"do": "drain"},
                {"do": "disconnect_user", "text": "bob"},
                {"do": "disconnect", "connection": listed["id"]},
            ):
                assert await viewer.told(**command) == "This dashboard is for looking only."
            await ws.send_text("still here")
            assert await ws.receive_text() == "still here"


@pytest.mark.parametrize("message", ['{"do": "format the disk"}', "[]", "garbage", '{"do": "drain", "x": 1}'])
async def test_what_is_no_command_ends_the_viewer_s_connection_only(message: str) -> None:
    async with TestClient(shown()) as client, client.connect("/rooms/1") as ws:
        async with viewing(client) as viewer:
            await viewer.ws.send_text(message)
            assert (await viewer.ws.wait_closed())[0] == 1007
        await ws.send_text("still here")
        assert await ws.receive_text() == "still here"


async def test_a_viewer_who_does_not_read_costs_nobody_anything(autojump_clock: MockClock) -> None:
    app = shown()
    async with TestClient(app, window=1) as client, client.connect("/rooms/1") as ws:
        async with viewing(client) as stalled, viewing(client) as other:
            await stalled.ws.stall()
            for _ in range(30):
                await other.state()
            await ws.send_text("still here")
            assert await ws.receive_text() == "still here"
            await stalled.ws.resume()
            assert (await stalled.state())["points"]


# Files


async def test_the_page_and_its_files_are_given_with_a_policy_and_without_data() -> None:
    transport = httpx2.ASGITransport(shown())
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        for path, (_, content_type) in FILES.items():
            answer = await client.get(f"/ops/{path}")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == content_type
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("nothing", "../app.py", "app.py", "dashboard-live"):
            assert (await client.get(f"/ops/{path}")).status_code == 404


async def test_the_page_asks_nobody_but_its_server() -> None:
    transport = httpx2.ASGITransport(shown())
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        for path in FILES:
            text = (await client.get(f"/ops/{path}")).text.replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text
            assert "https://" not in text
            assert "<style" not in text
            assert " style=" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((object(), by_query), "takes a NexiosApp"),
        ((NexiosApp(), None), "say who may see it"),
        ((NexiosApp(), FirstMessage(lambda _token: None)), "sends no first message"),
    ],
)
def test_mistakes_are_told(arguments: tuple[Any, Any], says: str) -> None:
    with pytest.raises(WrongTypeError, match=says):
        Dashboard(arguments[0], authenticate=arguments[1])
