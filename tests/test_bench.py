"""``python -m bench``: that each case measures what it says, and that figures are judged and shown rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from bench import stripped
from bench.__main__ import CASES, main
from bench.figures import (
    BEGIN,
    END,
    Figure,
    Missing,
    chart,
    markdown,
    median,
    of_ratios,
    of_samples,
    put_into,
    quantile,
    show,
)
from tests.case import EndToEndCase
from tests.daemon import TREE, environment
from tests.waiting import until

#: Seconds for a short run of a case on the slowest machine.
_LONGEST = 100.0


class CaseTests(EndToEndCase):
    """A short run of each case, whose figures say nothing about the machine."""

    async def figures_of(self, case: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What a case has measured: all of it, and no figure that is nothing."""
        temporary, output, figures = self.scratch(), Path(self.mktemp()), Path(self.mktemp())
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench", case, "--short", "--json", str(figures.absolute())],
                cwd=TREE,
                env={**environment(), "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.addCleanup(_kill, process)
        await until(lambda: process.poll() is not None, lambda: f"it ends: {output.read_text()}", _LONGEST)
        # Whether targets are reached is not for a machine that runs other tests; that nothing is missing is.
        self.assertIn(process.returncode, (0, 1), output.read_text())
        written = json.loads(figures.read_text())
        self.assertEqual(written["missing"], [])
        self.assertEqual({figure["case"] for figure in written["figures"]}, {case})
        found = {figure["name"]: figure for figure in written["figures"]}
        for name in names:
            self.assertIn(name, found)
            self.assertGreater(found[name]["value"], 0.0, name)
        self.assertEqual(list(temporary.iterdir()), [])
        return found

    async def test_frames(self) -> None:
        names = ("bare pump", "stock transport", "ftd", "ftd / pump", "ftd / stock", "CPU, sending", "CPU, receiving")
        found = await self.figures_of("frames", names)
        ratio = found["ftd"]["value"] / found["bare pump"]["value"]
        # Of the last group; the ratio of medians of one round is the median of ratios.
        self.assertAlmostEqual(found["ftd / pump"]["value"], ratio, places=5)
        self.assertIn("memory, receiving", found)

    async def test_transactions(self) -> None:
        names = ("ping-pong: p50", "window 1, no spin: p50", "window 1, spin 100us: p99", "window 16, no spin: commits")
        found = await self.figures_of("transactions", (*names, "window 16 / window 1"))
        # Of the last group, which is the one through the proxy: nothing is quicker than the delay.
        self.assertGreaterEqual(found["window 1, no spin: p50"]["value"], 10_000)

    async def test_pairs(self) -> None:
        names = ("commits, all pairs together", "commits / those of one pair", "slowest / fastest pair")
        await self.figures_of("pairs", names)

    async def test_checkpoint(self) -> None:
        names = ("PUT, memory / pump", "PUT, directory", "GET, memory / pump", "GET, directory", "PUT, directory / dd")
        await self.figures_of("checkpoint", names)

    async def test_cold(self) -> None:
        await self.figures_of("cold", ("fresh memory, touched", "first transaction / touching"))

    async def test_tls(self) -> None:
        await self.figures_of("tls", ("blocking ssl sockets", "ftd", "ftd / ssl sockets"))

    async def test_events(self) -> None:
        await self.figures_of("events", ("commits, nobody reads", "all read / nobody reads", "events, to all readers"))

    async def test_trace(self) -> None:
        await self.figures_of("trace", ("CPU time, calls there / calls removed",))

    async def test_limit(self) -> None:
        found = await self.figures_of("limit", ("slower / faster",))
        # Something comes through, and not all that could.
        self.assertLess(found["off: arrived / limit"]["value"], 50)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class CommandTests(SynchronousTestCase):
    """The command line."""

    def test_it_lists_its_cases(self) -> None:
        listed = CliRunner().invoke(main, ["--list"])
        self.assertEqual(listed.exit_code, 0)
        self.assertEqual([line.split()[0] for line in listed.output.splitlines()], list(CASES))

    def test_a_case_that_there_is_not(self) -> None:
        refused = CliRunner().invoke(main, ["frame"])
        self.assertEqual(refused.exit_code, 2)
        self.assertIn("there is no case frame; there are frames, transactions,", refused.output)


class FigureTests(SynchronousTestCase):
    """What is made of samples."""

    def figure(self, value: float, **target: float) -> Figure:
        """One with a target."""
        return Figure(case="frames", group="1 MiB", name="ftd / pump", value=value, unit="", **target)  # type: ignore[arg-type]

    def test_the_middle_and_the_end(self) -> None:
        self.assertEqual((median([3, 1, 2]), median([4, 1, 2, 3])), (2, 2.5))
        self.assertEqual(quantile(range(1000), 0.99), 990)
        self.assertEqual(quantile([5.0], 0.99), 5.0)

    def test_samples(self) -> None:
        figure = of_samples("frames", "1 MiB", "ftd", "GB/s", [3.0, 1.0, 2.0])
        self.assertEqual((figure.value, figure.low, figure.high, figure.samples), (2.0, 1.0, 3.0, 3))

    def test_ratios_are_of_the_same_round(self) -> None:
        figure = of_ratios("frames", "1 MiB", "ftd / pump", [1.0, 20.0, 300.0], [10.0, 100.0, 1000.0])
        self.assertEqual((figure.value, figure.low, figure.high), (0.2, 0.1, 0.3))
        self.assertRaises(ValueError, of_ratios, "frames", "1 MiB", "ftd / pump", [1.0], [10.0, 100.0])

    def test_a_target_is_reached_or_not(self) -> None:
        self.assertEqual([self.figure(value, at_least=2.0).is_reached for value in (1.9, 2.0)], [False, True])
        self.assertEqual([self.figure(value, at_most=2.0).is_reached for value in (2.0, 2.1)], [True, False])
        self.assertIsNone(self.figure(2.0).is_reached)

    def test_the_table_says_so(self) -> None:
        file = StringIO()
        figures = [self.figure(2.0, at_most=3.0), self.figure(4.0, at_most=3.0), self.figure(5.0)]
        show(figures, [Missing("vm", "", "there is no QEMU")], Console(file=file, width=120))
        lines = file.getvalue().splitlines()
        self.assertEqual(["PASS" in line for line in lines], [False, True, False, False, False])
        self.assertEqual(["FAIL" in line for line in lines], [False, False, True, False, False])
        self.assertIn("there is no QEMU", lines[-1])

    def test_the_page_says_so(self) -> None:
        figures = [self.figure(0.9, at_least=0.85), self.figure(0.8, at_least=0.85)]
        page = markdown(figures, [Missing("vm", "", "there is no QEMU")])
        self.assertIn(
            "| 1 MiB | ftd / pump | 0.9 |  | ≥ 0.85 | yes |\n|  | ftd / pump | 0.8 |  | ≥ 0.85 | **no** |", page
        )
        self.assertIn("Not measured: vm : there is no QEMU.", page)

    def test_a_page_keeps_what_is_around_the_figures(self) -> None:
        page = Path(self.mktemp())
        put_into(page, "all\n")
        self.assertEqual(page.read_text(), "all\n")
        page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
        for _ in range(2):
            put_into(page, "new\n")
            self.assertEqual(page.read_text(), f"# Before\n\n{BEGIN}\n\nnew\n\n{END}\n\nAfter\n")

    def test_a_page_without_a_place_for_them_is_theirs(self) -> None:
        page = Path(self.mktemp())
        page.write_text(f"old\n{BEGIN}\nand its end is missing\n")
        put_into(page, "new\n")
        self.assertEqual(page.read_text(), "new\n")

    def test_performance_has_a_place_for_them(self) -> None:
        text = (TREE / "docs" / "performance.md").read_text()
        self.assertLess(text.index(BEGIN), text.index(END))

    def test_the_chart_shows_how_far_it_is_to_the_target(self) -> None:
        figures = [self.figure(1.0, at_least=2.0), self.figure(1.0, at_most=2.0), self.figure(1.0)]
        half, beyond = chart(figures)
        self.assertEqual((half.count("█"), beyond.count("█")), (10, 40))
        self.assertEqual(half.index("│"), beyond.index("│"))


class StrippedTests(SynchronousTestCase):
    """The copy without trace calls."""

    def test_no_call_is_left_and_all_else_is(self) -> None:
        directory = Path(self.mktemp())
        count = stripped.make(directory)
        self.assertGreater(count, 5)
        sender = (directory / "ftd" / "wire" / "sender.py").read_text()
        self.assertNotIn(".ft_trans_", sender)
        self.assertIn("class SenderMachine(Session)", sender)
        # The events themselves can still be asked for.
        self.assertIn("ft_trans_put_buffer", (directory / "ftd" / "trace.py").read_text())
