"""The binary frames, the tokens, and what a device does with a command."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.iot.device import Thermometer
from examples.iot.frames import (
    Ack,
    Action,
    Frame,
    FrameError,
    Heartbeat,
    Order,
    Result,
    Telemetry,
    pack,
    unpack,
)
from examples.iot.tokens import Keys
from tests.examples.servers import ROOT

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
frames = st.one_of(
    st.builds(Telemetry, u32, u32, st.integers(-(1 << 15), (1 << 15) - 1), u16, u16),
    st.builds(Heartbeat, u32),
    st.builds(Ack, u32, st.sampled_from(Result)),
    st.builds(Order, u32, st.sampled_from(Action), st.integers(-(1 << 31), (1 << 31) - 1)),
)


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert unpack(pack(frame)) == frame


@given(st.binary(max_size=20))
def test_other_bytes_are_a_frame_of_the_same_bytes_or_an_error(data: bytes) -> None:
    try:
        frame = unpack(data)
    except FrameError:
        return
    assert pack(frame) == data


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no frame"),
        (b"\x07", "unknown kind of frame 0x07"),
        (b"\x02\x00", "expected 5 bytes of Heartbeat, got 2"),
        (b"\x03\x00\x00\x00\x01\x09", "Ack: 9 is not a valid Result"),
        (b"\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00", "Order: 0 is not a valid Action"),
    ],
)
def test_the_error_names_the_problem(data: bytes, problem: str) -> None:
    with pytest.raises(FrameError) as error:
        unpack(data)
    assert error.value.public_reason == problem


def test_the_layout_is_the_documented_one() -> None:
    assert pack(Telemetry(1, 2, -3, 4, 5)) == bytes.fromhex("01 00000001 00000002 fffd 0004 0005")
    assert pack(Order(7, Action.INTERVAL, 250)) == bytes.fromhex("10 00000007 02 000000fa")


def test_a_token_opens_its_own_door_only() -> None:
    keys, others = Keys("a secret"), Keys("another one")
    identity = keys.device(keys.token("d-001"))
    assert identity is not None
    assert identity.user == "d-001"
    own = keys.token("d-001")
    for wrong in (
        own.replace("d-001", "d-002"),
        own[:-1],
        others.token("d-001"),
        "d-001",
        "",
        "é.é",
        keys.token("operator"),
        f"operator.{keys.token('operator')}",
    ):
        assert keys.device(wrong) is None
    assert keys.operator(own) is None
    assert keys.operator("demo") is None
    assert keys.operator(keys.token("operator")) is not None
    assert "secret" not in repr(keys)


def test_tokens_are_written_out_for_those_who_have_the_secret() -> None:
    command = [sys.executable, "-m", "examples.iot.tokens", "d-001", "operator"]
    environment = {"IOT_SECRET": "a secret", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    keys = Keys("a secret")
    expected = [["d-001", keys.token("d-001")], ["operator", keys.token("operator")]]
    assert [line.split("\t") for line in done.stdout.splitlines()] == expected


def test_a_command_that_comes_twice_is_carried_out_once() -> None:
    thing = Thermometer(Random(1), lambda: 100.0)
    restart = Order(1, Action.RESTART, 0)
    assert thing.obey(restart) == thing.obey(restart) == Ack(1, Result.DONE)
    assert thing.restarts == 1
    assert thing.obey(Order(2, Action.BLINK, 5)) == Ack(2, Result.DONE)
    assert thing.blinking_until == 105
    assert thing.obey(Order(3, Action.INTERVAL, 5)) == Ack(3, Result.REFUSED)
    assert thing.interval == 1
    for number in range(10, 60):
        thing.obey(Order(number, Action.INTERVAL, 250))
    assert thing.interval == 0.25
    thing.obey(restart)  # long ago: it is not known any more
    assert thing.restarts == 2


def test_measurements_fit_their_fields() -> None:
    now = 0.0
    thing = Thermometer(Random(2), lambda: now)
    for _ in range(2000):
        now += 30
        assert len(pack(thing.measure())) == 15
