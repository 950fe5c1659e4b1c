"""A slow line is as slow as it says, loses nothing, and has its sender wait."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.slowness import Slowness, SlowWriter
from tests.waiting import reactor, until


class Source:
    """What is paused when the line is full."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """Noted."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """Noted."""
        self.told.append("resume")


class SlowWriterTests(TestCase):
    """One direction."""

    timeout = 60.0

    def setUp(self) -> None:
        self.source = Source()
        self.arrived: list[tuple[float, bytes]] = []
        self.began = reactor.seconds()

    def line(self, delay: float, rate: float) -> SlowWriter:
        """A line whose far end notes what arrives, and when."""
        return SlowWriter(
            Slowness(delay, rate), lambda data: self.arrived.append((reactor.seconds() - self.began, data)), self.source
        )

    async def test_all_arrives_in_order_and_no_faster_than_the_rate(self) -> None:
        line = self.line(0.02, 1e6)
        pieces = [bytes([number]) * 10_000 for number in range(20)]
        for piece in pieces:
            line.write(piece)
        await until(lambda: len(self.arrived) == len(pieces), "all arrives")
        self.assertEqual([data for _, data in self.arrived], pieces)
        for number, (at, _) in enumerate(self.arrived):
            self.assertGreaterEqual(at, 0.02 + 0.01 * (number + 1) - 1e-6)

    async def test_a_full_line_has_its_sender_wait(self) -> None:
        line = self.line(0.0, 1e6)
        for _ in range(12):
            line.write(bytes(10_000))
        self.assertEqual(self.source.told, ["pause"])
        await until(lambda: len(self.arrived) == 12, "all arrives")
        self.assertEqual(self.source.told, ["pause", "resume"])

    async def test_a_little_does_not(self) -> None:
        line = self.line(0.01, 1e6)
        line.write(b"a little")
        await until(lambda: self.arrived, "it arrives")
        self.assertEqual(self.source.told, [])
