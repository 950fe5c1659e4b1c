"""
A daemon that is measured from within: all of ftd, its pairs driven in its own process instead of over HTTP.

``python -m bench.half CONFIGURATION [--stock]`` reads requests from its standard input (`bench.child`).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.stdio import StandardIO
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from bench.isolated import end_with_parent, pin_twisted
from bench.load import Commits, Stream, gathered
from bench.usage import cpu_time, forget_peak, memory_of, resident_memory
from ftd.config import load
from ftd.primary import PrimaryPair
from ftd.service import FtdService
from ftd.status import LinkState

#: Seconds in which all links have to be up.
_UP_TIME = 90.0

#: Bytes of a checkpoint that is one of many.
_FLOOD = 64 << 20

#: Seconds between two looks at them.
_LOOK = 0.02


class Half(LineOnlyReceiver):
    """The standard input and output of the process."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self, service: FtdService, reactor: Any, idle: int) -> None:
        self._service = service
        self._reactor = reactor
        self._idle = idle
        self._source = memoryview(b"")
        self._streams: list[Stream] = []

    def lineReceived(self, line: bytes) -> None:
        """One request."""
        request = json.loads(line)
        do = getattr(self, "do_" + request.pop("do"))
        maybeDeferred(do, **request).addCallbacks(self._answer, self._refuse)

    def connectionLost(self, _reason: Failure | None = None) -> None:
        """Whoever asked has gone."""
        if self._reactor.running:
            self._reactor.stop()

    def _answer(self, answer: dict[str, Any] | None) -> None:
        self.sendLine(json.dumps(answer or {}).encode())

    def _refuse(self, failure: Failure) -> None:
        failure.printTraceback(sys.stderr)
        self.sendLine(json.dumps({"error": f"{type(failure.value).__name__}: {failure.getErrorMessage()}"}).encode())

    @property
    def _primaries(self) -> list[PrimaryPair]:
        return [pair for pair in self._service.pairs().values() if isinstance(pair, PrimaryPair)]

    # What can be asked

    def do_up(self) -> Deferred[dict[str, Any]]:
        """Wait until all links are up."""
        up: Deferred[dict[str, Any]] = Deferred()
        until = time.monotonic() + _UP_TIME

        def look() -> None:
            pairs: Any = self._service.pairs().values()
            down = [pair for pair in pairs if pair.link_state is not LinkState.UP]
            if not down:
                up.callback({})
            elif time.monotonic() > until:
                up.errback(TimeoutError(f"{len(down)} links are not up, the first: {down[0].link_detail}"))
            else:
                self._reactor.callLater(_LOOK, look)

        look()
        return up

    def do_usage(self, forget: bool = False) -> dict[str, Any]:
        """CPU time and memory so far; ``idle`` is what was resident without any pair."""
        if forget:
            forget_peak()
        return {"cpu": cpu_time(), "idle": self._idle, **memory_of()}

    def do_traffic(self) -> dict[str, Any]:
        """Bytes on the wire of each pair so far, and when."""
        pairs: Any = self._service.pairs()
        counts = {name: [pair.traffic.sent, pair.traffic.received] for name, pair in pairs.items()}
        return {"at": time.monotonic(), "pairs": counts}

    def do_stream(self, piece: int, size: int, count: int) -> Deferred[dict[str, Any]]:
        """``count`` checkpoints of ``size`` bytes into the one pair, in pieces of ``piece`` bytes."""
        [pair] = self._primaries
        stream = Stream(pair, self._memory(), piece, size)
        return self._timed([stream.run(count)])

    def do_flood(self, piece: int) -> dict[str, Any]:
        """Checkpoints without end into every pair, each of a size that finds the receiver's memory warm."""
        self._streams = [Stream(pair, self._memory(), piece, _FLOOD) for pair in self._primaries]
        for stream in self._streams:
            # It ends with the process.
            stream.run(1 << 40).addErrback(lambda _: None)
        return {}

    def do_limit(self, rate: int) -> dict[str, Any]:
        """Change the bandwidth limit of every pair."""
        for pair in self._primaries:
            pair.set_rate_limit(None, rate)
        return {}

    def do_commits(self, size: int, window: int, seconds: float) -> Deferred[dict[str, Any]]:
        """Transactions of ``size`` bytes in all pairs at the same time; ``counts`` has how many in each."""
        payload = self._memory()[:size]
        loads = [Commits(pair, payload, window) for pair in self._primaries]
        timed = self._timed([load.run(seconds) for load in loads])

        def add_latencies(answer: dict[str, Any]) -> dict[str, Any]:
            latencies = sorted(latency for load in loads for latency in load.latencies)
            count = len(latencies)
            return {
                **answer,
                "counts": [len(load.latencies) for load in loads],
                "p50": latencies[count // 2],
                "p99": latencies[count * 99 // 100],
            }

        return timed.addCallback(add_latencies)

    def _timed(self, runs: list[Deferred[None]]) -> Deferred[dict[str, Any]]:
        done: Deferred[dict[str, Any]] = Deferred()
        began, cpu = time.perf_counter(), cpu_time()

        def finished() -> None:
            done.callback({"seconds": time.perf_counter() - began, "cpu": cpu_time() - cpu})

        def failed(failure: Failure) -> None:
            if not done.called:
                done.errback(failure)

        gathered(runs, finished, failed)
        return done

    def _memory(self) -> memoryview:
        if not self._source:
            before = memory_of()["now"]
            self._source = resident_memory()
            # It is the bench's own.
            self._idle += memory_of()["now"] - before
        return self._source


def use_stock_transport() -> None:
    """Have every link of this process carried by Twisted's own transports."""
    from ftd import link_protocol
    from ftd.transport.stock import StockTransport

    def adopt(transport: Any, _end: object, _options: object) -> StockTransport:
        return StockTransport(transport)

    vars(link_protocol)["adopt"] = adopt


def main(arguments: list[str]) -> None:
    """Run until the standard input ends."""
    end_with_parent()
    pin_twisted()
    if "--stock" in arguments:
        use_stock_transport()
    from twisted.internet import reactor

    errors = FilteringLogObserver(textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.error)])
    globalLogBeginner.beginLoggingTo([errors], redirectStandardIO=False)
    running: Any = reactor
    # Before there is a pair.
    idle = memory_of()["now"]
    service = FtdService(load(arguments[0]), reactor)
    service.prepare()
    StandardIO(Half(service, reactor, idle))
    service.startService()
    running.run()


if __name__ == "__main__":
    main(sys.argv[1:])
