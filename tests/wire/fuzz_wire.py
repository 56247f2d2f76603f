"""A fuzz target for the wire: any bytes, as a stream of frames, a handshake, an answer, a compressed message.

`check` takes bytes and asserts what has to hold for all bytes; a fuzzer that makes bytes can call it as it
is. ``python -m tests.wire.fuzz_wire SECONDS`` goes on for so long with mutations of a small corpus, and
prints the seed with which a failure can be had again; ``test_fuzz.py`` runs it within bounds.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections.abc import Iterator

from nexios_trio.wire import (
    Agreement,
    ClientHandshake,
    Close,
    Connection,
    Deflate,
    Event,
    Failure,
    HandshakeError,
    Kind,
    Ping,
    Pong,
    RequestReader,
    State,
    classify,
    error_response,
)
from tests.wire.streams import KEY, close_frame, frame

LIMIT = 2000
CODES = {1002, 1007, 1008, 1009}
AGREEMENTS = (None, Agreement(Deflate()), Agreement(Deflate(), client_no_context_takeover=True))


def check(data: bytes) -> None:
    """Raises AssertionError, or whatever should not come out of the wire."""
    if not data:
        return
    kind, data = data[0], data[1:]
    match kind % 4:
        case 0 | 1:
            check_stream(data, masked=kind % 4 == 0, agreement=AGREEMENTS[kind // 4 % 3], step=kind // 12 + 1)
        case 2:
            check_request(data, step=kind // 4 + 1)
        case _:
            check_answer(data, step=kind // 4 + 1)


def steps(data: bytes, step: int) -> Iterator[bytes]:
    return (data[i : i + step] for i in range(0, len(data), step))


def make(*, masked: bool, agreement: Agreement | None) -> Connection:
    if masked:
        return Connection.server(max_message_bytes=LIMIT, max_fragments=20, deflate=agreement)
    return Connection.client(lambda: KEY, max_message_bytes=LIMIT, max_fragments=20, deflate=agreement)


def check_stream(data: bytes, *, masked: bool, agreement: Agreement | None, step: int) -> None:
    at_once, in_steps = (make(masked=masked, agreement=agreement) for _ in range(2))
    events = at_once.receive_data(data)
    assert [event for piece in steps(data, step) for event in in_steps.receive_data(piece)] == events
    ends = [i for i, event in enumerate(events) if isinstance(event, Close | Failure)]
    assert ends in ([], [len(events) - 1])
    for event in events:
        check_event(event)
    assert in_steps.state is at_once.state
    over = at_once.state is not State.OPEN
    assert over == bool(ends)
    assert at_once.receive_data(b"" if not over else data) == []
    # What goes out is well-formed: the other side reads it.
    answers = at_once.data_to_send() + at_once.encode_text("ok" * 200) + at_once.encode_close()
    told = make(masked=not masked, agreement=agreement).receive_data(answers)
    assert told[-2] == "ok" * 200
    assert isinstance(told[-1], Close)
    assert at_once.receive_eof() == ([] if over else [Close(1006, "")])


def check_event(event: Event) -> None:
    match event:
        case str():
            assert len(event.encode()) <= LIMIT  # and it has no surrogates
        case bytes():
            assert len(event) <= LIMIT
        case Ping(payload) | Pong(payload):
            assert len(payload) <= 125
        case Close(code, reason):
            assert code in (1005, *range(1000, 1004), *range(1007, 1015), *range(3000, 5000))
            assert len(reason.encode()) <= 123
        case Failure(code, reason):
            assert code in CODES
            assert reason.isascii()


def check_request(data: bytes, *, step: int) -> None:
    reader = RequestReader(max_head_bytes=LIMIT, max_target_bytes=500)
    kind = classify(data)
    taken = b""
    try:
        for piece in steps(data, step):
            taken += piece
            request = reader.receive_data(piece)
            if request is not None:
                assert kind is Kind.WEBSOCKET
                assert request.path.startswith("/")
                assert len(request.key) == 24
                assert taken.endswith(b"\r\n\r\n" + reader.trailing)
                break
    except HandshakeError as error:
        assert 400 <= error.status <= 505
        assert error_response(error).startswith(b"HTTP/1.1 ")


def check_answer(data: bytes, *, step: int) -> None:
    ours = ClientHandshake("a", "/", nonce=bytes(16), deflate=Deflate(), max_head_bytes=LIMIT)
    try:
        for piece in steps(data, step):
            if ours.receive_data(piece) is not None:
                break
    except HandshakeError as error:
        assert error.status == 0 or 100 <= error.status <= 999


# A corpus and its mutations


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def _corpus() -> list[bytes]:
    handshake = ClientHandshake("a", "/b?c", nonce=bytes(16), deflate=Deflate(), subprotocols=["v1"])
    answer = (
        b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"
    )
    streams = []
    for key in (KEY, None):
        streams += [
            frame(1, "κόσμε".encode(), key=key) + frame(9, b"p", key=key) + close_frame(1000, "bye", key=key),
            frame(1, b"ab", fin=False, key=key) + frame(0, b"c", fin=False, key=key) + frame(0, key=key),
            frame(2, bytes(126), key=key) + frame(2, bytes(300), key=key) + frame(10, key=key),
            frame(1, _deflated(b"abc" * 50), rsv=4, key=key) * 2,
        ]
    half = len(streams) // 2
    return [
        *(bytes([kind]) + s for s in streams[:half] for kind in (0, 4, 8, 12, 16, 44)),
        *(bytes([kind]) + s for s in streams[half:] for kind in (1, 5, 9, 13, 17, 45)),
        *(bytes([kind]) + handshake.request for kind in (2, 30, 254)),
        *(bytes([kind]) + answer for kind in (3, 31, 255)),
    ]


CORPUS = _corpus()
PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b":",
    b" ",
    b",",
    b";",
    b'"',
    b"\x00",
    b"\xff",
    b"\xed\xa0",
    b"\x7e",
    b"\x7f",
    b"\x81",
)


def mutated(randomness: random.Random) -> bytes:
    """One of the corpus, changed in a few places."""
    data = bytearray(randomness.choice(CORPUS))
    for _ in range(randomness.randrange(6)):
        place = randomness.randrange(len(data) + 1)
        match randomness.randrange(6):
            case 0:
                data[place : place + 1] = bytes([randomness.randrange(256)])
            case 1:
                del data[place : place + randomness.randrange(1, 9)]
            case 2:
                data[place:place] = randomness.choice(PIECES)
            case 3:
                data[place:place] = data[place : place + randomness.randrange(1, 40)]
            case 4:
                data += randomness.choice(CORPUS)[1:]
            case _:
                if place < len(data):
                    data[place] ^= 1 << randomness.randrange(8)
    return bytes(data)


def run(seed: int, count: int) -> None:
    """Check so many mutations."""
    randomness = random.Random(seed)
    for _ in range(count):
        check(mutated(randomness))


def main() -> None:
    end = time.monotonic() + float(sys.argv[1])
    seed = random.randrange(1 << 32)
    while time.monotonic() < end:
        seed += 1
        try:
            run(seed, 1000)
        except BaseException:
            print(f"failed: tests.wire.fuzz_wire.run({seed}, 1000)")
            raise
    print("nothing found")


if __name__ == "__main__":
    main()
