"""
The demonstration: two hosts on one machine, each with a real daemon and a real QEMU.

The guest counts, prints each count on its console and sends it over the network.  Its host dies (``kill -9`` of QEMU
and of ftd); the standby takes over.  The consoles are not held back, the network is: what the first guest has printed
beyond the newest committed checkpoint is lost, and nobody outside has ever seen it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from twisted.trial.unittest import FailTest, SkipTest

from demo.story import Seen, Story
from tests.case import run as run_program
from tests.daemon import free_port, scratch_directory
from tests.interruptible import Interrupted, run, shielded
from tests.vm import guest as guests
from tests.vm import programs
from tests.vm.memory import memory_directory
from tests.vm.observer import Observer
from tests.vm.pair import PAIR, VmPair
from tests.vm.programs import QemuProgram
from tests.waiting import pause, reactor, until

#: Turns of the guest's idle loop: a count every few milliseconds, which can be read.
_DELAY = 6_000_000

#: From one checkpoint to the next.
_INTERVAL = "100ms"

#: How far the guest that has gone on gets beyond where the other one was.
_GOES_ON = 5

#: By how much the console is ahead of the outside when the host dies, if that is so within this many seconds.
_AHEAD, _AHEAD_WITHIN = 3, 2.0

#: Seconds between two looks at how far it is ahead.
_LOOK = 0.002

_STEPS = re.compile(r"promoted, the guest runs: (.*)")


class Told:
    """What the person in front of it reads."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._begin = reactor.seconds()

    def step(self, what: str) -> None:
        """Something happens."""
        self.console.print(f"[dim]{reactor.seconds() - self._begin:5.1f} s[/]  {what}", soft_wrap=True)

    def detail(self, what: str) -> None:
        """Something to know of it."""
        self.console.print(f"         {what}", soft_wrap=True)


@asynccontextmanager
async def two_hosts(program: QemuProgram) -> AsyncIterator[tuple[VmPair, Observer]]:
    """The machines and daemons, and what is outside; all of it goes again."""
    directory, memory = scratch_directory(), memory_directory()
    observer = Observer(directory / "outside")
    port, logs = free_port(), iter(("host-a.log", "host-b.log"))
    uplink = f"unix:{observer.path}"
    pair = VmPair(
        program,
        guests.counter(has_nic=True, delay=_DELAY),
        directory=directory,
        memory=memory,
        logs=lambda: directory / next(logs),
        uplinks=(uplink, uplink),
        a_keys={"link": f"tcp:127.0.0.1:{port}", "qemu-interval": _INTERVAL},
        # The count is read out of the standby's memory, which has to be there for that.
        b_keys={"link": f"tcp:{port}:interface=127.0.0.1", "ack": "applied"},
    )
    try:
        await observer.listen()
        yield pair, observer
    finally:
        with shielded():
            await pair.remove()
            await observer.stop()
            for each in (directory, memory):
                shutil.rmtree(each, ignore_errors=True)


async def show(program: QemuProgram, seconds: float, told: Told) -> Story:
    """All of it."""
    async with two_hosts(program) as (pair, observer):
        await start(pair, told)
        await watch(pair, observer, seconds, told)
        killed_at = await kill(pair, told)
        committed = pair.standby.count_in_memory()
        asked = reactor.seconds() - killed_at
        await promote(pair, told)
        target = pair.primary.last_count() + _GOES_ON
        await until(lambda: pair.standby.last_count() >= target, lambda: f"it counts; {pair.standby.serial()[-100:]!r}")
        await until(
            lambda: observer.frames and observer.frames[-1].at > killed_at and observer.counts()[-1] > committed,
            "the outside sees the guest again",
        )
        seen = [Seen(frame.count, frame.at - killed_at) for frame in observer.frames if frame.count is not None]
        return Story(
            on_a=pair.primary.counts(), on_b=pair.standby.counts(), committed=committed, seen=seen, asked=asked
        )


async def start(pair: VmPair, told: Told) -> None:
    """The machines, the daemons, the first full checkpoint."""
    told.step("two hosts on this machine, each with [bold]QEMU[/] and [bold]ftd[/]: host-a runs a VM, host-b stands by")
    await pair.start()
    vm = await pair.protected()
    told.step("[bold green]protected[/]: host-b has a first full checkpoint, from now on what changes")
    mib = vm["ram_bytes"] >> 20
    tracking = vm["dirty_tracking"]
    told.detail(f"QEMU {vm['qemu_version']}, {mib} MiB of RAM, a checkpoint every {vm['interval_ms']:g} ms")
    why = (
        "" if tracking == "write-protect" else " (write-protect is faster; it needs Linux 6.7, and root or QEMU's user)"
    )
    told.detail(f"pages that were written are found by [bold]{tracking}[/]{why}")


async def watch(pair: VmPair, observer: Observer, seconds: float, told: Told) -> None:
    """The guest runs; on a terminal it is seen to."""
    told.step("the guest counts: on its console, and over the network, where ftd holds each frame until it is safe")
    end = reactor.seconds() + seconds
    with Live(console=told.console, transient=True, refresh_per_second=10) as live:
        while reactor.seconds() < end:
            if told.console.is_terminal:
                live.update(Text.from_markup(await at_a_glance(pair, observer)))
            await pause(0.1)
    await pair.until_checkpoints(1)
    await until(observer.counts, "the outside sees something")
    told.detail(await at_a_glance(pair, observer))
    end = reactor.seconds() + _AHEAD_WITHIN
    while pair.primary.last_count() - observer.counts()[-1] < _AHEAD and reactor.seconds() < end:
        await pause(_LOOK)


async def at_a_glance(pair: VmPair, observer: Observer) -> str:
    """One line."""
    vm = await pair.vm(pair.a)
    seen = (observer.counts() or [0])[-1]
    return (
        f"console {pair.primary.last_count():08x}, outside {seen:08x}; checkpoint {vm['checkpoint']},"
        f" stopped for {vm['pause_ms']['p50']:.1f} ms"
    )


async def kill(pair: VmPair, told: Told) -> float:
    """host-a dies; when."""
    killed_at: float = reactor.seconds()
    pair.primary.kill()
    pair.a.kill()
    told.step("[bold red]kill -9[/] of QEMU and of ftd on host-a, as if its power had failed")
    await pair.without_primary()
    told.detail(f"host-b knows after {(reactor.seconds() - killed_at) * 1000:.0f} ms that its primary is gone")
    return killed_at


async def promote(pair: VmPair, told: Told) -> None:
    """What a cluster manager does now."""
    told.step(f"[bold]ftdctl promote {PAIR}[/] on host-b, which is the cluster manager's to say")
    url = f"unix:{pair.b.directory / 'api'}"
    begin = reactor.seconds()
    output = await run_program(sys.executable, "-m", "ftd.cli", "--url", url, "promote", PAIR)
    for line in (output.out + output.err).decode().splitlines():
        told.detail(line)
    if output.status:
        raise click.ClickException("it was not promoted; see above")
    steps = _STEPS.search(pair.b.log())
    if steps is not None:
        told.detail(f"after {(reactor.seconds() - begin) * 1000:.0f} ms; ftd's part of that: {steps[1]}")


def conclude(story: Story, console: Console) -> None:
    """Both consoles side by side, what was lost, and the times."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("host-a prints", "host-b prints", "outside sees", ""):
        table.add_column(title, no_wrap=True)
    for row in story.rows():
        if row is None:
            table.add_row("…", "…", "", "")
            continue
        digits = f"{row.count:08x}"
        at = "" if row.seen_at is None else f"{row.seen_at * 1000:+.0f} ms"
        note = "newest committed checkpoint" if row.count == story.committed else ""
        note = "lost, and done again" if row.is_lost and row.on_b else note
        on_a = f"[red]{digits}[/]" if row.is_lost else digits
        table.add_row(on_a if row.on_a else "", f"[green]{digits}[/]" if row.on_b else "", at, f"[dim]{note}[/]")
    console.print()
    console.print(table)
    console.print()
    before, after = story.seen_before, story.seen_after
    lost = f"{_some(len(story.lost), 'count')} on its console" if story.lost else "nothing"
    console.print(f"Lost with host-a: [bold]{lost}[/].", soft_wrap=True)
    console.print(
        f"Of that the outside had seen: [bold]{len(story.seen_and_lost) or 'nothing'}[/]; it knew of counts up to"
        f" {before[-1].count:08x}, host-b goes on from {story.committed:08x}.",
        soft_wrap=True,
    )
    in_gate = max(0, after[0].count - before[-1].count - 1)
    if in_gate:
        console.print(
            f"{_some(in_gate, 'frame')} died on the way, as in any network; TCP would have sent them again.",
            soft_wrap=True,
        )
    if story.silence is not None:
        console.print(
            f"The outside saw nothing for {story.silence * 1000:.0f} ms: from its last frame of host-a to its first of"
            " host-b, with ftdctl's start in it.",
            soft_wrap=True,
        )
    for fault in story.faults:
        console.print(f"[bold red]This is not as it has to be:[/] {fault}", soft_wrap=True)


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="For how long the guest runs before its host dies.")
def main(seconds: float) -> None:
    """
    Kill a VM's host, and see it go on on another one.

    Everything runs on this machine and is gone at the end, Ctrl-C included.  It needs QEMU and nasm, which `make demo`
    installs where it is root on Debian.
    """
    # Where the fixtures keep what they make, wherever this is called from.
    os.chdir(Path(__file__).parents[1])
    told = Told()
    try:
        program = programs.system_qemu()
        story = run(lambda: show(program, seconds, told))
    except Interrupted as end:
        told.console.print("[dim]interrupted; nothing is left behind[/]")
        sys.exit(end.status)
    except (FailTest, SkipTest) as missing:
        raise click.ClickException(str(missing)) from missing
    except AssertionError as failed:
        raise click.ClickException(str(failed)) from failed
    conclude(story, told.console)
    sys.exit(bool(story.faults))


if __name__ == "__main__":
    main()
