"""What it costs to protect a VM: the bench of its own in `bench.vm`, as one case of all."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.figures import Figure
from bench.setting import Bench
from tests.daemon import TREE, environment

CASE = "vm"


def measure(bench: Bench) -> None:
    """All of it; what it has to say meanwhile goes to where this does."""
    quiet = ["--quiet"] if bench.progress.quiet else []
    short = ["--short", "--ram", "128"] if bench.short else []
    command = [sys.executable, "-m", "bench.vm", "--json", *quiet, *short]
    ran = subprocess.run(command, cwd=TREE, env=environment(), stdout=subprocess.PIPE, check=False)
    try:
        found = json.loads(ran.stdout)["figures"]
    except ValueError:
        bench.lacks(CASE, "", "it needs QEMU, nasm and root; python -m bench vm says what is missing")
        return
    for figure in found:
        bench.add(
            Figure(
                case=CASE,
                group=f"{figure['part']}, {figure['guest']}",
                name=figure["name"],
                value=figure["value"],
                unit=figure["unit"],
                samples=figure["samples"],
                at_most=figure["limit"],
                note=figure["note"],
            )
        )
