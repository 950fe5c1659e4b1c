"""``python -m bench vm``: that it measures, and that it judges what it has measured rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from bench.vm.bare import stopped_times
from bench.vm.figures import Figure, median, milliseconds, p99, show
from tests.daemon import TREE, environment
from tests.vm import programs
from tests.vm.case import VmCase
from tests.waiting import until

#: Seconds for a short run on the slowest machine.
LONGEST = 180.0


class BenchTests(VmCase):
    """A short run, whose figures say nothing about the machine."""

    async def test_pauses_and_missed_pages(self) -> None:
        programs.program("nasm")
        temporary, output = self.scratch(), Path(self.mktemp())
        parts = ("--part", "pause", "--part", "verify")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench", "vm", "--short", "--quiet", "--json", "--ram", "128", *parts],
                cwd=TREE,
                env={**environment(), "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.addCleanup(_kill, process)
        await until(lambda: process.poll() is not None, lambda: f"it ends: {output.read_text()}", LONGEST)
        # Whether the pause is short enough is not for a machine that runs other tests.
        self.assertIn(process.returncode, (0, 1), output.read_text())
        figures = {figure["name"]: figure for figure in json.loads(output.read_text())["figures"]}
        for name in ("bare, unix:", "bare, fd:", "ftd, write-protect", "stopped, by the timer", "CPU a checkpoint"):
            self.assertGreater(figures[name]["value"], 0.0, name)
        self.assertGreaterEqual(figures["dirty pages"]["value"], 256)
        for name in ("missed, 256 pages a turn", "missed, as fast as it can"):
            self.assertEqual((figures[name]["value"], figures[name]["reached"]), (0, True), name)
        self.assertEqual(list(temporary.iterdir()), [])


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class FigureTests(SynchronousTestCase):
    """What is made of samples."""

    def figure(self, value: float, limit: float | None) -> Figure:
        """One with a target."""
        return Figure(part="pause", guest="128 MiB", name="pause", value=value, limit=limit)

    def test_the_middle_and_the_end(self) -> None:
        self.assertEqual((median([3, 1, 2]), median([4, 1, 2, 3])), (2, 3))
        self.assertEqual(p99(range(1000)), 990)
        self.assertEqual(p99([5.0]), 5.0)

    def test_samples_are_shown_in_milliseconds(self) -> None:
        figure = milliseconds("pause", "128 MiB", "pause", [0.001, 0.002, 0.009])
        self.assertEqual((figure.value, figure.p99, figure.samples, figure.unit), (2.0, 9.0, 3, "ms"))

    def test_a_target_is_reached_or_not(self) -> None:
        self.assertIs(self.figure(2.0, 2.0).is_reached, True)
        self.assertIs(self.figure(2.1, 2.0).is_reached, False)
        self.assertIsNone(self.figure(2.1, None).is_reached)

    def test_the_table_says_so(self) -> None:
        file = StringIO()
        show([self.figure(2.0, 3.0), self.figure(4.0, 3.0), self.figure(5.0, None)], Console(file=file, width=120))
        lines = file.getvalue().splitlines()
        self.assertEqual(["PASS" in line for line in lines], [False, True, False, False])
        self.assertEqual(["FAIL" in line for line in lines], [False, False, True, False])

    def test_how_long_a_guest_stood_still(self) -> None:
        def event(name: str, seconds: int, microseconds: int) -> dict[str, object]:
            return {"event": name, "timestamp": {"seconds": seconds, "microseconds": microseconds}}

        events = [
            event("RESUME", 1, 0),
            event("STOP", 9, 999_000),
            event("MIGRATION", 9, 999_500),
            event("RESUME", 10, 1_000),
            event("STOP", 11, 0),
        ]
        [time] = stopped_times(events)
        self.assertAlmostEqual(time, 0.002, places=5)
