"""Fresh memory: of whichever kind of pages comes faster."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.blocks import LARGEST
from ftd.sinks.fresh import FreshMemory, with_huge_pages, with_small_pages


class ChoiceTests(SynchronousTestCase):
    """Which kind is taken."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.seconds = {"huge": 1.0, "small": 1.0}
        self.made: list[str] = []
        self.fresh = FreshMemory(4096, self.clock.seconds, (self.kind("huge"), self.kind("small")))

    def kind(self, name: str) -> Callable[[int], memoryview]:
        def make(size: int) -> memoryview:
            self.made.append(name)
            self.clock.advance(self.seconds[name])
            return memoryview(bytearray(size))

        return make

    def make(self, count: int) -> int:
        """Make so many; how many of them have huge pages."""
        self.made.clear()
        for _ in range(count):
            self.assertEqual(len(self.fresh.make()), 4096)
        return self.made.count("huge")

    def test_both_are_tried_first(self) -> None:
        self.make(2)
        self.assertEqual(self.made, ["huge", "small"])

    def test_the_faster_one_is_used_and_the_slower_one_tried_ever_more_rarely(self) -> None:
        for slower in ("huge", "small"):
            self.setUp()
            self.seconds[slower] = 5.0
            self.make(1000)
            self.assertLess(self.made.count(slower), 12)
            self.assertGreater(self.made.count(slower), 5)
            self.assertEqual(self.made[-1], "small" if slower == "huge" else "huge")

    def test_one_hiccup_is_soon_forgotten(self) -> None:
        self.seconds["huge"] = 0.5
        self.make(500)
        self.seconds["huge"] = 10.0
        self.make(1)
        self.seconds["huge"] = 0.5
        self.assertGreater(self.make(10), 6)

    def test_it_is_noticed_when_that_changes(self) -> None:
        self.seconds["huge"] = 0.5
        self.assertGreater(self.make(100), 90)
        # The one that is used has become slow: at once.
        self.seconds["huge"] = 10.0
        self.assertLess(self.make(100), 10)
        # The other one has become fast: when it is tried.
        self.seconds["huge"] = 0.1
        self.make(200)
        self.assertGreater(self.make(100), 90)


class KindTests(SynchronousTestCase):
    """The memory itself."""

    def test_it_is_all_zeros_and_can_be_written(self) -> None:
        for make in (with_huge_pages, with_small_pages):
            block = make(LARGEST)
            self.assertTrue(block == bytes(LARGEST))
            self.assertEqual((block.readonly, block.format, block.contiguous), (False, "B", True))
            block[-1] = 7
            self.assertEqual(block[LARGEST - 1], 7)
