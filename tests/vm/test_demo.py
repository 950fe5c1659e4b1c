"""``make demo``'s program: what it shows, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from demo.story import Row, Seen, Story
from tests.daemon import environment
from tests.program import Program
from tests.vm import programs
from tests.vm.case import VmCase
from tests.waiting import until

#: Seconds for all of it on the slowest machine.
LONGEST = 180.0


class DemoTests(VmCase):
    """The program as it is run by make."""

    def setUp(self) -> None:
        super().setUp()
        programs.program("nasm")
        # Everything that it makes outside of the tree is in here, or has its process id in its name.
        self.temporary = self.scratch()

    def environ(self) -> dict[str, str]:
        """What it gets around it."""
        return {**environment(), "TMPDIR": str(self.temporary)}

    def assert_nothing_left(self) -> None:
        """No file, no process."""
        self.assertEqual(list(self.temporary.iterdir()), [])
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        self.assertEqual([each for each in commands if str(self.temporary).encode() in each], [])

    async def test_nobody_has_seen_what_is_lost(self) -> None:
        output = Path(self.mktemp())
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "demo", "--seconds", "1"],
                cwd=Path(programs.MADE).parents[1],
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.addCleanup(_kill, process)
        await until(lambda: process.poll() is not None, lambda: f"it ends: {output.read_text()}", LONGEST)
        text = output.read_text()
        self.assertEqual(process.returncode, 0, text)
        for said in (
            "protected",
            "pages that were written are found by ",
            "kill -9",
            "ftdctl promote vm",
            "the VM of vm runs: promoted",
            "host-a prints",
            "newest committed checkpoint",
            "Lost with host-a: ",
            "Of that the outside had seen: nothing",
            "The outside saw nothing for ",
        ):
            self.assertIn(said, text)
        self.assertNotIn("\x1b", text)
        self.assert_nothing_left()
        self.assertEqual([name for name in os.listdir("/dev/shm") if name.startswith(f"ftd-tests-{process.pid}-")], [])

    async def test_interrupted_on_a_terminal(self) -> None:
        demo = Program(
            *(sys.executable, "-m", "demo"),
            directory=self.temporary,
            env={"TMPDIR": str(self.temporary)},
            on_terminal=True,
        )
        self.addCleanup(demo.end)
        await demo.until_out("protected")
        await demo.until_out("checkpoint")
        demo.send(signal.SIGINT)
        self.assertEqual(await demo.ended(), 130)
        self.assertIn("\x1b[", demo.out())
        self.assertIn("nothing is left behind", demo.out())
        self.assert_nothing_left()

    async def test_interrupted_before_anything_runs(self) -> None:
        demo = Program(*(sys.executable, "-m", "demo"), directory=self.temporary, env={"TMPDIR": str(self.temporary)})
        self.addCleanup(demo.end)
        await demo.until_out("two hosts")
        demo.send(signal.SIGTERM)
        self.assertEqual(await demo.ended(), 143)
        self.assert_nothing_left()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class StoryTests(SynchronousTestCase):
    """What the demonstration makes of what it has seen."""

    def story(
        self, on_a: range = range(1, 9), on_b: range = range(6, 12), seen: tuple[tuple[int, float], ...] = ()
    ) -> Story:
        """Killed when the first guest had printed 8; 5 was committed, and seen until 4."""
        frames = seen or ((3, -0.3), (4, -0.2), (6, 0.5), (7, 0.6))
        return Story(on_a=on_a, on_b=on_b, committed=5, seen=[Seen(count, at) for count, at in frames], asked=0.1)

    def test_as_it_should_be(self) -> None:
        story = self.story()
        self.assertEqual(story.faults, [])
        self.assertEqual(story.lost, [6, 7, 8])
        self.assertEqual(story.seen_and_lost, [])
        self.assertEqual([seen.count for seen in story.seen_after], [6, 7])
        self.assertEqual(story.silence, 0.7)

    def test_the_rows(self) -> None:
        rows = self.story().rows()
        self.assertEqual(rows[0], Row(1, on_a=True, on_b=False, is_lost=False, seen_at=None))
        self.assertEqual(rows[3], Row(4, on_a=True, on_b=False, is_lost=False, seen_at=-0.2))
        self.assertEqual(rows[5], Row(6, on_a=True, on_b=True, is_lost=True, seen_at=0.5))
        self.assertEqual(rows[-1], Row(11, on_a=False, on_b=True, is_lost=False, seen_at=None))

    def test_of_many_rows_some_are_left_out(self) -> None:
        rows = self.story(on_a=range(1, 100), on_b=range(6, 110)).rows()
        lost = [row for row in rows if row is not None and row.is_lost]
        self.assertEqual(rows.count(None), 1)
        self.assertEqual([row.count for row in lost], [*range(6, 14), *range(92, 100)])

    def test_what_was_seen_and_lost_is_a_fault(self) -> None:
        story = self.story(seen=((5, -0.2), (6, -0.1), (7, 0.5)))
        self.assertEqual(story.seen_and_lost, [6])
        self.assertEqual(len(story.faults), 1)

    def test_what_was_seen_twice_is_a_fault(self) -> None:
        self.assertEqual(len(self.story(seen=((4, -0.2), (5, -0.1), (5, 0.5))).faults), 1)

    def test_a_standby_that_starts_elsewhere_is_a_fault(self) -> None:
        self.assertEqual(len(self.story(on_b=range(4, 9)).faults), 1)
        self.assertEqual(len(self.story(on_b=range(0)).faults), 1)

    def test_a_gap_is_a_fault(self) -> None:
        self.assertEqual(len(self.story(on_b=range(6, 20, 2)).faults), 1)
