"""The cost of not watching: all trace events off, beside a copy of ftd from which the trace calls are removed."""

from __future__ import annotations

from collections.abc import Callable

from bench import stripped
from bench.child import ChildError
from bench.figures import Figure, median, of_ratios
from bench.setting import KIB, MIB, Bench, Halves, halves, scratch, stream

CASE = "trace"

#: CPU time with the calls over that without.
_COST = 1.02


def measure(bench: Bench) -> None:
    """Frames of a size at which calls count most, and small transactions."""
    total = bench.pick(64 * MIB, 4 * MIB)
    seconds = bench.pick(0.5, 0.2)

    def frames(pair: Halves) -> float:
        rate = stream(pair, MIB, total, 1)
        return rate.sender + rate.receiver

    def commits(pair: Halves) -> float:
        before = pair.secondary.ask("usage")["cpu"]
        answer = pair.primary.ask("commits", size=4 * KIB, window=1, seconds=seconds)
        cpu: float = answer["cpu"] + pair.secondary.ask("usage")["cpu"] - before
        return cpu / int(answer["counts"][0])

    with scratch() as directory:
        count = stripped.make(directory)
        bench.say(f"{CASE}: {count} trace calls are left out of the copy")
        if not count:
            bench.lacks(CASE, "", "there are no trace calls to leave out")
            return
        keys = {"latency_spin": "0", "frame_size": str(KIB)}
        with halves(keys=keys) as whole, halves(keys=keys, tree=directory) as bare:
            for group, way in (("1 KiB frames", frames), ("4 KiB transactions", commits)):
                try:
                    bench.add(_compare(bench, group, way, whole, bare, count))
                except ChildError as error:
                    bench.lacks(CASE, group, error)


def _compare(
    bench: Bench, group: str, way: Callable[[Halves], float], whole: Halves, bare: Halves, count: int
) -> Figure:
    own: list[float] = []
    others: list[float] = []
    way(whole)
    way(bare)
    for number in range(bench.pick(16, 2)):
        # Whichever is first may find the machine warmer, or cooler.
        for is_whole in (True, False) if number % 2 else (False, True):
            (own if is_whole else others).append(way(whole if is_whole else bare))
    name = "CPU time, calls there / calls removed"
    note = f"{count} calls; medians of {len(own)} rounds: {median(own) / median(others):.3f}"
    return of_ratios(CASE, group, name, own, others, at_most=_COST, note=note)
