"""What readers of the event stream cost a pair that runs."""

from __future__ import annotations

from bench.figures import of_ratios, of_samples
from bench.setting import KIB, Bench, halves, rivals

CASE = "events"

_READERS = 100
_SIZE = 4 * KIB


def measure(bench: Bench) -> None:
    """Without readers and with them, in turns."""
    count = bench.pick(_READERS, 10)
    seconds = bench.pick(2.0, 0.3)
    group = f"{count} readers"
    bench.say(f"{CASE}: {group}")
    alone: list[float] = []
    watched: list[float] = []
    read: list[float] = []
    ends: list[float] = []
    with halves() as pair, rivals(1) as (reader,):

        def commits() -> float:
            answer = pair.primary.ask("commits", size=_SIZE, window=1, seconds=seconds)
            ends.append(answer["p99"] * 1e6)
            return float(answer["counts"][0] / answer["seconds"])

        commits()
        ends.clear()
        for _ in range(bench.pick(3, 1)):
            alone.append(commits())
            ends.clear()
            reader.ask("read_events", path=pair.sockets[0], count=count)
            before = reader.ask("events_read")["bytes"]
            watched.append(commits())
            read.append((reader.ask("events_read")["bytes"] - before) / seconds / 1e6)
            reader.ask("leave")
        bench.add(
            of_samples(CASE, group, "commits, nobody reads", "/s", alone),
            of_samples(CASE, group, "commits, all read", "/s", watched),
            of_ratios(CASE, group, "all read / nobody reads", watched, alone),
            of_samples(CASE, group, "events, to all readers", "MB/s", read),
            of_samples(CASE, group, "p99 of a commit, all read", "µs", ends),
        )
