"""Numbers and foreign text as people read them on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime


def size(count: int) -> str:
    """Bytes in a unit that leaves at most three digits before the point: ``512 B``, ``34.5 MiB``."""
    if count < 1024:
        return f"{count} B"
    amount = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def frames(count: int) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count} frame{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in one unit: ``12 ms``, ``3.4 s``, ``5 min``, ``2 h``, ``4 d``."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def milliseconds(count: float) -> str:
    """A time that is short as a rule: ``0.4 ms``, ``12 ms``, ``1.5 s``."""
    return f"{max(count, 0):.1f} ms" if count < 10 else duration(count / 1000)


def age(seconds: float) -> str:
    """How long ago: ``now`` up to a second, which the clocks of two machines easily differ by."""
    return "now" if seconds < 1 else f"{duration(round(seconds))} ago".replace(".0 s", " s")


def local_time(seconds: float) -> str:
    """Unix seconds as the wall clock shows them here."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def timestamp(seconds: float) -> str:
    """Unix seconds in the form of QEMU's ``-msg timestamp=on``, in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain(text: str) -> str:
    """Foreign text with its control characters escaped, so that it cannot take the terminal over."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
