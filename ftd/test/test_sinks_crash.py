"""
A directory sink that dies at every single one of its system calls.

Whichever it is, what is found afterwards is whole checkpoints and nothing else, and every one that was acknowledged:
after the death of the process, and after that of the machine, with the luckiest and with the unluckiest disk.
"""

from __future__ import annotations

from pathlib import Path

from ftd.sinks import checkpoint_files
from ftd.sinks.blocks import BLOCK_SIZE
from ftd.status import Checkpoint
from ftd.test.disk_case import Crash, Disk, DiskTestCase
from ftd.testing.sink_suite import commit_state, content, state, write_state


class CrashTests(DiskTestCase):
    """The sink keeps two checkpoints, holds two, and dies while it takes the third."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = Disk(self.directory, self.patch)
        self.patch(checkpoint_files, "_WRITE_BACK_EVERY", BLOCK_SIZE)
        self.data = state(2 * BLOCK_SIZE + 17, seed=3)

    def crash(self, at: int | None) -> list[Checkpoint]:
        """Take checkpoint 3, and die at that system call; what was acknowledged."""
        self.disk.wipe()
        sink = self.filled(1, 2)
        self.disk.restart()
        self.disk.fail_at = at
        acknowledged: list[Checkpoint] = []
        commit_state(sink, self.data).addCallbacks(acknowledged.append, lambda failure: failure.trap(Crash))
        return acknowledged

    def calls(self) -> list[str]:
        """The system calls of a commit, in order."""
        self.crash(None)
        return list(self.disk.log)

    def check_found(self, directory: Path, acknowledged: list[Checkpoint], at: str) -> None:
        """What a new process makes of it."""
        sink = self.recovered(directory)
        found = self.check_whole(sink)
        self.assertIn(found, [[1, 2], [1, 2, 3], [2, 3]], at)
        if acknowledged:
            self.assertIn(acknowledged[0], sink.checkpoints(), at)
        self.assertEqual(content(sink, 2), state(1000, 2), at)
        if 3 in found:
            self.assertTrue(content(sink, 3) == self.data, at)
        self.assertEqual(len(list(directory.iterdir())), len(found), at)
        self.assertEqual(self.committed(sink, b"next").number, found[-1] + 1, at)

    def test_the_death_of_the_process(self) -> None:
        seen = set()
        for at, call in enumerate([*self.calls(), "nothing"]):
            acknowledged = self.crash(at)
            self.disk.bury()
            seen.add((len(list(self.directory.glob("*.checkpoint"))), bool(acknowledged)))
            self.check_found(self.directory, acknowledged, call)
        # Before and after the rename, then after the acknowledgement, before and after pruning.
        self.assertEqual(seen, {(2, False), (3, False), (3, True), (2, True)})
        self.flushLoggedErrors(Crash)

    def test_the_death_of_the_machine(self) -> None:
        for at, call in enumerate([*self.calls(), "nothing"]):
            for is_lucky in (False, True):
                acknowledged = self.crash(at)
                self.disk.bury()
                left = self.disk.after_power_loss(Path(self.mktemp()), is_lucky=is_lucky)
                self.check_found(left, acknowledged, f"{call}, lucky: {is_lucky}")
        self.flushLoggedErrors(Crash)

    def test_the_death_of_the_process_that_cleans_up(self) -> None:
        sink = self.filled(1, 2)
        write_state(sink, self.data)
        self.disk.bury()
        self.disk.fail_at = 0
        self.assertRaises(Crash, self.recovered)
        self.assertEqual(self.disk.log, ["unlink partial"])
        self.disk.bury()
        self.check_found(self.directory, [], "cleaning up")

    def test_death_while_a_transaction_is_aborted(self) -> None:
        for at in range(2):
            self.disk.wipe()
            sink = self.filled(1, 2)
            write_state(sink, self.data)
            self.disk.restart()
            self.disk.fail_at = at
            sink.abort()
            self.disk.bury()
            self.check_found(self.directory, [], "aborting")
        self.flushLoggedErrors(Crash)
