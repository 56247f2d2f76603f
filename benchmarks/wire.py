"""What the sans-I/O layer costs by itself: frames read and built per second, in one thread, without a
socket."""

from __future__ import annotations

import os
import statistics
import timeit
from collections.abc import Callable

import click
from websockets.protocol import Protocol, Side
from websockets.protocol import State as TheirState
from wsproto.connection import Connection as WsprotoConnection
from wsproto.connection import ConnectionType
from wsproto.events import TextMessage

from benchmarks.harness import order, record, versions
from nexios_trio.wire import Connection, encode_text
from nexios_trio.wire.frames import TEXT, encode_frame

BATCH = 50


def ours_read(data: bytes, messages: int) -> Callable[[], None]:
    connection = Connection.server()

    def read() -> None:
        assert len(connection.receive_data(data)) == messages

    return read


def wsproto_read(data: bytes, messages: int) -> Callable[[], None]:
    connection = WsprotoConnection(ConnectionType.SERVER)

    def read() -> None:
        connection.receive_data(data)
        assert len(list(connection.events())) == messages

    return read


def websockets_read(data: bytes, messages: int) -> Callable[[], None]:
    connection = Protocol(Side.SERVER, state=TheirState.OPEN)

    def read() -> None:
        connection.receive_data(data)
        assert len([bytes(frame.data).decode() for frame in connection.events_received()]) == messages  # type: ignore[union-attr]

    return read


def cases(size: int) -> dict[str, tuple[int, Callable[[], None]]]:
    """Frames per call, and the call."""
    text = "x" * size
    frame = encode_frame(TEXT, text.encode(), key=os.urandom(4))
    connection = Connection.server()
    wsproto = WsprotoConnection(ConnectionType.SERVER)

    def build() -> None:
        connection.encode_text(text)

    def build_shared() -> None:
        encode_text(text)

    def build_wsproto() -> None:
        wsproto.send(TextMessage(text))

    return {
        "read, one per buffer": (1, ours_read(frame, 1)),
        f"read, {BATCH} per buffer": (BATCH, ours_read(frame * BATCH, BATCH)),
        "build": (1, build),
        "build for a broadcast": (1, build_shared),
        "wsproto: read, one per buffer": (1, wsproto_read(frame, 1)),
        f"wsproto: read, {BATCH} per buffer": (BATCH, wsproto_read(frame * BATCH, BATCH)),
        "wsproto: build": (1, build_wsproto),
        "websockets: read, one per buffer": (1, websockets_read(frame, 1)),
        f"websockets: read, {BATCH} per buffer": (BATCH, websockets_read(frame * BATCH, BATCH)),
    }


def burst(frames: int, call: Callable[[], None]) -> float:
    """Frames per second, over a few milliseconds."""
    calls = max(20, 2000 // frames)
    return calls * frames / timeit.timeit(call, number=calls)


@click.command()
@click.option("--size", default=32, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=60, show_default=True, help="Bursts of each, by turns.")
def wire(size: int, rounds: int) -> None:
    """Frames per second through the sans-I/O layer, and through others: the best of many short bursts."""
    click.echo(versions())
    rates: dict[str, list[float]] = {name: [] for name in cases(size)}
    for round_ in range(rounds):
        fresh = cases(size)
        for name in order(fresh, round_):
            rates[name].append(burst(*fresh[name]))
    for name, found in rates.items():
        click.echo(f"{name:34} {max(found):12,.0f} frames/s (median {statistics.median(found):,.0f})")
    record(
        "wire",
        {"versions": versions(), "size": size, "rates": {name: max(found) for name, found in rates.items()}},
    )
