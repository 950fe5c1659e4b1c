"""Small transactions: commits a second and how long one takes, with several in flight, near and far."""

from __future__ import annotations

from contextlib import ExitStack

import attrs

from bench.child import Child, ChildError
from bench.figures import Figure, of_ratios, of_samples
from bench.setting import KIB, Bench, Halves, halves, rivals, size_text

CASE = "transactions"

#: Bytes around the payload: BEGIN, the header of CONTINUE, and COMMIT with its digest; and an ACK.
_AROUND, _ACK = 12 + 12 + 12 + 8, 12

_SIZES = (4 * KIB, 64 * KIB)

#: Seconds one way through the proxy: 10 ms of round trip.
_DELAY = 0.005

_WINDOWS = (1, 4, 16)
_SHORT_WINDOWS = (1, 16)

#: Targets of 4 KiB: latency over ping-pong, commits a second over window 1.
_SLEEPING, _SPINNING = 1.8, 0.5
_WINDOW_16, _WINDOW_16_FAR = 3.0, 14.0


@attrs.define
class _Samples:
    """Of one way to do it, round by round."""

    rate: list[float] = attrs.Factory(list)
    p50: list[float] = attrs.Factory(list)
    p99: list[float] = attrs.Factory(list)
    cpu: list[float] = attrs.Factory(list)

    def figures(self, group: str, name: str) -> list[Figure]:
        """As they are."""
        return [
            of_samples(CASE, group, f"{name}: commits", "/s", self.rate),
            of_samples(CASE, group, f"{name}: p50", "µs", self.p50),
            of_samples(CASE, group, f"{name}: p99", "µs", self.p99),
            of_samples(CASE, group, f"{name}: CPU, sending", "µs/commit", self.cpu),
        ]

    def take(self, count: int, answer: dict[str, float]) -> None:
        """One round."""
        self.rate.append(count / answer["seconds"])
        self.p50.append(answer["p50"] * 1e6)
        self.p99.append(answer["p99"] * 1e6)
        self.cpu.append(answer["cpu"] / count * 1e6)


@attrs.define
class _Way:
    """
    One way to do it.

    :ivar keys: of the pair.
    """

    window: int
    keys: dict[str, str]
    samples: _Samples = attrs.Factory(_Samples)
    pair: Halves | None = None


def measure(bench: Bench) -> None:
    """Near, then far."""
    # Left to the system, two processes that take turns may share a core, which no two hosts do.
    with rivals(2, is_apart=True) as (near, far), rivals(1) as (proxy,):
        for size in bench.pick(_SIZES, _SIZES[:1]):
            _near(bench, near, far, size)
        for size in bench.pick(_SIZES, _SIZES[:1]):
            _far(bench, proxy, size)


def _near(bench: Bench, ping: Child, pong: Child, size: int) -> None:
    group = size_text(size)
    bench.say(f"{CASE}: {group}")
    seconds = bench.pick(0.6, 0.15)
    bare = _Samples()
    ways = {
        f"window {window}, no spin": _Way(window, {"latency_spin": "0"})
        for window in bench.pick(_WINDOWS, _SHORT_WINDOWS)
    }
    ways["window 1, spin 100us"] = _Way(1, {"latency_spin": "100us"})
    if not bench.short:
        ways["window 1, spin auto"] = _Way(1, {})
    with ExitStack() as stack:
        _open(bench, group, ways, stack)
        for _ in range(bench.pick(5, 1)):
            port = pong.ask("listen")["port"]
            pong.tell("pong", size=size + _AROUND, answer=_ACK)
            answer = ping.ask("ping", port=port, size=size + _AROUND, answer=_ACK, seconds=seconds)
            pong.answer()
            bare.take(answer["count"], answer)
            _round(bench, group, ways, size, seconds)
    is_small = size == 4 * KIB
    bench.add(*bare.figures(group, "ping-pong"))
    for name, way in ways.items():
        bench.add(*way.samples.figures(group, name))
        if way.window == 1 and way.samples.rate:
            target = (_SLEEPING if name.endswith("no spin") else _SPINNING) if is_small else None
            p50 = way.samples.p50
            bench.add(of_ratios(CASE, group, f"{name}: p50 / ping-pong", p50, bare.p50, at_most=target))
    _compare_windows(bench, group, ways, _WINDOW_16 if is_small else None)


def _far(bench: Bench, proxy: Child, size: int) -> None:
    group = f"{size_text(size)}, 10 ms round trip"
    bench.say(f"{CASE}: {group}")
    ways = {
        f"window {window}, no spin": _Way(window, {"latency_spin": "0"})
        for window in bench.pick(_WINDOWS, _SHORT_WINDOWS)
    }
    with ExitStack() as stack:
        _open(bench, group, ways, stack, (proxy, _DELAY))
        for _ in range(bench.pick(3, 1)):
            _round(bench, group, ways, size, bench.pick(1.0, 0.2))
    for name, way in ways.items():
        bench.add(*way.samples.figures(group, name))
    _compare_windows(bench, group, ways, _WINDOW_16_FAR if size == 4 * KIB else None)


def _open(
    bench: Bench, group: str, ways: dict[str, _Way], stack: ExitStack, proxy: tuple[Child, float] | None = None
) -> None:
    """Start the daemons of all ways; one that does not start is not measured."""
    for name, way in list(ways.items()):
        try:
            way.pair = stack.enter_context(
                halves(keys={"window": str(way.window), **way.keys}, is_apart=True, proxy=proxy)
            )
        except ChildError as error:
            bench.lacks(CASE, f"{group}, {name}", error)
            del ways[name]


def _round(bench: Bench, group: str, ways: dict[str, _Way], size: int, seconds: float) -> None:
    """Each way once."""
    for name, way in list(ways.items()):
        assert way.pair is not None
        try:
            if not way.samples.rate:
                # The code has run once before it is measured.
                way.pair.primary.ask("commits", size=size, window=way.window, seconds=seconds / 2)
            answer = way.pair.primary.ask("commits", size=size, window=way.window, seconds=seconds)
        except ChildError as error:
            bench.lacks(CASE, f"{group}, {name}", error)
            del ways[name]
        else:
            way.samples.take(answer["counts"][0], answer)


def _compare_windows(bench: Bench, group: str, ways: dict[str, _Way], target: float | None) -> None:
    found = {way.window: way.samples.rate for name, way in ways.items() if name.endswith("no spin")}
    for window, rates in found.items():
        if window > 1 and 1 in found:
            at_least = target if window == _WINDOWS[-1] else None
            bench.add(of_ratios(CASE, group, f"window {window} / window 1", rates, found[1], at_least=at_least))
