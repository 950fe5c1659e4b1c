"""The first transaction of a pair, into memory that nobody has touched, beside the touching alone."""

from __future__ import annotations

from bench.cases.frames import memory_figures
from bench.child import ChildError
from bench.figures import of_ratios, of_samples
from bench.setting import MIB, Bench, halves, rivals, stream

CASE = "cold"

#: Rate over that at which fresh memory can be touched.
_OF_TOUCH = 0.9


def measure(bench: Bench) -> None:
    """New processes every time."""
    size = bench.pick(256 * MIB, 32 * MIB)
    group = f"{size // MIB} MiB"
    cold: list[float] = []
    touched: list[float] = []
    warm: list[float] = []
    memory = (0, 0)
    for _ in range(bench.pick(5, 1)):
        bench.say(f"{CASE}: {group}")
        try:
            with rivals(1) as (rival,), halves(keys={"frame_size": str(MIB)}) as pair:
                touched.append(size / 1e9 / rival.ask("touch", size=size)["seconds"])
                # So much that the code has run and the sender's own memory is there; nothing for the receiver's.
                stream(pair, MIB, MIB, 1)
                cold.append(stream(pair, MIB, size, 1).rate)
                sender, receiver = (child.ask("usage") for child in pair.both)
                # What is kept of the first is one MiB.
                memory = sender["peak"] - sender["idle"], receiver["peak"] - receiver["idle"] + size
                stream(pair, MIB, size, 2)
                warm.append(stream(pair, MIB, size, 1).rate)
        except ChildError as error:
            bench.lacks(CASE, group, error)
            return
    bench.add(
        of_samples(CASE, group, "fresh memory, touched", "GB/s", touched, note="a byte a page"),
        of_samples(CASE, group, "ftd, first transaction", "GB/s", cold),
        of_samples(CASE, group, "ftd, warm", "GB/s", warm),
        of_ratios(CASE, group, "first transaction / touching", cold, touched, at_least=_OF_TOUCH),
        *memory_figures(CASE, group, memory, size),
    )
