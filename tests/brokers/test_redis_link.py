"""The command connection against a real Redis: order, cancellation, losses, deadlines."""

from __future__ import annotations

import logging
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import pytest
import trio
import trio.testing

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.connection import connect, judge
from nexios_trio.brokers.redis.link import MOST_BYTES, Link
from nexios_trio.brokers.redis.reconnect import Backoff
from nexios_trio.exceptions import BrokerCommandError, BrokerRefused, BrokerUnavailable
from nexios_trio.testing.checkpoints import cancel_at_each_step
from tests.brokers.redis_server import RedisServer, free_port, needs_redis

pytestmark = needs_redis

QUICK = {"timeout": 10.0}


@asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[Link]:
    link = Link(Address.parse(url)[0], **{**QUICK, **options})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.wait_tried()
        yield link
        nursery.cancel_scope.cancel()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One of its own, which the test may kill."""
    server = RedisServer(tmp_path / "redis", port=free_port()).start()
    yield server
    server.kill()


async def test_replies_come_to_those_who_asked(shared_redis: RedisServer) -> None:
    async with linked(shared_redis.url) as link:

        async def ask(n: int) -> None:
            for i in range(20):
                assert await link.call("ECHO", f"{n}.{i}") == f"{n}.{i}".encode()
                assert await link.pipeline([("ECHO", n), ("ECHO", i)]) == [b"%d" % n, b"%d" % i]

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(ask, n)
        assert link.waiting == 0


async def test_commands_take_effect_in_the_order_of_the_calls(shared_redis: RedisServer) -> None:
    async with linked(shared_redis.url) as link:
        await link.call("DEL", "link:order")
        for n in range(100):
            link.post(("RPUSH", "link:order", n))
        await link.call("RPUSH", "link:order", 100)
        assert await link.call("LRANGE", "link:order", 0, -1) == [b"%d" % n for n in range(101)]


async def test_an_error_reply_is_raised_and_names_no_argument_too_many(shared_redis: RedisServer) -> None:
    async with linked(shared_redis.url) as link:
        await link.call("SET", "link:text", "x")
        with pytest.raises(BrokerCommandError, match="WRONGTYPE") as caught:
            await link.call("LPUSH", "link:text", "y")
        assert caught.value.code == "WRONGTYPE"
        assert await link.call("GET", "link:text") == b"x"  # and the link goes on


async def test_cancellation_in_the_middle_of_any_command_leaves_the_link_correct(
    shared_redis: RedisServer,
) -> None:
    struck = 0
    async with linked(shared_redis.url) as link:
        async for interrupter in cancel_at_each_step():
            await interrupter.run(link.call, "ECHO", "lost")
            assert await link.call("ECHO", "found") == b"found"
            struck += interrupter.struck
    assert struck >= 2


async def test_a_command_cancelled_before_it_is_sent_is_not_sent(shared_redis: RedisServer) -> None:
    async with linked(shared_redis.url) as link:
        await link.call("SET", "link:n", 0)
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.call("INCR", "link:n")
        assert scope.cancelled_caught
        assert await link.call("GET", "link:n") == b"0"


async def test_many_cancelled_at_random_moments_do_not_confuse_the_rest(shared_redis: RedisServer) -> None:
    async with linked(shared_redis.url) as link:
        answered = 0

        async def impatient(n: int) -> None:
            nonlocal answered
            for i in range(50):
                with trio.move_on_after((n * 50 + i) % 7 / 5000):
                    assert await link.call("ECHO", f"{n}.{i}") == f"{n}.{i}".encode()
                    answered += 1

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(impatient, n)
        assert await link.call("ECHO", "end") == b"end"
        assert answered < 1000
        assert link.waiting == 0


async def test_a_killed_connection_is_made_again_and_its_commands_are_done(redis: RedisServer) -> None:
    async with linked(redis.url) as link:
        done: list[int] = []

        async def set_all() -> None:
            for n in range(300):
                await link.call("SET", f"k{n}", n)
                done.append(n)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(set_all)
            killed = 0
            while len(done) < 300:
                with trio.move_on_after(2):
                    seen = len(done)
                    while len(done) < min(seen + 50, 300):
                        await trio.lowlevel.checkpoint()
                killed += await trio.to_thread.run_sync(
                    redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
                )
        assert killed >= 3
        assert link._kept.connects > 1
        assert await link.pipeline([("GET", f"k{n}") for n in range(300)]) == [b"%d" % n for n in range(300)]


async def test_a_stopped_server_delays_and_loses_nothing(redis: RedisServer) -> None:
    async with linked(redis.url) as link:
        await link.call("PING")
        redis.pause()
        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(link.call, "SET", f"k{n}", n)
            await trio.testing.wait_all_tasks_blocked(0.05)
            redis.go_on()
        assert await link.call("DBSIZE") == 10
        assert link._kept.connects == 1


async def test_a_server_that_stays_silent_is_given_up_in_time(redis: RedisServer) -> None:
    async with linked(redis.url, timeout=0.3) as link:
        await link.call("PING")
        redis.pause()
        try:
            with pytest.raises(BrokerUnavailable, match=r"no answer within|down for") as caught:
                await link.call("PING")
            assert caught.value.uncertain
        finally:
            redis.go_on()
        await link.call("PING", timeout=10.0)


async def test_a_restarted_server_is_found_again(redis: RedisServer) -> None:
    async with linked(redis.url) as link:
        await link.call("PING")
        redis.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.call, "SET", "while", "away")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not link.up
            await trio.to_thread.run_sync(redis.start)
        assert await link.call("GET", "while") == b"away"


async def test_without_a_server_calls_fail_after_their_time(tmp_path: Path) -> None:
    async with linked(f"redis+unix://{tmp_path}/nothing.sock", timeout=0.05) as link:
        with pytest.raises(BrokerUnavailable, match="No such file") as caught:
            await link.call("PING")
        assert not caught.value.uncertain
        assert caught.value.close_code == 1013
        link.post(("PING",))  # neither blocks nor raises


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    async with linked(f"redis+unix://{tmp_path}/nothing.sock", most_calls=5) as link:
        for _ in range(10):
            link.post(("PING",))
        assert link.waiting == 5
        with pytest.raises(BrokerUnavailable, match="5 commands wait"):
            await link.call("PING")


async def test_what_nobody_waits_for_any_more_takes_no_room(tmp_path: Path) -> None:
    async with linked(f"redis+unix://{tmp_path}/nothing.sock", most_calls=5) as link:
        link.post(("PING",))
        for _ in range(20):
            with pytest.raises(BrokerUnavailable, match="down for"):
                await link.call("SET", "k", bytes(MOST_BYTES // 4), timeout=0.001)
        with trio.move_on_after(0.001):
            await link.call("SET", "k", bytes(MOST_BYTES // 2))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(partial(link.call, "SET", "k", bytes(MOST_BYTES // 4)))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_scripts_that_were_flushed_are_loaded_again(shared_redis: RedisServer) -> None:
    source = "return ARGV[1]"
    async with linked(shared_redis.url, setup=[("SCRIPT", "LOAD", source)]) as link:
        loaded = await link.call("SCRIPT", "LOAD", source)
        for n in range(3):
            assert await link.call("EVALSHA", loaded, 0, n) == b"%d" % n
            await link.call("SCRIPT", "FLUSH")
        assert link._kept.connects > 1


async def test_the_name_and_the_database_are_set(redis: RedisServer) -> None:
    async with linked(f"{redis.url}/3?client_name=chat-7") as link:
        await link.call("SET", "here", "1")
        assert b"name=chat-7" in await link.call("CLIENT", "INFO")
    assert b"db3:keys=1" in redis.ask("INFO", "keyspace")


# What will not do


async def refusal(url: str, **options: Any) -> BrokerRefused:
    with pytest.raises(BrokerRefused) as caught:
        await connect(Address.parse(url, **options)[0], 10.0)
    assert "s3cret" not in str(caught.value)
    return caught.value


async def test_passwords_and_users(tmp_path: Path) -> None:
    options = ("requirepass s3cret", "user ann on >s3cret2 ~* &* +@all")
    server = RedisServer(tmp_path / "redis", *options, port=free_port()).start()
    try:
        where = f"127.0.0.1:{server.port}"
        for login in (":s3cret@", "default:s3cret@", "ann:s3cret2@"):
            async with linked(f"redis://{login}{where}") as link:
                assert await link.call("PING") == b"PONG"
        assert "wants a password" in str(await refusal(f"redis://{where}"))
        for login in (":s3cretwrong@", "ann:s3cret@", "bob:s3cret2@"):
            assert "does not know this user and password" in str(await refusal(f"redis://{login}{where}"))
    finally:
        server.kill()


async def test_a_password_where_none_is_set_is_refused(shared_redis: RedisServer) -> None:
    url = shared_redis.url.replace("redis+unix://", "redis+unix://:s3cret@")
    assert "does not know this user and password" in str(await refusal(url))


async def test_a_database_that_is_not_there_is_refused(shared_redis: RedisServer) -> None:
    assert "has no database 99" in str(await refusal(f"{shared_redis.url}?db=99"))


async def test_a_cluster_is_refused_by_name(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", "cluster-enabled yes", "enable-debug-command local").start()
    try:
        assert "Redis Cluster, which is not supported" in str(await refusal(server.url))
    finally:
        server.kill()


async def answering(*replies: bytes) -> str:
    """The refusal of a server that says these."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"".join(replies))
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        try:
            await connect(Address.parse(f"redis://127.0.0.1:{port}")[0], 10.0)
        except (BrokerRefused, BrokerUnavailable) as error:
            nursery.cancel_scope.cancel()
            return f"{type(error).__name__}: {error}"
    raise AssertionError("it was taken")


def hello(version: str, mode: str = "standalone", role: str = "master") -> bytes:
    facts = {"version": version, "mode": mode, "role": role}
    lines = [f"%{len(facts)}", *(f"+{part}" for pair in facts.items() for part in pair), "+OK", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (hello("6.2.14"), "BrokerRefused: .* is version 6.2.14; Redis 7.0 or later"),
        (b"-ERR unknown command `HELLO`\r\n+OK\r\n", "BrokerRefused: .* does not speak RESP3"),
        (b"-NOPROTO sorry\r\n+OK\r\n", "BrokerRefused: .* does not speak RESP3"),
        (hello("7.2.0", "sentinel"), "BrokerRefused: .* no standalone server"),
        (hello("7.2.0", role="replica"), "BrokerUnavailable: .* is a replica"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "BrokerUnavailable: .* not Redis' protocol"),
        (b"-LOADING wait\r\n+OK\r\n", "BrokerUnavailable: .* cannot serve now"),
    ],
)
async def test_a_server_that_is_something_else_is_told_apart(reply: bytes, why: str) -> None:
    assert re.match(why, await answering(reply))


async def test_valkey_is_welcome() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(hello("8.1.0"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        connection = await connect(Address.parse(f"redis://127.0.0.1:{port}")[0], 10.0)
        await connection.aclose()
        nursery.cancel_scope.cancel()


def test_a_moved_reply_means_a_cluster() -> None:
    assert isinstance(judge("here", hiredis.ReplyError("MOVED 1 1.2.3.4:1")), BrokerRefused)
    assert isinstance(judge("here", hiredis.ReplyError("READONLY You can't")), BrokerUnavailable)


# TLS, Sentinel


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-keyout", str(here / "key.pem"), "-out", str(here / "cert.pem"), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return here


async def test_tls_with_a_certificate_on_both_sides(tmp_path: Path, certificates: Path) -> None:
    port = free_port()
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    options = (f"tls-port {port}", f"tls-cert-file {cert}", f"tls-key-file {key}", f"tls-ca-cert-file {cert}")
    server = RedisServer(tmp_path / "redis", *options).start()
    try:
        url = f"rediss://127.0.0.1:{port}"
        async with linked(f"{url}?tls_ca={cert}&tls_cert={cert}&tls_key={key}") as link:
            assert await link.call("ECHO", "x" * 100_000) == b"x" * 100_000
            redis_kill = await trio.to_thread.run_sync(server.ask, "CLIENT", "KILL", "TYPE", "normal")
            assert redis_kill
            assert await link.call("PING") == b"PONG"
        assert "certificate is not trusted" in str(await refusal(url))
        context = ssl.create_default_context(cafile=str(cert))
        with pytest.raises(BrokerUnavailable):  # the server wants a certificate of the client
            await connect(Address.parse(url, tls=context)[0], 10.0)
    finally:
        server.kill()


async def test_no_tls_where_it_is_expected_is_said(redis: RedisServer) -> None:
    with pytest.raises(BrokerUnavailable, match="is this a port for TLS"):
        await connect(Address.parse(f"rediss://127.0.0.1:{redis.port}")[0], 0.3)


async def test_the_sentinels_say_who_the_master_is_also_after_a_failover(tmp_path: Path) -> None:
    first = RedisServer(tmp_path / "first", port=free_port()).start()
    second = RedisServer(
        tmp_path / "second",
        f"replicaof 127.0.0.1 {first.port}",
        "repl-diskless-sync-delay 0",
        port=free_port(),
    ).start()
    sentinel = RedisServer(
        tmp_path / "sentinel",
        f"sentinel monitor main 127.0.0.1 {first.port} 1",
        "sentinel down-after-milliseconds main 200",
        "sentinel failover-timeout main 2000",
        port=free_port(),
        command=["--sentinel"],
    ).start()
    try:
        second.wait(lambda: b"master_link_status:up" in second.ask("INFO", "replication"))
        sentinel.wait(lambda: b"slaves=1" in sentinel.ask("INFO", "sentinel"))
        dead = free_port()
        url = f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{sentinel.port}/main/0"
        async with linked(url, timeout=30.0) as link:
            await link.call("SET", "who", "first")
            second.wait(lambda: second.ask("GET", "who") == b"first")
            first.kill()
            assert await link.call("SET", "who", "second") == b"OK"
            assert second.ask("GET", "who") == b"second"
        with pytest.raises(BrokerUnavailable, match="knows no service 'other'"):
            await connect(Address.parse(url.replace("main", "other"))[0], 10.0)
    finally:
        for server in (first, second, sentinel):
            server.kill()


# Reconnecting


def test_pauses_double_up_to_a_bound_and_are_never_the_same_for_all() -> None:
    backoffs = [Backoff() for _ in range(50)]
    pauses = [[backoff.pause() for _ in range(8)] for backoff in backoffs]
    for number in range(8):
        ceiling = min(0.05 * 2**number, 2.0)
        these = [series[number] for series in pauses]
        assert all(ceiling / 2 <= pause <= ceiling for pause in these)
        assert max(these) - min(these) > ceiling / 5
    backoffs[0].reset()
    assert backoffs[0].pause() <= 0.05


async def test_what_is_wrong_is_logged_once_and_without_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = f"redis+unix://:s3cret@{tmp_path}/nothing.sock"
    async with linked(url, backoff=Backoff(0.001, 0.001)) as link:
        with pytest.raises(BrokerUnavailable):
            await link.call("PING", timeout=0.2)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "s3cret" not in lines[0]
    assert "trying again" in lines[0]
