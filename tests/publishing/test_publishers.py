"""Sending to the groups of an app from other programs, over a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from nexios_trio.brokers import Message
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.cli import main
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import (
    BrokerRefused,
    BrokerUnavailable,
    GroupNameError,
    LimitError,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.publishing import Publisher, SyncPublisher
from nexios_trio.testing.broker_contract import ROOMY, Recorder, seen
from tests.brokers.nodes import Wire, node
from tests.brokers.redis_server import RedisServer, free_port

SCALING = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture
def prefix() -> str:
    return f"{secrets.token_hex(4)}:"


class Blocking:
    """A `SyncPublisher` with the face of a `Publisher`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.publisher = SyncPublisher(*args, **kwargs)

    async def __aenter__(self) -> Blocking:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.publisher.close()

    async def send(self, *args: Any, **kwargs: Any) -> Message:
        return await trio.to_thread.run_sync(lambda: self.publisher.send(*args, **kwargs))


@pytest.fixture(params=[Publisher, Blocking], ids=["trio", "sync"])
def publisher(request: pytest.FixtureRequest) -> Any:
    return request.param


@asynccontextmanager
async def listening(url: str, prefix: str, *groups: str) -> AsyncIterator[tuple[RedisBroker, Recorder]]:
    async with node(url, recorder := Recorder(), prefix=prefix) as broker:
        for group in groups:
            await broker.subscribe(group)
        yield broker, recorder


async def test_what_is_published_outside_reaches_the_groups(
    shared_redis: RedisServer, prefix: str, publisher: Any
) -> None:
    payloads = [{"a": ["ä", None]}, "text", b"\0\xff"]
    async with listening(shared_redis.url, prefix, "g") as (broker, recorder):
        async with publisher(shared_redis.url, prefix=prefix) as outside:
            sent = [await outside.send("g", payload) for payload in payloads]
            lost = await outside.send("g", "unkept", save_history=False)
        await recorder.until(lambda: len(recorder.messages) == 4)
        assert [message.payload for message in recorder.messages] == [*payloads, "unkept"]
        assert [message.position for message in recorder.messages[:3]] == [m.position for m in sent]
        assert (lost.position, recorder.messages[3].position) == (None, None)
        assert [message.offset for message in sent] == [1, 2, 3]
        assert (await broker.history("g", since=sent[1].position)).messages[0].payload == b"\0\xff"


async def test_a_message_id_makes_a_send_repeatable(
    shared_redis: RedisServer, prefix: str, publisher: Any
) -> None:
    async with listening(shared_redis.url, prefix, "g") as (_, recorder):
        for _ in range(3):
            async with publisher(shared_redis.url, prefix=prefix) as outside:
                assert (await outside.send("g", "1", message_id="order 17")).offset == 1
        async with publisher(shared_redis.url, prefix=prefix) as outside:
            assert (await outside.send("g", "2")).offset == 2
        await recorder.until(lambda: len(recorder.messages) == 2)
        assert recorder.data() == ["1", "2"]


async def test_the_senders_limits_trim(shared_redis: RedisServer, prefix: str, publisher: Any) -> None:
    async with listening(shared_redis.url, prefix) as (broker, _):
        async with publisher(shared_redis.url, HistoryLimits(messages=2), prefix=prefix) as outside:
            for n in range(4):
                await outside.send("g", str(n))
        assert seen(await broker.history("g")) == ["2", "3"]


async def test_a_lost_connection_is_made_again_and_nothing_is_sent_twice(
    shared_redis: RedisServer, prefix: str, publisher: Any
) -> None:
    async with listening(shared_redis.url, prefix, "g") as (_, recorder):
        async with Wire(shared_redis.path).up() as wire:
            async with publisher(wire.url, prefix=prefix, timeout=10) as outside:
                await outside.send("g", "1")
                wire.deaf = True
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outside.send, "g", "2")
                    await recorder.until(lambda: len(recorder.messages) == 2)
                    wire.deaf = False
                await outside.send("g", "3")
        await recorder.until(lambda: len(recorder.messages) == 3)
        assert recorder.data() == ["1", "2", "3"]


async def test_scripts_that_were_flushed_do_not_matter(
    shared_redis: RedisServer, prefix: str, publisher: Any
) -> None:
    async with publisher(shared_redis.url, prefix=prefix) as outside:
        for n in range(3):
            assert (await outside.send("g", n)).offset == n + 1
            await trio.to_thread.run_sync(shared_redis.ask, "SCRIPT", "FLUSH")


async def test_what_cannot_be_sent_is_refused(shared_redis: RedisServer, prefix: str, publisher: Any) -> None:
    mistakes: list[tuple[type[Exception], Any, Any, Any]] = [
        (GroupNameError, "", 1, None),
        (LimitError, "x" * 201, 1, None),
        (WrongTypeError, 7, 1, None),
        (WrongTypeError, "g", object(), None),
        (WrongValueError, "g", "\ud800", None),
        (WrongTypeError, "g", 1, 17),
        (WrongValueError, "g", 1, ""),
        (WrongValueError, "g", 1, "x" * 201),
        (WrongValueError, "g", 1, "a\nb"),
    ]
    async with publisher(shared_redis.url, prefix=prefix) as outside:
        for error, group, payload, message_id in mistakes:
            with pytest.raises(error):
                await outside.send(group, payload, message_id=message_id)


async def test_without_a_redis_it_says_so(tmp_path: Path, publisher: Any) -> None:
    url = f"redis+unix://:s3cret@{tmp_path}/nothing.sock"
    async with publisher(url, timeout=0.1) as outside:
        with pytest.raises(BrokerUnavailable, match="No such file") as caught:
            await outside.send("g", 1)
        assert "s3cret" not in f"{caught.value}{outside!r}"


async def test_a_redis_that_refuses_is_told(tmp_path: Path, publisher: Any) -> None:
    server = RedisServer(tmp_path / "redis", "requirepass s3cret").start()
    try:
        with pytest.raises(BrokerRefused, match="wants a password"):
            async with publisher(server.url) as outside:
                await outside.send("g", 1)
        with pytest.raises(BrokerRefused, match="does not know this user"):
            async with publisher(server.url.replace("://", "://:wrong@")) as outside:
                await outside.send("g", 1)
        async with publisher(server.url.replace("://", "://:s3cret@") + "?db=2") as outside:
            await outside.send("g", 1)
    finally:
        server.kill()


async def test_the_sentinels_are_asked(tmp_path: Path, publisher: Any) -> None:
    redis = RedisServer(tmp_path / "redis", port=free_port()).start()
    monitor = f"sentinel monitor main 127.0.0.1 {redis.port} 1"
    sentinel = RedisServer(tmp_path / "sentinel", monitor, port=free_port(), command=["--sentinel"]).start()
    try:
        for service, expected in (("main", None), ("other", BrokerUnavailable)):
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/{service}"
            async with publisher(url, timeout=2.0) as outside:
                if expected is None:
                    assert (await outside.send("g", 1)).offset == 1
                else:
                    with pytest.raises(expected, match="knows no service"):
                        await outside.send("g", 1)
    finally:
        redis.kill()
        sentinel.kill()


async def test_a_publisher_is_entered_first_and_once(shared_redis: RedisServer, prefix: str) -> None:
    publisher = Publisher(shared_redis.url, prefix=prefix)
    with pytest.raises(WrongStateError, match="async with Publisher"):
        await publisher.send("g", 1)
    async with publisher:
        with pytest.raises(WrongStateError, match="entered already"):
            async with publisher:
                pass
    async with publisher:
        await publisher.send("g", 1)
    with pytest.raises(KeyError, match="mine"):
        async with publisher:
            raise KeyError("mine")


async def test_sends_of_many_tasks_share_a_connection(shared_redis: RedisServer, prefix: str) -> None:
    async with listening(shared_redis.url, prefix) as (broker, _):
        async with Publisher(shared_redis.url, ROOMY, prefix=prefix) as publisher:
            async with trio.open_nursery() as nursery:
                for n in range(200):
                    nursery.start_soon(publisher.send, "g", n)
        assert sorted(message.payload for message in (await broker.history("g")).messages) == [*range(200)]


def test_threads_and_forks_may_share_a_sync_publisher(shared_redis: RedisServer, prefix: str) -> None:
    with SyncPublisher(shared_redis.url, ROOMY, prefix=prefix) as publisher:
        threads = [
            threading.Thread(target=lambda n=n: [publisher.send("g", f"{n}") for _ in range(20)])
            for n in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert publisher.send("g", "last").offset == 101
    program = """
import os, sys
from nexios_trio.publishing import SyncPublisher
publisher = SyncPublisher(sys.argv[1], prefix=sys.argv[2])
publisher.send("forked", "before")
child = os.fork()
for _ in range(50):
    publisher.send("forked", "x")
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(publisher.send("forked", "last").offset)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, shared_redis.url, prefix], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("102\n", "")


def test_a_fork_while_a_thread_sends_can_send(shared_redis: RedisServer, prefix: str) -> None:
    program = """
import os, sys, threading, warnings
from nexios_trio.publishing import SyncPublisher
warnings.simplefilter("ignore")  # Python advises against forks beside threads
publisher = SyncPublisher(sys.argv[1], prefix=sys.argv[2])
sent = threading.Event()
def send():
    for _ in range(100):
        publisher.send("forked", "x" * 100_000)
        sent.set()
thread = threading.Thread(target=send)
thread.start()
sent.wait()
for _ in range(10):
    child = os.fork()
    if not child:
        publisher.send("forked", "y")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
thread.join()
print(publisher.send("forked", "last").offset)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, shared_redis.url, prefix], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("111\n", "")


def test_copies_of_a_publisher_in_several_processes_are_several_senders(
    shared_redis: RedisServer, prefix: str
) -> None:
    program = """
import os, sys, trio
from nexios_trio.publishing import Publisher
publisher = Publisher(sys.argv[1], prefix=sys.argv[2])
async def main():
    async with publisher:
        return (await publisher.send("g", os.getpid())).offset
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
offset = trio.run(main)
if not child:
    os._exit(0)
print(offset)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, shared_redis.url, prefix], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_an_answer_that_was_not_waited_for_is_not_that_of_the_next_message(tmp_path: Path) -> None:
    class SoftTimeLimitExceeded(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise SoftTimeLimitExceeded

    redis = RedisServer(tmp_path / "redis").start()
    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with SyncPublisher(redis.url) as publisher:
            publisher.send("a", 1)
            redis.pause()
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(SoftTimeLimitExceeded):
                publisher.send("a", 2)
            redis.go_on()
            message = publisher.send("b", 3)
            assert (message.group, message.offset) == ("b", 1)
    finally:
        signal.signal(signal.SIGALRM, before)
        redis.kill()


def test_a_server_that_drips_does_not_hold_the_sync_publisher_for_longer(tmp_path: Path) -> None:
    ended = threading.Event()

    def drip(stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            stream.recv(1000)
            while not ended.wait(0.02):
                stream.sendall(b"+")

    def serve() -> None:
        for _ in range(2):
            threading.Thread(target=drip, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        publisher = SyncPublisher(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=0.1)
        with pytest.raises(BrokerUnavailable, match="no answer in time"):
            publisher.send("g", 1)
        ended.set()
        server.join()


def test_the_sync_publisher_needs_no_event_loop(shared_redis: RedisServer, prefix: str) -> None:
    with pytest.raises(RuntimeError):
        trio.lowlevel.current_task()
    assert SyncPublisher(shared_redis.url, prefix=prefix).send("g", 1).offset == 1


async def test_the_call_that_is_documented_for_other_languages_works(
    shared_redis: RedisServer, prefix: str, tmp_path: Path
) -> None:
    script = CliRunner().invoke(main, ["redis-script"])
    assert script.exit_code == 0
    (tmp_path / "publish.lua").write_text(script.output)
    (call,) = re.findall(
        r"^```text\n(redis-cli --eval publish\.lua.*?)^```$", SCALING.read_text(), re.M | re.S
    )
    call = call.replace("redis-cli ", f"redis-cli -s {shared_redis.path} --json ").replace("nexios:", prefix)
    async with listening(shared_redis.url, prefix, "news") as (broker, recorder):
        for fresh in (1, 0):
            done = await trio.run_process(["sh", "-c", call], cwd=tmp_path, capture_stdout=True)
            epoch, offset, nonce, before, _, new = json.loads(done.stdout)
            assert (offset, before, new) == (1, "", fresh)
        await recorder.until(lambda: len(recorder.messages) == 1)
        (message,) = recorder.messages
        assert (message.payload, message.id, message.kind) == ({"build": "passed"}, "build-18", "json")
        assert str(message.position) == f"{epoch}:{offset}:{nonce}"
        assert (await broker.history("news")).messages[0].payload == {"build": "passed"}
        assert os.environ.get("REDISCLI_AUTH") is None
