"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.cases import (
    checkpoint,
    cold,
    events,
    frames,
    limit,
    pairs,
    tls,
    trace,
    transactions,
    virtual_machine,
)
from bench.child import ChildError
from bench.figures import markdown, put_into, show
from bench.isolated import CONGESTION_CONTROL
from bench.setting import Bench
from tests.daemon import TREE

#: In the order in which they are measured.
CASES: Mapping[str, Any] = {
    module.CASE: module
    for module in (
        frames,
        transactions,
        pairs,
        checkpoint,
        cold,
        tls,
        events,
        trace,
        limit,
        virtual_machine,
    )
}

#: Columns of the table where it goes into a file.
_WIDTH = 180

#: Where figures go; as whoever names it sees it, though the bench works elsewhere.
_FILE = click.Path(dir_okay=False, writable=True, resolve_path=True, path_type=Path)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "congestion_control": CONGESTION_CONTROL,
    }


def _commit() -> str:
    command = ["git", "-C", str(TREE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(names: list[str], bench: Bench) -> None:
    """All figures of the cases; one that cannot be measured does not keep the others from it."""
    for name in names:
        run: Callable[[Bench], None] = CASES[name].measure
        try:
            run(bench)
        except ChildError as error:
            bench.lacks(name, "", error)


def _list(context: click.Context, _parameter: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        for name, module in CASES.items():
            click.echo(f"{name:14}{(module.__doc__ or '').strip().splitlines()[0]}")
        context.exit()


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option(
    "--list", is_flag=True, callback=_list, is_eager=True, expose_value=False, help="Say what cases there are."
)
@click.option("--short", is_flag=True, help="A look at everything, with too few samples for a judgement.")
@click.option("--json", "json_file", type=_FILE, help="All figures, into this file too.")
@click.option(
    "--markdown",
    "markdown_file",
    type=_FILE,
    help="Tables and a chart, into this file; docs/performance.md has a place for them.",
)
@click.option("--quiet", is_flag=True, help="Say nothing of what is done.")
def main(
    names: tuple[str, ...],
    short: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    quiet: bool,
) -> None:
    """
    Measure what ftd does with this machine, beside the least that does the same.

    Without a NAME everything, in about ten minutes.  `vm` as the first NAME takes options of its own: see `vm --help`.

    Exits with 1 if a target is missed; with 2 if something could not be measured.
    """
    for name in names:
        if name not in CASES:
            raise click.UsageError(f"there is no case {name}; there are {', '.join(CASES)}")
    # Where what the tests make is kept, wherever this is called from.
    os.chdir(TREE)
    bench = Bench(short, Console(stderr=True, quiet=quiet, highlight=False))
    about = machine()
    began = time.monotonic()
    measure(list(names or CASES), bench)
    about["seconds"] = round(time.monotonic() - began, 1)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    show(bench.figures, bench.missing, console)
    where = (
        f"Linux {about['kernel']}, Python {about['python']}, {about['cores']} cores,"
        f" load {about['load']:.1f} at the start, {about['seconds']:.0f} s, {about['commit']}"
    )
    console.print(f"\n{where}")
    if json_file is not None:
        figures = [figure.to_json() for figure in bench.figures]
        gaps = [{"case": gap.case, "group": gap.group, "why": gap.why} for gap in bench.missing]
        everything = {"machine": about, "short": short, "figures": figures, "missing": gaps}
        json_file.write_text(json.dumps(everything, indent=1) + "\n")
    if markdown_file is not None:
        put_into(markdown_file, f"{where}\n\n{markdown(bench.figures, bench.missing)}")
    if any(figure.is_reached is False for figure in bench.figures):
        sys.exit(1)
    sys.exit(2 if bench.missing else 0)


def run(arguments: list[str]) -> None:
    """The program: the bench of VMs has options of its own."""
    if arguments[:1] == ["vm"]:
        from bench.vm.__main__ import main as vm

        vm(arguments[1:], prog_name="python -m bench vm")
    main(arguments, prog_name="python -m bench")


if __name__ == "__main__":
    run(sys.argv[1:])
