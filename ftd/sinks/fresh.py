"""
Fresh memory, with its pages in it, of whichever kind comes faster.

A mapping that gets its pages as it is made (populated) has them at twice the speed at which they come one fault at a
time while a socket is read into it.  Huge pages are twice as fast again, where the machine has such memory at hand; in
a virtual machine that reports its free memory to the host (free page reporting, which is about just the memory that
huge pages are made of) they are several times as slow, because the host has to find it first.  Nothing tells which it
is, and it changes, so each block is timed and the kind that was slower is tried again ever more rarely.

Rejected: a thread that prepares blocks ahead.  Its core is the one that the kernel and the sender copy on, and what was
gained (a tenth, where that core has nothing to do) needs a system call that the `mmap` module makes with the
interpreter's lock held.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

#: Linux 5.14; older ones refuse it, and the pages come when they are touched.
_MADV_POPULATE_WRITE: Final = 23

#: The most blocks after which the slower kind is tried again.
_MOST_PATIENCE: Final = 1024


def with_small_pages(size: int) -> memoryview:
    """Memory of 4 KiB pages."""
    return memoryview(mmap.mmap(-1, size, flags=_PRIVATE | mmap.MAP_POPULATE))


def with_huge_pages(size: int) -> memoryview:
    """Memory of 2 MiB pages, as far as there are any."""
    mapped = mmap.mmap(-1, size, flags=_PRIVATE)
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
        mapped.madvise(_MADV_POPULATE_WRITE)
    return memoryview(mapped)


class FreshMemory:
    """Makes blocks of one size."""

    def __init__(
        self,
        size: int,
        clock: Callable[[], float] = time.perf_counter,
        kinds: tuple[Callable[[int], memoryview], Callable[[int], memoryview]] = (with_huge_pages, with_small_pages),
    ) -> None:
        self._size = size
        self._clock = clock
        self._kinds = kinds
        # How long the last block of each kind took; which kind is being used; blocks until the other is tried again.
        self._seconds = [0.0, 0.0]
        self._used = 0
        self._patience = 1
        self._left = 1

    def make(self) -> memoryview:
        """A block, with zeros in it."""
        kind = self._used
        if self._left:
            self._left -= 1
        else:
            kind = 1 - kind
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
            self._left = self._patience
        began = self._clock()
        block = self._kinds[kind](self._size)
        self._seconds[kind] = self._clock() - began
        used = 0 if self._seconds[0] <= self._seconds[1] or not self._seconds[1] else 1
        if used != self._used:
            # It may have been but a hiccup.
            self._used = used
            self._patience = self._left = 1
        return block
