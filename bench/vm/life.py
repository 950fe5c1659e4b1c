"""Parts ``promotion`` and ``memory``: how soon the standby's guest runs, and whether the daemons grow."""

from __future__ import annotations

import time
from pathlib import Path

from bench.vm.figures import Figure, milliseconds
from bench.vm.setting import DIRTY, Pair, Progress, counter, size
from tests.daemon import Daemon
from tests.vm.programs import QemuProgram
from tests.waiting import pause, until

#: MiB of the guests of both parts.
RAM = 128

#: Milliseconds from the request to the guest running.
PROMOTION_LIMIT = 100.0

#: By how much memory may grow.
GROWTH = 0.05

#: Seconds between two looks at what the guest prints.
_LOOK = 0.0005

#: Seconds in which it has to print something.
_PATIENCE = 10.0


async def measure_promotion(program: QemuProgram, times: int, progress: Progress) -> list[Figure]:
    """Kill the primary, promote the standby; again and again."""
    guest, part = size(RAM), "promotion"
    answered, printed = [], []
    progress.say(f"promotion: {times} times, {guest}")
    async with Pair(program, counter(RAM), starts_standby=True) as pair:
        vm = pair.vm
        for number in range(times):
            await vm.until_checkpoints(3)
            await vm.kill_primary()
            before = len(vm.standby.serial())
            begin = time.perf_counter()
            answer = await vm.post(vm.b, "promote")
            answered.append(time.perf_counter() - begin)
            assert answer.status == 200, answer
            end = begin + _PATIENCE
            while len(vm.standby.serial()) == before:
                assert time.perf_counter() < end, "the guest prints nothing"
                await pause(_LOOK)
            printed.append(time.perf_counter() - begin)
            vm.standby.counts()
            if number + 1 < times:
                await _start_over(pair)
            if (number + 1) % 5 == 0:
                progress.say(f"promotion: {number + 1} of {times}")
    return [
        milliseconds(
            part,
            guest,
            "promotion",
            answered,
            limit=PROMOTION_LIMIT,
            note="from the request to its answer, which says that the guest runs",
        ),
        milliseconds(part, guest, "first output", printed, note="from the request; seen in the file of its console"),
    ]


async def _start_over(pair: Pair) -> None:
    """What ran goes, and there is a primary again with a standby that waits."""
    vm = pair.vm
    answer = await vm.post(vm.b, "demote")
    assert answer.status == 200, answer
    vm.primary.remove()
    vm.primary.start()
    vm.a.launch()
    await until(vm.a.answers, "the daemon answers")
    await vm.protected()


async def measure_memory(program: QemuProgram, first: int, last: int, progress: Progress) -> list[Figure]:
    """The daemons' memory after so many checkpoints, and after so many more."""
    guest = size(RAM)
    found = []
    async with Pair(program, counter(RAM), interval=1) as pair:
        vm = pair.vm
        daemons = {"primary": vm.a, "standby": vm.b}
        begin = (await vm.vm(vm.a))["checkpoint"]
        sizes: dict[int, dict[str, tuple[int, int]]] = {}
        for count in (first, last):
            progress.say(f"memory: {guest}, {DIRTY} pages, until checkpoint {count}")
            while (await vm.vm(vm.a))["checkpoint"] - begin < count:
                await pause(0.25)
            sizes[count] = {name: (daemon.resident(), _own(daemon)) for name, daemon in daemons.items()}
        for name in daemons:
            (before, own_before), (after, own_after) = (sizes[count][name] for count in (first, last))
            note = (
                f"after {first} checkpoints {_mib(before)}, after {last} {_mib(after)};"
                f" without the guest's RAM {_mib(own_before)}, {_mib(own_after)}"
            )
            found.append(
                Figure(
                    part="memory",
                    guest=guest,
                    name=f"memory, {name}",
                    value=after / before,
                    unit="",
                    note=note,
                    limit=1 + GROWTH,
                )
            )
    return found


def _own(daemon: Daemon) -> int:
    """Bytes that are nobody else's: neither libraries nor files that are mapped."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
