"""When to ping, and when to give up."""

from __future__ import annotations

from nexios_trio import Heartbeat
from nexios_trio.transports.pings import Pings, PingsDue

NOTHING, PING, DEAD = PingsDue.NOTHING, PingsDue.PING, PingsDue.DEAD


def test_a_ping_goes_out_every_interval_whatever_comes() -> None:
    pings = Pings(Heartbeat(10, 5), 0.0)
    assert [pings.check(now, now, listening=True) for now in (9.0, 10.0, 11.0, 20.0)] == [
        NOTHING,
        PING,
        NOTHING,
        PING,
    ]


def test_a_silence_after_a_ping_is_a_death() -> None:
    pings = Pings(Heartbeat(10, 5), 0.0)
    assert pings.check(10.0, 3.0, listening=True) is PING
    assert pings.due == 15.0
    assert pings.check(14.9, 3.0, listening=True) is NOTHING
    assert pings.check(15.0, 3.0, listening=True) is DEAD


def test_a_timeout_longer_than_the_interval_runs_from_the_first_unanswered_ping() -> None:
    pings = Pings(Heartbeat(10, 25), 0.0)
    assert [pings.check(now, 1.0, listening=True) for now in (10.0, 20.0, 30.0, 35.0)] == [
        PING,
        PING,
        PING,
        DEAD,
    ]


def test_whatever_comes_after_a_ping_shows_life() -> None:
    pings = Pings(Heartbeat(10, 5), 0.0)
    pings.check(10.0, 0.0, listening=True)
    assert pings.check(15.0, 12.0, listening=True) is NOTHING
    assert pings.due == 20.0


def test_who_is_not_listened_to_is_not_dead() -> None:
    pings = Pings(Heartbeat(10, 5), 0.0)
    pings.check(10.0, 0.0, listening=True)
    assert pings.check(15.0, 0.0, listening=False) is NOTHING
    assert pings.check(20.0, 0.0, listening=False) is PING
    assert pings.check(25.0, 0.0, listening=False) is NOTHING
    assert pings.due > 25.0


def test_only_the_pong_to_the_last_ping_measures() -> None:
    pings = Pings(Heartbeat(10, 5), 0.0)
    first, second = pings.payload(10.0), pings.payload(20.0)
    pings.answered(first, 20.5)
    assert pings.latency is None
    pings.answered(second, 20.25)
    assert pings.latency == 0.25
    pings.answered(second, 99.0)
    assert pings.latency == 0.25
