"""Whole daemons over HTTP: a checkpoint goes in, to memory and to disk, and comes out again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from bench.child import Child, ChildError
from bench.daemons import WholeDaemon, daemons
from bench.figures import Figure, of_ratios, of_samples
from bench.setting import GIB, MIB, Bench, pump, rivals, scratch, size_text

CASE = "checkpoint"

#: Targets: PUT over the pump, PUT to a directory over dd.
_OF_PUMP, _OF_DISK = 0.4, 0.7

#: Bytes a daemon may take beside the checkpoints that it holds.
_MEMORY = 64 * MIB

_PIECE = MIB

_SINKS = {
    "memory": {"sink": "memory", "keep": "1", "memory_limit": "16GiB"},
    "directory": {"sink": "directory", "keep": "1", "ack": "applied"},
}


def measure(bench: Bench) -> None:
    """All in one run of the two daemons."""
    size = bench.pick(GIB, 16 * MIB)
    body = memoryview(bytearray(os.urandom(MIB) * 16))
    group = size_text(size)
    found: dict[str, list[float]] = {}
    with rivals() as (sender, receiver), daemons(_SINKS) as (near, far), scratch() as directory:
        bench.say(f"{CASE}: {group}")
        idle = far.resident
        near.put("memory", body, 1)
        near.put("directory", body, 1)
        for number in range(bench.pick(4, 1)):
            for name, value in _round(bench, (sender, receiver), near, far, body, size, directory).items():
                # Cold memory is the case "cold".
                if number or bench.short:
                    found.setdefault(name, []).append(value)
        memory = _memory(near, far, body, size, idle)
    more: dict[str, float | None] = {"PUT, memory": _OF_PUMP}
    for name in ("bare pump", "dd conv=fsync", "PUT, memory", "PUT, directory", "GET, memory", "GET, directory"):
        if name in found:
            bench.add(of_samples(CASE, group, name, "GB/s", found[name]))
    for name in ("CPU, sending daemon", "CPU, receiving daemon"):
        bench.add(of_samples(CASE, group, f"{name}, PUT to memory", "s/GB", found[name]))
    for name in ("PUT, memory", "PUT, directory", "GET, memory", "GET, directory"):
        target = more.get(name)
        bench.add(of_ratios(CASE, group, f"{name} / pump", found[name], found["bare pump"], at_least=target))
    if "dd conv=fsync" in found:
        put, dd = found["PUT, directory"], found["dd conv=fsync"]
        bench.add(of_ratios(CASE, group, "PUT, directory / dd", put, dd, at_least=_OF_DISK))
    for name, value in memory.items():
        bench.add(
            Figure(
                case=CASE,
                group=group,
                name=name,
                value=value / MIB,
                unit="MiB",
                at_most=_MEMORY / MIB,
                note="peak during PUT, beside the checkpoints",
            )
        )


def _round(
    bench: Bench,
    bare: tuple[Child, Child],
    near: WholeDaemon,
    far: WholeDaemon,
    body: memoryview,
    size: int,
    directory: Path,
) -> dict[str, float]:
    """GB/s of everything, once."""
    giga, times = size / 1e9, size // len(body)
    found = {"bare pump": pump(*bare, size, _PIECE).rate}
    cpu = near.cpu, far.cpu
    found["PUT, memory"] = giga / near.put("memory", body, times)
    found["CPU, sending daemon"] = (near.cpu - cpu[0]) / giga
    found["CPU, receiving daemon"] = (far.cpu - cpu[1]) / giga
    found["GET, memory"] = giga / far.get("memory", size)
    try:
        found["dd conv=fsync"] = giga / _dd(directory, body, times)
    except ChildError as error:
        bench.lacks(CASE, "dd", error)
    found["PUT, directory"] = giga / near.put("directory", body, times)
    found["GET, directory"] = giga / far.get("directory", size)
    return found


def _dd(directory: Path, body: memoryview, times: int) -> float:
    """Seconds that dd takes for a file of the same bytes on the disk that the daemons use."""
    dd = shutil.which("dd")
    if dd is None:
        raise ChildError("there is no dd here")
    path = directory / "dd"
    # They are in memory before.
    descriptor = os.memfd_create("bench")
    with open(descriptor, "wb", buffering=0) as source:
        for _ in range(times):
            source.write(body)
        command = [dd, f"if=/proc/self/fd/{descriptor}", f"of={path}", f"bs={MIB}", "conv=fsync"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, pass_fds=[descriptor])
        taken = time.perf_counter() - began
    if path.stat().st_size != len(body) * times:
        raise ChildError("dd has written something else")
    path.unlink()
    return taken


def _memory(near: WholeDaemon, far: WholeDaemon, body: memoryview, size: int, idle: int) -> dict[str, float]:
    """
    How much more memory a large checkpoint takes than a small one does in the sending daemon; than none, and the one
    that is kept, and the one that comes, in the receiving one.
    """
    for daemon in (near, far):
        daemon.forget_peak()
    near.put("memory", body, 1)
    before = near.peak
    near.put("memory", body, size // len(body))
    near.put("memory", body, size // len(body))
    return {"memory, sending daemon": near.peak - before, "memory, receiving daemon": far.peak - idle - 2 * size}
