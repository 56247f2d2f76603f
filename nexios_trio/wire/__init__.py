"""RFC 6455 and RFC 7692 without I/O: bytes in, events and bytes out, for both sides.

No socket, no task, no clock. Mask keys and nonces come as arguments.
"""

from nexios_trio.wire.classify import Kind, classify
from nexios_trio.wire.client import ClientHandshake, Response
from nexios_trio.wire.connection import Connection
from nexios_trio.wire.deflate import Agreement, Deflate, encode_shared
from nexios_trio.wire.errors import HandshakeError, ProtocolViolation
from nexios_trio.wire.events import Close, Event, Failure, Ping, Pong
from nexios_trio.wire.frames import encode_binary, encode_text
from nexios_trio.wire.handshake import (
    Request,
    RequestReader,
    accept_response,
    error_response,
    reject_response,
)
from nexios_trio.wire.negotiation import agree
from nexios_trio.wire.states import State

__all__ = [
    "Agreement",
    "ClientHandshake",
    "Close",
    "Connection",
    "Deflate",
    "Event",
    "Failure",
    "HandshakeError",
    "Kind",
    "Ping",
    "Pong",
    "ProtocolViolation",
    "Request",
    "RequestReader",
    "Response",
    "State",
    "accept_response",
    "agree",
    "classify",
    "encode_binary",
    "encode_shared",
    "encode_text",
    "error_response",
    "reject_response",
]
