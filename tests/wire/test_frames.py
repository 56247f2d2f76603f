"""Frames: headers read, frames built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire import ProtocolViolation, encode_binary, encode_text
from nexios_trio.wire.frames import close_payload, encode_frame, parse_close, read_header
from tests.wire.streams import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_frame, frame, keys

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000]
DATA = [CONTINUATION, TEXT, BINARY]


def header(
    data: bytes, *, masked: bool = True, compression: bool = False
) -> tuple[int, int, bytes, int] | None:
    return read_header(data, 0, masked=masked, compression=compression)


def refusal(data: bytes, *, masked: bool = True, compression: bool = False) -> str:
    with pytest.raises(ProtocolViolation) as caught:
        header(data, masked=masked, compression=compression)
    assert caught.value.code == 1002
    return caught.value.reason


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [None, KEY])
def test_a_frame_is_built_as_the_rfc_has_it_and_its_header_is_read(size: int, key: bytes | None) -> None:
    for opcode in DATA:
        for fin in (False, True):
            built = encode_frame(opcode, b"x" * size, fin=fin, key=key)
            assert built == frame(opcode, b"x" * size, fin=fin, key=key)
            first, length, found, start = header(built, masked=key is not None) or (0, 0, b"", 0)
            assert (first, length, found) == (fin << 7 | opcode, size, key or b"")
            assert start == len(built) - size


def test_the_examples_of_the_rfc() -> None:
    # RFC 6455 §5.7
    assert encode_text("Hello") == bytes.fromhex("810548656c6c6f")
    assert encode_frame(TEXT, b"Hello", key=KEY) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert encode_frame(TEXT, b"Hel", fin=False) == bytes.fromhex("010348656c")
    assert encode_frame(CONTINUATION, b"lo") == bytes.fromhex("80026c6f")
    assert encode_frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
    assert encode_binary(bytes(256))[:4] == bytes.fromhex("827e0100")
    assert encode_binary(bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")


@given(st.text(), st.binary(max_size=300))
def test_whole_messages_are_single_frames(text: str, data: bytes) -> None:
    assert encode_text(text) == frame(TEXT, text.encode(), key=None)
    assert encode_binary(data) == encode_binary(bytearray(data)) == frame(BINARY, data, key=None)


def test_a_surrogate_cannot_be_sent_and_the_error_says_what_can() -> None:
    with pytest.raises(WrongValueError, match=r"position 2.*'replace'"):
        encode_text("ab\ud800")


@pytest.mark.parametrize("masked", [True, False])
def test_too_little_of_a_header_is_no_header(masked: bool) -> None:
    for size in SIZES:
        whole = frame(BINARY, b"x" * size, key=KEY if masked else None)
        start = len(whole) - size
        for cut in range(start):
            assert header(whole[:cut], masked=masked) is None
        assert header(whole[:start], masked=masked) is not None


def test_a_header_is_read_where_it_is() -> None:
    stream = b"junk" + frame(PING, b"abc") + b"more"
    assert read_header(stream, 4, masked=True, compression=False) == (0x89, 3, KEY, 10)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_an_unknown_opcode_is_refused(opcode: int) -> None:
    assert refusal(frame(opcode)) == f"unknown opcode {opcode}"


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [*DATA, CLOSE, PING, PONG])
def test_reserved_bits_are_refused_but_rsv1_of_a_compressed_message_s_first_frame(
    rsv: int, opcode: int
) -> None:
    assert "reserved bit" in refusal(frame(opcode, rsv=rsv))
    for fin in (True, False):
        if rsv == 4 and opcode in (TEXT, BINARY):
            assert header(frame(opcode, rsv=rsv, fin=fin), compression=True) is not None
        else:
            assert "reserved bit" in refusal(frame(opcode, rsv=rsv, fin=fin), compression=True)


def test_control_frames_are_short_and_whole() -> None:
    for opcode in (CLOSE, PING, PONG):
        assert header(frame(opcode, bytes(125))) is not None
        assert refusal(frame(opcode, bytes(126))) == "a control frame has at most 125 bytes"
        assert refusal(frame(opcode, bytes(65536))) == "a control frame has at most 125 bytes"
        assert refusal(frame(opcode, fin=False)) == "a control frame must not be fragmented"


def test_the_mask_is_there_if_and_only_if_the_peer_is_a_client() -> None:
    assert refusal(frame(TEXT, key=None), masked=True) == "a client must mask its frames"
    assert refusal(frame(TEXT, key=KEY), masked=False) == "a server must not mask its frames"


@pytest.mark.parametrize(
    ("length", "form"), [(0, 2), (1, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65535, 8)]
)
def test_a_length_in_more_bytes_than_it_needs_is_refused(length: int, form: int) -> None:
    assert "more bytes than it needs" in refusal(frame(BINARY, length=length, form=form))


def test_a_length_has_63_bits() -> None:
    assert "most significant bit" in refusal(frame(BINARY, length=1 << 63, form=8))
    assert header(frame(BINARY, length=(1 << 63) - 1, form=8)) == (0x82, (1 << 63) - 1, KEY, 14)


def test_what_is_certain_is_said_before_the_header_is_complete() -> None:
    assert refusal(frame(BINARY, length=1, form=8)[:10])
    assert refusal(frame(TEXT, key=None)[:2])
    assert refusal(frame(3)[:2])


@given(st.binary(max_size=16), st.booleans(), st.booleans())
def test_no_bytes_raise_anything_but_a_violation(data: bytes, masked: bool, compression: bool) -> None:
    try:
        header(data, masked=masked, compression=compression)
    except ProtocolViolation as violation:
        assert violation.code == 1002


# Close frames

SENDABLE = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


def test_a_close_code_is_taken_if_it_may_be_sent() -> None:
    for code in range(1 << 16):
        payload = code.to_bytes(2, "big")
        if code in SENDABLE:
            assert parse_close(payload).code == code
        else:
            with pytest.raises(ProtocolViolation) as caught:
                parse_close(payload)
            assert caught.value.code == 1002


def test_the_other_payloads_of_a_close_frame() -> None:
    assert (parse_close(b"").code, parse_close(b"").reason) == (1005, "")
    with pytest.raises(ProtocolViolation, match=r"1002.*one byte"):
        parse_close(b"\x03")
    with pytest.raises(ProtocolViolation, match=r"1007.*UTF-8"):
        parse_close(b"\x03\xe8\xff")


@given(st.sampled_from(sorted(SENDABLE)), st.text(max_size=200))
def test_a_close_payload_carries_its_code_and_what_fits_of_its_reason(code: int, reason: str) -> None:
    payload = close_payload(code, reason)
    assert len(payload) <= 125
    close = parse_close(payload)
    assert close.code == code
    assert reason.startswith(close.reason)
    assert close.reason == reason or len(reason.encode()) > 120


def test_no_code_is_no_payload() -> None:
    assert close_payload(1005, "ignored") == b""


@given(st.binary(max_size=125))
def test_no_close_payload_raises_anything_but_a_violation(payload: bytes) -> None:
    try:
        parse_close(payload)
    except ProtocolViolation as violation:
        assert violation.code in (1002, 1007)


@given(keys)
def test_the_helpers_of_these_tests_agree_with_each_other(key: bytes) -> None:
    assert close_frame(1000, "é", key=key) == encode_frame(CLOSE, close_payload(1000, "é"), key=key)
