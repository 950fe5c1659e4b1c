"""The command line of the benchmark of VMs: ``python -m bench vm``."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from twisted.trial.unittest import FailTest, SkipTest

from bench.vm import life, pauses, verified
from bench.vm.figures import Figure, show
from bench.vm.setting import Progress
from tests.interruptible import Interrupted, run
from tests.vm import programs
from tests.vm.programs import QemuProgram

PARTS = ("pause", "compare", "verify", "promotion", "memory")

#: Columns of the table where it goes into a file.
_WIDTH = 160

#: MiB.
GUESTS = (128, 512, 2048)


@attrs.frozen(kw_only=True)
class Plan:
    """
    How much of each part.

    :ivar pause: of part ``pause``.
    :ivar compare: of part ``compare``.
    :ivar verify: checkpoints.
    :ivar promotion: take-overs.
    :ivar memory: the numbers of checkpoints after which memory is looked at.
    """

    pause: pauses.Extent
    compare: pauses.Extent
    verify: int
    promotion: int
    memory: tuple[int, int]


WHOLE = Plan(
    pause=pauses.Extent(rounds=4, pauses=25, seconds=2.0),
    compare=pauses.Extent(rounds=3, pauses=12, seconds=0.0),
    verify=1000,
    promotion=20,
    memory=(200, 2000),
)

#: A look, not a measurement.
SHORT = Plan(
    pause=pauses.Extent(rounds=2, pauses=5, seconds=0.5),
    compare=pauses.Extent(rounds=2, pauses=5, seconds=0.0),
    verify=50,
    promotion=2,
    memory=(20, 60),
)


async def measure(
    parts: Sequence[str], guests: Sequence[int], plan: Plan, program: QemuProgram, progress: Progress
) -> list[Figure]:
    """All figures of the parts."""
    found: list[Figure] = []
    for part, dirty, extent in (("pause", "write-protect", plan.pause), ("compare", "compare", plan.compare)):
        if part in parts:
            for ram in guests:
                found += await pauses.measure(program, ram, dirty, extent, progress)
    if "verify" in parts:
        found += await verified.measure(program, plan.verify, progress)
    if "promotion" in parts:
        found += await life.measure_promotion(program, plan.promotion, progress)
    if "memory" in parts:
        found += await life.measure_memory(program, *plan.memory, progress)
    return found


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part; may be repeated.")
@click.option("--ram", "guests", multiple=True, type=int, help="Only guests of so many MiB; may be repeated.")
@click.option("--short", is_flag=True, help="A look at everything, with too few samples for a judgement.")
@click.option("--qemu-10", is_flag=True, help="With the QEMU 10 that .ci/install-programs has unpacked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.option("--quiet", is_flag=True, help="Say nothing of what is done.")
def main(
    parts: tuple[str, ...], guests: tuple[int, ...], short: bool, qemu_10: bool, as_json: bool, quiet: bool
) -> None:
    """
    Measure what it costs to protect a VM with ftd, here and now.

    Exits with 1 if a target is not reached.  It needs QEMU, nasm and root, and what the largest guest has in memory six
    times.
    """
    # Where the tests' fixtures keep what they make, wherever this is called from.
    os.chdir(Path(__file__).parents[2])
    progress = Progress(quiet)
    about = machine()
    begin = time.monotonic()
    try:
        program = programs.qemu_10() if qemu_10 else programs.system_qemu()
        plan = SHORT if short else WHOLE
        found = run(lambda: measure(parts or PARTS, guests or GUESTS, plan, program, progress))
    except Interrupted as end:
        sys.exit(end.status)
    except (FailTest, SkipTest) as missing:
        raise click.ClickException(str(missing)) from missing
    about["seconds"] = round(time.monotonic() - begin, 1)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    if as_json:
        json.dump({"machine": about, "figures": [figure.to_json() for figure in found]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        show(found, console)
        load = f"{about['cores']} cores, load {about['load']:.1f} at the start"
        console.print(f"\nLinux {about['kernel']}, {load}, {about['seconds']:.0f} s")
    sys.exit(any(figure.is_reached is False for figure in found))


if __name__ == "__main__":
    main()
