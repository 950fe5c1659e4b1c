"""``bandwidth-limit``: what arrives in two seconds, and how pairs share."""

from __future__ import annotations

import time

from bench.child import ChildError
from bench.figures import RATIO, Figure
from bench.setting import GIB, KIB, MIB, Bench, Halves, halves, size_text

CASE = "limit"

#: How far what arrives may be from the figure.
_OFF = 0.05

_SECONDS = 2.0

#: Bytes per second, and the frame size.
_RATES = ((100 * KIB, 4 * KIB), (10 * MIB, 32 * KIB), (10 * MIB, 4 * MIB), (100 * MIB, 256 * KIB), (GIB, MIB))


def measure(bench: Bench) -> None:
    """Each alone; changed while it runs; two pairs with one limit."""
    for rate, frame in bench.pick(_RATES, ((10 * MIB, 32 * KIB),)):
        group = f"{size_text(rate)}/s, {size_text(frame)} frames"
        bench.say(f"{CASE}: {group}")
        try:
            with halves(keys=_keys(frame), sending={"bandwidth_limit": str(rate)}) as pair:
                [arrived] = _arrived(bench, pair)
                bench.add(_accuracy(group, "arrived / limit", arrived / rate))
                pair.primary.ask("limit", rate=rate // 2)
                [arrived] = _arrived(bench, pair, is_running=True)
                bench.add(_accuracy(group, "arrived / limit, halved while it runs", arrived / (rate // 2)))
        except ChildError as error:
            bench.lacks(CASE, group, error)
    shared: tuple[str, dict[str, str], dict[str, str], int] = (
        "the daemon has 20 MiB/s",
        {},
        {"bandwidth-limit": "20MiB"},
        10 * MIB,
    )
    own: tuple[str, dict[str, str], dict[str, str], int] = (
        "each has 10 MiB/s",
        {"bandwidth_limit": "10MiB"},
        {},
        10 * MIB,
    )
    for name, sending, daemon, each in bench.pick((own, shared), (shared,)):
        group = f"2 pairs, {name}"
        bench.say(f"{CASE}: {group}")
        try:
            with halves(2, keys=_keys(64 * KIB), sending=sending, daemon=daemon) as pair:
                both = _arrived(bench, pair)
                bench.add(_accuracy(group, "both together / limit", sum(both) / (2 * each)))
                slowest = min(both) / max(both)
                bench.add(
                    Figure(case=CASE, group=group, name="slower / faster", value=slowest, unit=RATIO, at_least=1 - _OFF)
                )
        except ChildError as error:
            bench.lacks(CASE, group, error)


def _keys(frame: int) -> dict[str, str]:
    return {"frame_size": str(frame), "max_transaction": "1024TiB"}


def _arrived(bench: Bench, pair: Halves, is_running: bool = False) -> list[float]:
    """Bytes per second that came to each pair."""
    if not is_running:
        pair.primary.ask("flood", piece=256 * KIB)
    # What a bucket or a socket has at the start is not the rate.
    time.sleep(0.5)
    before = pair.secondary.ask("traffic")
    time.sleep(bench.pick(_SECONDS, 0.5))
    after = pair.secondary.ask("traffic")
    seconds = after["at"] - before["at"]
    return [(after["pairs"][name][1] - before["pairs"][name][1]) / seconds for name in before["pairs"]]


def _accuracy(group: str, name: str, ratio: float) -> Figure:
    return Figure(
        case=CASE,
        group=group,
        name=f"off: {name}",
        value=abs(ratio - 1) * 100,
        unit="%",
        at_most=_OFF * 100,
        note=f"{ratio:.3f}",
    )
