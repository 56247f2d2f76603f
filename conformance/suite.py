"""Autobahn|Testsuite's cases under Python 3: ``python suite.py URL --cases "1.*" --json FILE``.

The cases are Python 2 source, read from the installed package ``autobahntestsuite`` and adapted while they
are imported. A str literal of Python 2 is bytes: here it is text of as many latin-1 characters, and becomes
bytes again where it is sent. This file needs nothing of ours, and runs in an environment of its own
(``requirements.txt``).
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.abc
import importlib.metadata
import importlib.util
import json
import re
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, connectWS
from twisted.internet import reactor

PACKAGE = Path(str(importlib.metadata.distribution("autobahntestsuite").locate_file("autobahntestsuite")))

CONNECT_TIMEOUT = 20
"""Seconds for TCP to connect."""
PATIENCE = 20
"""How many times longer than in the suite a case waits before it gives up, and how many seconds a closing
handshake may take: half a second, as there, is less than a busy machine can stand still."""

ADAPTED = [
    (r"^(\s*)print (.+)$", r"\1print(\2)"),
    (r"\(object, Case, \)", "(Case, )"),
    (r"^.*\bimplements\b.*$", ""),
    (r"binascii\.\w+\(", "_hex("),
    (r"validate\(vss\[:i\]\)", "validate(_raw(vss[:i]))"),
    (r"payload\) / self", "payload) // self"),
    (r"(?<=request|.accept)NoContextTakeover", "_no_context_takeover"),
    (r"(?<=request|.accept)MaxWindowBits", "_max_window_bits"),
]
"""Patterns in the source of a case, and what stands there in Python 3, or in today's Autobahn."""


def raw(value: Any) -> Any:
    """What Python 2 would have had for a str."""
    return value.encode("latin-1") if type(value) is str else value


class CaseFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the suite's modules, which import each other by their bare names."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        file = PACKAGE / "case" / ("__init__.py" if name == "autobahn_case_list" else f"{name}.py")
        return importlib.util.spec_from_loader(name, self, origin=str(file)) if file.exists() else None

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        origin = module.__spec__.origin
        assert origin is not None
        source = Path(origin).read_bytes().decode("latin-1")
        for pattern, new in ADAPTED:
            source = re.sub(pattern, new, source, flags=re.MULTILINE)
        vars(module).update(xrange=range, _raw=raw, _hex=lambda value: raw(value).hex())
        exec(compile(source, origin, "exec"), vars(module))


def load_cases() -> dict[str, Any]:
    """The suite's cases by their numbers, such as 1.1.1, in its order."""
    sys.modules["pkg_resources"] = types.SimpleNamespace(  # type: ignore[assignment]
        resource_filename=lambda package, name: str(PACKAGE / name)
    )
    sys.meta_path.insert(0, CaseFinder())
    suite = importlib.import_module("autobahn_case_list")
    # Python 2 compared what cases expect with what came, None and tuples, in any order.
    importlib.import_module("case").Case.compare = lambda self, one, other: one == other
    return {case.__name__.removeprefix("Case").replace("_", "."): case for case in suite.Cases}


class Fuzzer(WebSocketClientProtocol):  # type: ignore[misc]
    """A connection on which one case is run: what the suite's own fuzzing client has."""

    connectionWasOpen = False
    createWirelog = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)  # today's Autobahn looks at its own option too early
        super().connectionMade()

    def onOpen(self) -> None:
        self.connectionWasOpen = True
        self.runCase.onOpen()

    def text(self, data: bytes) -> str | bytes:
        """What the case compares with its str literals; those of sections 12 and 13 are bytes."""
        deflate = type(self.runCase).__name__.startswith(("Case12_", "Case13_"))
        return data if deflate else data.decode("latin-1")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.runCase.onMessage(self.text(payload), isBinary)

    def onPong(self, payload: bytes) -> None:
        self.runCase.onPong(self.text(payload))

    def onClose(self, *arguments: Any) -> None:
        self.runCase.onClose(*arguments)

    def enableWirelog(self, on: bool) -> None:
        pass

    def logRxFrame(self, *_: Any) -> None:
        pass

    def logTxFrame(self, header: Any, *_: Any) -> None:
        self.txFrameStats[header.opcode] += 1

    def later(self, delay: float, call: Any, *arguments: Any) -> None:
        reactor.callLater(delay, lambda: self.state != self.STATE_CLOSED and call(*arguments))

    def continueLater(self, delay: float, call: Any, tag: object = None) -> None:
        self.later(delay, call)

    def killAfter(self, delay: float) -> None:
        self.later(PATIENCE * delay, self._fail_connection)

    def closeAfter(self, delay: float) -> None:
        self.later(delay, self.sendClose)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.runCase.onConnectionLost(self.failedByMe)
        self.factory.done(self)


def _sends_raw(name: str) -> Any:
    method = getattr(WebSocketClientProtocol, name)

    def send(self: Fuzzer, *positional: Any, **named: Any) -> Any:
        return method(self, *map(raw, positional), **{key: raw(value) for key, value in named.items()})

    return send


for _name in ("sendFrame", "sendMessage", "sendMessageFrameData", "sendCloseFrame"):
    setattr(Fuzzer, _name, _sends_raw(_name))


class Suite(WebSocketClientFactory):  # type: ignore[misc]
    """Runs one case after the other, each on a connection of its own."""

    def __init__(self, url: str, cases: dict[str, Any], limit: float) -> None:
        super().__init__(url)
        self.setProtocolOptions(
            failByDrop=False, closeHandshakeTimeout=PATIENCE, serverConnectionDropTimeout=PATIENCE
        )
        self.logFrames = True
        self.waiting = list(cases.items())[::-1]
        self.limit = limit
        self.results: dict[str, dict[str, Any]] = {}
        self.failure = ""
        """Why there was no connection."""
        self.following()

    def following(self) -> None:
        if not self.waiting or self.failure:
            reactor.callWhenRunning(reactor.stop)
            return
        self.number, self.case = self.waiting.pop()
        connectWS(self, timeout=CONNECT_TIMEOUT)

    def buildProtocol(self, _address: Any) -> Fuzzer:
        fuzzer = Fuzzer()
        fuzzer.factory = self
        fuzzer.txFrameStats = Counter()
        fuzzer.runCase = self.case(fuzzer)
        fuzzer.watchdog = reactor.callLater(self.limit, lambda: fuzzer.transport.abortConnection())
        return fuzzer

    def done(self, fuzzer: Fuzzer) -> None:
        if fuzzer.watchdog.active():
            fuzzer.watchdog.cancel()
        case = fuzzer.runCase
        self.results[self.number] = {
            "behavior": case.behavior,
            "close": case.behaviorClose,
            "code": fuzzer.remoteCloseCode,
            "result": case.result,
            "result_close": case.resultClose,
        }
        reactor.callLater(0, self.following)

    def clientConnectionFailed(self, _connector: Any, reason: Any) -> None:
        self.failure = f"{self.number}: {reason.getErrorMessage()}"
        self.following()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--cases", nargs="+", default=["*"], help="patterns of numbers, such as 1.1.*")
    parser.add_argument("--exclude", nargs="+", default=[])
    parser.add_argument("--limit", type=float, default=120, help="seconds for one case")
    parser.add_argument("--json", type=Path, required=True, help="the file for the results, by number")
    options = parser.parse_args()

    def wanted(number: str) -> bool:
        hit = [fnmatch.fnmatch(number, pattern) for pattern in options.cases]
        out = [fnmatch.fnmatch(number, pattern) for pattern in options.exclude]
        return any(hit) and not any(out)

    cases = {number: case for number, case in load_cases().items() if wanted(number)}
    suite = Suite(options.url, cases, options.limit)
    reactor.run()
    options.json.write_text(json.dumps(suite.results, indent=1))
    if suite.failure or len(suite.results) != len(cases) or not cases:
        print(f"{len(suite.results)} of {len(cases)} cases were run; {suite.failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
