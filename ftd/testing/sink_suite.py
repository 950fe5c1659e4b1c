"""
What every sink that keeps checkpoints has to do, as tests: mix it into a test case that makes the sink.

::

    class ShelfTests(StoringSinkSuite, SynchronousTestCase):
        def make_sink(self, keep: int) -> IStoringSink:
            return Shelf(keep, now=self.now)
"""

from __future__ import annotations

import io
import itertools
from typing import Any, BinaryIO

import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ftd.interfaces import IInPlaceSink, IStoringSink
from ftd.sinks.blocks import BLOCK_SIZE
from ftd.status import Checkpoint

#: Two lineages.
OURS = "6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11"
THEIRS = "0c0ffee0-0000-4000-8000-000000000001"

#: Sizes around the places where something is cut.
EDGES = (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 17)

_PATTERN = bytes(range(251)) * (1 + 4 * BLOCK_SIZE // 251)


def state(size: int, seed: int = 0) -> bytes:
    """``size`` bytes in which neither a block nor two states of different ``seed`` look alike."""
    return _PATTERN[seed % 251 : seed % 251 + size]


def digest(data: bytes) -> str:
    """The xxh3-64 as a sink is given it."""
    return xxhash.xxh3_64_hexdigest(data)


@implementer(IPushProducer)
class CountingProducer:
    """
    A receiver that does nothing but count.

    :ivar calls: ``pause`` and ``resume``, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("resume")

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("stop")


def write_state(sink: IStoringSink, data: bytes, piece: int = 64 * 1024) -> None:
    """Begin a transaction and write ``data`` into it, from one buffer that is used again for every piece."""
    sink.begin()
    buffer = bytearray(piece)
    for start in range(0, len(data), piece):
        part = data[start : start + piece]
        buffer[: len(part)] = part
        sink.write(memoryview(buffer)[: len(part)])
        # What was given is good during the call only.
        buffer[: len(part)] = b"\xee" * len(part)


def commit_state(
    sink: IStoringSink, data: bytes, id: int = 0, generation: str = OURS, piece: int = 64 * 1024
) -> Deferred[Checkpoint]:
    """A whole transaction with ``data`` in it."""
    write_state(sink, data, piece)
    return sink.commit(id, digest(data), generation)


def content(sink: IStoringSink, number: int) -> bytes:
    """The bytes of a checkpoint."""
    with sink.open(number) as file:
        return file.read()


class StoringSinkSuite:
    """
    The tests.

    :ivar clock: Unix seconds, which the sink has to ask `now` for.
    :ivar examples: how hypothesis goes about the properties.
    """

    examples: settings = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    clock: float = 1_700_000_000.25

    # Of the test case that this is mixed into.
    assertEqual: Any
    assertRaises: Any
    assertTrue: Any
    successResultOf: Any

    def make_sink(self, keep: int) -> IStoringSink:
        """
        A sink that is new and empty, ready for its first transaction, and does at once what it does.

        :param keep: how many checkpoints it is to keep.
        """
        raise NotImplementedError

    def now(self) -> float:
        """See `clock`."""
        return self.clock

    def committed(self, sink: IStoringSink, data: bytes, id: int = 0, generation: str = OURS) -> Checkpoint:
        """Commit ``data``, which has to work."""
        checkpoint: Checkpoint = self.successResultOf(commit_state(sink, data, id, generation))
        return checkpoint

    def test_it_is_a_storing_sink(self) -> None:
        self.assertTrue(verifyObject(IStoringSink, self.make_sink(keep=1)))

    def test_a_new_one_holds_nothing(self) -> None:
        sink = self.make_sink(keep=3)
        self.assertEqual(list(sink.checkpoints()), [])
        self.assertRaises(KeyError, sink.open, 1)

    def test_what_is_said_of_a_checkpoint(self) -> None:
        sink = self.make_sink(keep=3)
        data = state(1000)
        expected = Checkpoint(
            number=1, id=65535, bytes=1000, xxh3=digest(data), generation=OURS, committed_at=self.clock
        )
        self.assertEqual(self.committed(sink, data, id=65535), expected)
        self.assertEqual(list(sink.checkpoints()), [expected])

    def test_a_checkpoint_of_a_kemari_sender_has_no_generation(self) -> None:
        sink = self.make_sink(keep=3)
        self.assertEqual(self.committed(sink, b"abc", generation="").generation, "")
        self.assertEqual(sink.checkpoints()[0].generation, "")
        self.assertEqual(content(sink, 1), b"abc")

    def test_the_bytes_are_the_same_whatever_their_number(self) -> None:
        sink = self.make_sink(keep=len(EDGES))
        for number, size in enumerate(EDGES, 1):
            checkpoint = self.committed(sink, state(size, number))
            self.assertEqual((checkpoint.number, checkpoint.bytes), (number, size))
        for number, size in enumerate(EDGES, 1):
            self.assertTrue(content(sink, number) == state(size, number), f"{size} bytes")

    def test_the_bytes_are_the_same_in_whatever_pieces_they_come(self) -> None:
        sink = self.make_sink(keep=1)
        numbers = itertools.count(1)

        @self.examples
        @given(st.lists(st.sampled_from([1, 7, 4096, BLOCK_SIZE // 2, *EDGES]), max_size=6))
        def property(pieces: list[int]) -> None:
            sink.begin()
            data = b""
            for seed, size in enumerate(pieces):
                sink.write(state(size, seed))
                data += state(size, seed)
            checkpoint = self.successResultOf(sink.commit(0, digest(data), OURS))
            self.assertEqual((checkpoint.number, checkpoint.bytes), (next(numbers), len(data)))
            self.assertTrue(content(sink, checkpoint.number) == data)

        property()

    def test_bytes_that_are_read_to_their_place_are_as_good_as_written_ones(self) -> None:
        sink = self.make_sink(keep=1)
        if not IInPlaceSink.providedBy(sink):
            return
        verifyObject(IInPlaceSink, sink)
        numbers = itertools.count(1)
        steps = st.tuples(st.booleans(), st.sampled_from([1, 7, 4096, BLOCK_SIZE // 2, *EDGES]), st.integers(0, 100))

        @self.examples
        @given(st.lists(steps, max_size=6))
        def property(steps: list[tuple[bool, int, int]]) -> None:
            sink.begin()
            data = b""
            for seed, (in_place, size, percent) in enumerate(steps):
                part = state(size, seed)
                if in_place:
                    part = part[: _fill(sink, part, percent)]
                else:
                    sink.write(part)
                data += part
            # What was given for more than came is of no account.
            sink.room(4096)
            checkpoint = self.successResultOf(sink.commit(0, digest(data), OURS))
            self.assertEqual((checkpoint.number, checkpoint.bytes), (next(numbers), len(data)))
            self.assertTrue(content(sink, checkpoint.number) == data)

        property()

    def test_a_transaction_that_is_open_is_not_to_be_seen(self) -> None:
        sink = self.make_sink(keep=3)
        self.committed(sink, b"one")
        write_state(sink, state(2 * BLOCK_SIZE))
        self.assertEqual([checkpoint.number for checkpoint in sink.checkpoints()], [1])
        self.assertRaises(KeyError, sink.open, 2)

    def test_an_aborted_transaction_leaves_nothing(self) -> None:
        sink = self.make_sink(keep=3)
        write_state(sink, state(2 * BLOCK_SIZE + 5, seed=3))
        sink.abort()
        self.assertEqual(list(sink.checkpoints()), [])
        self.assertEqual(self.committed(sink, b"after", id=7).number, 1)
        self.assertEqual(content(sink, 1), b"after")

    def test_abort_without_a_transaction_is_nothing(self) -> None:
        sink = self.make_sink(keep=3)
        sink.abort()
        self.committed(sink, b"one")
        sink.abort()
        sink.abort()
        self.assertEqual(content(sink, 1), b"one")
        self.assertEqual(self.committed(sink, b"two").number, 2)

    def test_begin_starts_empty_whatever_was_there(self) -> None:
        sink = self.make_sink(keep=3)
        write_state(sink, state(100))
        self.committed(sink, b"new")
        self.assertEqual(content(sink, 1), b"new")

    def test_numbers_grow_by_one_and_are_never_used_again(self) -> None:
        sink = self.make_sink(keep=2)
        numbers = [self.committed(sink, b"x", id=id).number for id in (65534, 65535, 0, 1)]
        self.assertEqual(numbers, [1, 2, 3, 4])

    def test_the_newest_are_kept_oldest_first(self) -> None:
        sink = self.make_sink(keep=2)
        for number in range(1, 6):
            self.committed(sink, state(10, number), id=number)
        self.assertEqual([(held.number, held.id) for held in sink.checkpoints()], [(4, 4), (5, 5)])
        self.assertEqual(content(sink, 4), state(10, 4))
        self.assertEqual(content(sink, 5), state(10, 5))
        for number in (0, 1, 2, 3, 6):
            self.assertRaises(KeyError, sink.open, number)

    def test_what_was_listed_does_not_change_afterwards(self) -> None:
        sink = self.make_sink(keep=1)
        self.committed(sink, b"one")
        listed = sink.checkpoints()
        self.committed(sink, b"two")
        self.assertEqual([checkpoint.number for checkpoint in listed], [1])

    def test_an_open_checkpoint_stays_readable_while_it_is_pruned(self) -> None:
        sink = self.make_sink(keep=1)
        data = state(2 * BLOCK_SIZE + 5, seed=1)
        self.committed(sink, data)
        with sink.open(1) as file:
            begun = file.read(10)
            for seed in range(2, 6):
                self.committed(sink, state(2 * BLOCK_SIZE + 5, seed))
            self.assertRaises(KeyError, sink.open, 1)
            self.assertTrue(begun + file.read() == data)
            file.seek(BLOCK_SIZE)
            self.assertTrue(file.read() == data[BLOCK_SIZE:])

    def test_two_may_read_the_same(self) -> None:
        sink = self.make_sink(keep=1)
        data = state(BLOCK_SIZE + 5)
        self.committed(sink, data)
        with sink.open(1) as one, sink.open(1) as other:
            self.assertEqual(one.read(5), data[:5])
            self.assertTrue(other.read() == data)
            one.close()
            self.committed(sink, state(BLOCK_SIZE + 5, seed=9))
            other.seek(0)
            self.assertTrue(other.read() == data)

    def test_an_open_checkpoint_is_a_file_like_any_other(self) -> None:
        sink = self.make_sink(keep=1)
        data = state(BLOCK_SIZE + 100)
        self.committed(sink, data)
        offsets = st.one_of(
            st.integers(0, 200), st.integers(BLOCK_SIZE - 10, BLOCK_SIZE + 300), st.just(10 * BLOCK_SIZE)
        )
        steps = st.one_of(
            st.tuples(st.just("read"), st.one_of(st.integers(0, 300), st.just(BLOCK_SIZE), st.just(-1))),
            st.tuples(st.just("seek"), offsets),
            st.tuples(st.just("skip"), st.integers(0, 300)),
            st.tuples(st.just("back from the end"), st.integers(0, 300)),
            st.tuples(st.just("readinto"), st.sampled_from([0, 1, 300, BLOCK_SIZE])),
        )

        @self.examples
        @given(st.lists(steps, max_size=12))
        def property(walk: list[tuple[str, int]]) -> None:
            with sink.open(1) as file:
                model = io.BytesIO(data)
                for name, value in walk:
                    self.assertTrue(_take(file, name, value) == _take(model, name, value), (name, value))
                    self.assertEqual(file.tell(), model.tell())

        property()

    def test_nothing_can_be_read_from_a_closed_one(self) -> None:
        sink = self.make_sink(keep=1)
        self.committed(sink, b"abc")
        file = sink.open(1)
        file.close()
        file.close()
        self.assertRaises(ValueError, file.read)

    def test_a_checkpoint_cannot_be_written_to(self) -> None:
        sink = self.make_sink(keep=1)
        self.committed(sink, b"abc")
        with sink.open(1) as file:
            self.assertTrue(file.readable() and file.seekable() and not file.writable())

    def test_producers_come_and_go(self) -> None:
        sink = self.make_sink(keep=1)
        for _ in range(2):
            producer = CountingProducer()
            sink.registerProducer(producer, True)
            self.committed(sink, state(2 * BLOCK_SIZE))
            sink.unregisterProducer()
            self.assertEqual(producer.calls.count("pause"), producer.calls.count("resume"))
        self.committed(sink, b"without one")


def _fill(sink: Any, data: bytes, percent: int) -> int:
    """Fill so much of the room for ``data`` as the socket had for it, and spoil the rest; the bytes that came."""
    places = list(sink.room(len(data)))
    assert sum(map(len, places)) <= len(data)
    assert all(not place.readonly and place.contiguous and place.format == "B" for place in places)
    came = sum(map(len, places)) * percent // 100
    at = 0
    for place in sink.room(len(data)):
        good = min(len(place), max(0, came - at))
        place[:good] = data[at : at + good]
        place[good:] = b"\xee" * (len(place) - good)
        at += len(place)
    sink.filled(came)
    return came


def _take(file: BinaryIO | io.BytesIO, name: str, value: int) -> object:
    """One step of a walk through a file, and what it brings."""
    if name == "read":
        return file.read(value)
    if name == "seek":
        return file.seek(value)
    if name == "skip":
        return file.seek(value, io.SEEK_CUR)
    if name == "back from the end":
        return file.seek(-value, io.SEEK_END)
    buffer = bytearray(value)
    size = file.readinto(buffer)  # type: ignore[union-attr]
    return size, buffer
