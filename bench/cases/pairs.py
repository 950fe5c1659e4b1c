"""Many pairs in one daemon: commits a second together, how even they are, and what memory a pair takes."""

from __future__ import annotations

from contextlib import ExitStack

from bench.child import ChildError
from bench.figures import RATIO, Figure, of_ratios, of_samples
from bench.setting import KIB, Bench, Halves, halves

CASE = "pairs"

_COUNTS = (1, 100, 1000)
_SIZE = 4 * KIB

#: Targets with the most pairs: commits over those of one, memory an idle pair, the slowest pair over the fastest.
_OF_ONE, _MEMORY, _FAIRNESS = 2.0, 32 * KIB, 0.7


def measure(bench: Bench) -> None:
    """All counts, in turns."""
    counts = bench.pick(_COUNTS, (1, 20))
    seconds = bench.pick(3.0, 0.3)
    rates: dict[int, list[float]] = {}
    evenness: dict[int, list[float]] = {}
    idle: dict[int, tuple[int, int]] = {}
    after: dict[int, tuple[int, int]] = {}
    with ExitStack() as stack:
        running: dict[int, Halves] = {}
        for count in counts:
            bench.say(f"{CASE}: {count}")
            try:
                running[count] = stack.enter_context(halves(count, keys={"latency_spin": "0"}))
            except ChildError as error:
                bench.lacks(CASE, f"{count} pairs", error)
                continue
            idle[count] = _memory(running[count])
            running[count].primary.ask("commits", size=_SIZE, window=1, seconds=seconds / 3)
        for _ in range(bench.pick(3, 1)):
            for count, pair in running.items():
                # The more pairs, the longer: each is to have so many that one more or less is no difference.
                longer = seconds * 2 if count == _COUNTS[-1] else seconds
                answer = pair.primary.ask("commits", size=_SIZE, window=1, seconds=longer)
                rates.setdefault(count, []).append(sum(answer["counts"]) / answer["seconds"])
                evenness.setdefault(count, []).append(min(answer["counts"]) / max(answer["counts"]))
        for count, pair in running.items():
            after[count] = _memory(pair)
    for count, rate in rates.items():
        group = f"{count} pairs" if count > 1 else "1 pair"
        is_most = count == _COUNTS[-1]
        bench.add(of_samples(CASE, group, "commits, all pairs together", "/s", rate))
        if count == 1 or 1 not in rates:
            continue
        target = _OF_ONE if is_most else None
        bench.add(of_ratios(CASE, group, "commits / those of one pair", rate, rates[1], at_least=target))
        target = _FAIRNESS if is_most else None
        bench.add(of_samples(CASE, group, "slowest / fastest pair", RATIO, evenness[count], at_least=target))
        for name, memory, most in (
            ("idle", idle, _MEMORY if is_most else None),
            (f"after transactions of {_SIZE // KIB} KiB", after, None),
        ):
            for side, end in (("sending", 0), ("receiving", 1)):
                value = (memory[count][end] - memory[1][end]) / (count - 1)
                bench.add(
                    Figure(
                        case=CASE,
                        group=group,
                        name=f"memory a pair, {side}, {name}",
                        value=value / KIB,
                        unit="KiB",
                        at_most=None if most is None else most / KIB,
                    )
                )


def _memory(pair: Halves) -> tuple[int, int]:
    """Bytes that the sending and the receiving daemon take, with what they had without a pair taken off."""
    sender, receiver = (child.ask("usage") for child in pair.both)
    return sender["now"] - sender["idle"], receiver["now"] - receiver["idle"]
