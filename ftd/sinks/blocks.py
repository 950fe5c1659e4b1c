"""
Memory for state: blocks that are allocated once and used again, by all sinks of a daemon.

The first touch of fresh memory costs several times as much as a copy into memory that is warm, so blocks go back to an
arena instead of to the allocator.  A run of bytes grows by another block, never by moving what is there.

Blocks come in four sizes.  The next block of a run is the largest that is no larger than what the run has already, so
a transaction of 4 KiB takes 4 KiB, one of a gigabyte takes 4 MiB at a time, and none takes twice what it needs.  The
larger ones are mappings that have their pages from the beginning: see `ftd.sinks.fresh`.

How much an arena keeps for later is what its sinks expect to need next, by the size of their last transactions; what is
given back beyond that goes to the system.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from ftd.sinks.fresh import FreshMemory, with_small_pages

BLOCK_SIZE: Final = 1024 * 1024

#: The sizes of blocks, ascending.
SMALLEST: Final = 4 * 1024
LARGEST: Final = 4 * 1024 * 1024
_CLASSES: Final = (SMALLEST, 64 * 1024, BLOCK_SIZE, LARGEST)
_LARGER: Final = _CLASSES[1:]

#: No more is prepared at once: as much as one read of a socket may take.
MOST_ROOM: Final = 1024 * 1024


class BlockPool:
    """
    Blocks of `BLOCK_SIZE`, for one user.

    :ivar spare: how many unused blocks are kept for later.
    """

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """A block of `BLOCK_SIZE` bytes with anything in it."""
        return self._free.pop() if self._free else bytearray(BLOCK_SIZE)

    def give(self, blocks: list[bytearray]) -> None:
        """Take back blocks that nobody uses any more; ``blocks`` is emptied."""
        self._free.extend(blocks[: max(0, self.spare - len(self._free))])
        blocks.clear()


class Arena:
    """Blocks of all sizes, for all sinks of a daemon; they are the reactor's."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {size: [] for size in _CLASSES}
        self._spare = dict.fromkeys(_CLASSES, 0)
        self._fresh = FreshMemory(LARGEST)

    @property
    def unused(self) -> int:
        """Bytes that are kept for later."""
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def take(self, size: int) -> memoryview:
        """A block with anything in it; ``size`` is one of the sizes that there are."""
        free = self._free[size]
        if free:
            return free.pop()
        if size == LARGEST:
            return self._fresh.make()
        return with_small_pages(size) if size == BLOCK_SIZE else memoryview(bytearray(size))

    def give(self, blocks: list[memoryview]) -> None:
        """Take back blocks that nobody uses any more; ``blocks`` is emptied."""
        for block in blocks:
            size = len(block)
            free = self._free[size]
            if len(free) < self._spare[size]:
                free.append(block)
        blocks.clear()

    def expect(self, before: Mapping[int, int], now: Mapping[int, int]) -> None:
        """How many blocks of each size a sink will need next: it said ``before``, and says ``now``."""
        for size in _CLASSES:
            self._spare[size] += now.get(size, 0) - before.get(size, 0)
            del self._free[size][self._spare[size] :]


class Share:
    """One sink's part in an arena; what it expected is forgotten with it."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._expected: Counter[int] = Counter()
        self._bytes = 0
        # The arena may live longer, and a process that ends has nothing to tidy.
        weakref.finalize(self, _forget, arena, self._expected).atexit = False

    def expect(self, run: BlockRun) -> None:
        """The next transaction is likely to be like this one."""
        if run.capacity != self._bytes:
            self.expect_blocks(map(len, run.blocks))

    def expect_blocks(self, sizes: Iterable[int]) -> None:
        """The next transaction is likely to need blocks of these sizes."""
        now = Counter(sizes)
        self.arena.expect(self._expected, now)
        self._expected.clear()
        self._expected.update(now)
        self._bytes = sum(size * count for size, count in now.items())


def _forget(arena: Arena, expected: Counter[int]) -> None:
    arena.expect(expected, {})


class BlockRun:
    """
    Bytes in the order in which they were written, in blocks of an arena.

    :param largest: size of the largest blocks that it takes.
    :ivar size: bytes that were written.
    :ivar capacity: bytes of all blocks.
    :ivar before: bytes that were taken from it; the blocks are as large as if they were still here.
    """

    __slots__ = ("_arena", "_at", "_largest", "_offset", "_starts", "before", "blocks", "capacity", "size")

    def __init__(self, arena: Arena, largest: int = LARGEST) -> None:
        self.size = 0
        self.capacity = 0
        self.before = 0
        self.blocks: list[memoryview] = []
        self._arena = arena
        self._largest = largest
        # Where the next byte goes: the number of the block, and the place in it.
        self._at = 0
        self._offset = 0
        self._starts: list[int] | None = None

    def room(self, size: int, most: int) -> Sequence[memoryview]:
        """
        Where the next bytes go, in order: up to ``size`` of them, and none where there is no memory for a single one.

        :param most: what `capacity` may become.
        """
        if self.capacity - self.size < size:
            self._grow(min(size, MOST_ROOM), most)
        if self.capacity == self.size or not size:
            return ()
        offset = self._offset
        block = self.blocks[self._at]
        end = offset + size
        if end <= len(block):
            return (block[offset:end],)
        places = [block[offset:]]
        left = end - len(block)
        for block in self.blocks[self._at + 1 :]:
            places.append(block[:left])
            left -= len(block)
            if left <= 0:
                break
        return places

    def filled(self, size: int) -> None:
        """The first ``size`` bytes of the room are written."""
        self.size += size
        assert self.size <= self.capacity, "more was filled than there was room for"
        offset = self._offset + size
        blocks, at = self.blocks, self._at
        while at < len(blocks) and offset >= len(blocks[at]):
            offset -= len(blocks[at])
            at += 1
        self._at = at
        self._offset = offset

    def write(self, data: bytes | memoryview, most: int) -> bool:
        """
        Append a copy of ``data``.

        :param most: what `capacity` may become.
        :return: whether there was memory for all of it.
        """
        view = memoryview(data)
        while view:
            places = self.room(len(view), most)
            if not places:
                return False
            done = 0
            for place in places:
                size = len(place)
                place[:] = view[done : done + size]
                done += size
            self.filled(done)
            view = view[done:]
        return True

    def take_full(self) -> list[memoryview]:
        """The blocks that are full, which are the caller's now; the run goes on after them."""
        full = self.blocks[: self._at]
        if full:
            del self.blocks[: self._at]
            size = sum(map(len, full))
            self.size -= size
            self.capacity -= size
            self.before += size
            self._at = 0
            self._starts = None
        return full

    def settle(self) -> None:
        """No more will be written: give back the blocks that were prepared for it."""
        used = self._at + (1 if self._offset else 0)
        if used < len(self.blocks):
            unused = self.blocks[used:]
            del self.blocks[used:]
            self.capacity -= sum(map(len, unused))
            self._arena.give(unused)

    def views(self, first: int, end: int) -> Iterator[memoryview]:
        """The bytes from ``first`` to before ``end``, or to the last one, as they lie in the blocks, to be read."""
        if self._starts is None or len(self._starts) != len(self.blocks):
            self._starts = [0, *accumulate(map(len, self.blocks))][:-1]
        end = min(end, self.size)
        at = bisect_right(self._starts, first) - 1
        while first < end:
            start = self._starts[at]
            view = self.blocks[at][first - start : end - start].toreadonly()
            yield view
            first += len(view)
            at += 1

    def release(self) -> None:
        """Give the blocks back."""
        self._arena.give(self.blocks)
        self.size = self.capacity = self._at = self._offset = 0
        self._starts = None

    def _grow(self, wanted: int, most: int) -> None:
        """Have room for ``wanted`` more, or for as much of it as there may be."""
        goal = self.size + wanted
        while self.capacity < goal:
            # The first block is as large as what is known to come.
            likely = min(self.capacity + self.before or wanted, self._largest)
            left = most - self.capacity
            if left < SMALLEST:
                return
            size = SMALLEST
            for larger in _LARGER:
                if larger > likely or larger > left:
                    break
                size = larger
            self.blocks.append(self._arena.take(size))
            self.capacity += size
