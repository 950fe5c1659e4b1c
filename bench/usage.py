"""What a process has taken of the machine: CPU time and memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

#: Bytes of the memory that is sent: more than a processor keeps in its caches.
SOURCE = 64 << 20

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_time() -> float:
    """Seconds of CPU that this process has taken, in the kernel and out of it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_time_of(pid: int) -> float:
    """The same of another process, in steps of a clock tick (10 ms)."""
    # The name in parentheses may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_of(pid: int | str = "self") -> dict[str, int]:
    """Bytes that are resident: ``now``, and ``peak``, the most since the start or the last `forget_peak`."""
    names = {"VmRSS": "now", "VmHWM": "peak"}
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[names[name]] = int(value.removesuffix("kB")) * 1024
    return found


def resident_memory() -> memoryview:
    """`SOURCE` bytes that are not all the same and that are there, and no more than that at any time."""
    source = memoryview(bytearray(SOURCE))
    pattern = os.urandom(1 << 20)
    for at in range(0, SOURCE, len(pattern)):
        source[at : at + len(pattern)] = pattern
    return source


def forget_peak() -> None:
    """The peak of this process starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
