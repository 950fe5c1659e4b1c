"""What it costs to look for runs of equal frames: no header is looked at again and again, whatever comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import FIRST_ID, frame, taken
from ftd.test.wire.test_placement import opened
from ftd.wire import placement
from ftd.wire.constants import Command
from ftd.wire.placement import Placed, Placement

FRAMES = 5000


class LookingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.looked = 0
        look = Placement._leading

        def counting(plan: Placement, words: Any, id: int, seq: int) -> int:
            self.looked += len(words)
            return look(plan, words, id, seq)

        self.patch(Placement, "_leading", counting)

    def read(self, lengths: Sequence[int], room: int) -> int:
        """Have a transaction of such frames in one read; how many of them came in runs."""
        machine = opened()
        machine.room = lambda size: [memoryview(bytearray(min(size, room)))] if room else []
        frames = [frame(Command.CONTINUE, FIRST_ID, seq, bytes(lengths[seq % len(lengths)])) for seq in range(FRAMES)]
        events = taken(machine, b"".join([frame(Command.BEGIN, FIRST_ID), *frames]))
        self.assertEqual(machine.seq, FRAMES)
        return sum(event.frames for event in events if isinstance(event, Placed))

    def test_a_long_run_is_looked_at_once(self) -> None:
        self.assertGreaterEqual(self.read([5], 1 << 20), FRAMES - 2)
        self.assertLessEqual(self.looked, FRAMES)

    def test_frames_that_are_soon_of_another_length(self) -> None:
        for number in (2, 3, 6, 10):
            self.looked = 0
            self.read([5] * number + [4], 1 << 20)
            self.assertLessEqual(self.looked, FRAMES * placement.FIRST_LOOK // 4, f"{number} equal ones")

    def test_no_room_for_any(self) -> None:
        """As where a sink has failed."""
        self.assertEqual(self.read([5], 0), 0)
        self.assertLessEqual(self.looked, FRAMES)
