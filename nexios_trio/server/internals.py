"""Everything that we name of hypercorn's internals and of what it is built on, and nothing else.

`hold`, `tcp` and `wire` have their grips from here, and are imported only beside a version of hypercorn that
was tried (`nexios_trio.server.versions`): with another one, whose internals may have moved, not even the
names are looked for. What every version has, others import: its settings, its log, its command.
"""

from __future__ import annotations

import h11
from h2.exceptions import H2Error
from hypercorn.events import Event, Updated
from hypercorn.protocol.events import Data
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import Handshake, WSStream
from hypercorn.trio.tcp_server import TCPServer
from hyperframe.exceptions import HyperframeError

__all__ = [
    "GARBAGE",
    "Data",
    "Event",
    "H2Protocol",
    "H11Protocol",
    "HTTPStream",
    "Handshake",
    "TCPServer",
    "Updated",
    "WSStream",
]

GARBAGE = (h11.ProtocolError, H2Error, HyperframeError, ValueError)
"""What a client's bytes can make hypercorn raise; UnicodeError is a ValueError."""
