"""
A copy of the RAM as it was sent, against which it is compared.

The RAM is gone through in blocks by libc's ``memcmp``, by several threads at a time (ctypes releases the GIL), which is
as fast as memory can be read; only blocks that differ are looked at closer.  Comparing all of it by numpy is a third of
that speed, and numpy's comparison of strings, which could do it in one call, a fifth.

The copy must be what was *sent* of every page, not what was there when it was compared: a page that is written while it
is copied out, and written back before the next comparison, would be missed otherwise.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam, Numbers, Pages, Region

#: Threads that compare: both cores of a small machine are idle while its guest is stopped.
THREADS: Final = 2

#: Pages of a block, and of the parts into which it is divided when it differs.
BLOCK: Final = 256
PART: Final = 32

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Shadow:
    """
    All zeros at first: nothing was sent.  It takes as much memory as the pages that were noted.
    """

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._pages = _zeros(ram)
        self._noted = np.zeros(ram.pages, dtype=np.bool_)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="compare")

    def clear(self) -> None:
        """Nothing was sent."""
        self._pages = _zeros(self._ram)
        self._noted[:] = False

    def close(self) -> None:
        """Give its memory back and end its threads; may be called again."""
        self._threads.shutdown()
        # The memory goes with the last array over it.
        self._pages = np.empty((0, PAGE_WORDS), dtype=np.uint64)

    def note(self, numbers: Numbers, pages: Pages) -> None:
        """These pages were sent."""
        self._pages[numbers] = pages
        self._noted[numbers] = True

    def differing(self) -> Numbers:
        """The pages of the RAM that are not what was sent of them, sorted."""
        data = self._ram.data_runs()
        blocks = _Blocks(iter(data.tolist()))
        searches = [self._threads.submit(self._search, blocks) for _ in range(THREADS)]
        found = [numbers for search in searches for numbers in search.result()]
        found.append(self._given_back(data))
        return np.sort(np.concatenate(found))

    def _search(self, blocks: _Blocks) -> list[Numbers]:
        live, shadow = self._ram.live, self._pages
        live_at, shadow_at = live.ctypes.data, shadow.ctypes.data
        differs = np.empty((PART, PAGE_WORDS), dtype=np.bool_)
        # Eight of them at a time, in a quarter of the time that `any` takes.
        words = differs.view(np.uint64)
        found: list[Numbers] = []
        while (block := blocks.next()) is not None:
            start, end = block
            if not _memcmp(live_at + start * PAGE, shadow_at + start * PAGE, (end - start) * PAGE):
                continue
            for first in range(start, end, PART):
                count = min(PART, end - first)
                if _memcmp(live_at + first * PAGE, shadow_at + first * PAGE, count * PAGE):
                    part = slice(first, first + count)
                    np.not_equal(live[part], shadow[part], out=differs[:count])
                    found.append(np.flatnonzero(np.bitwise_or.reduce(words[:count], axis=1)) + first)
        return found

    def _given_back(self, data: Numbers) -> Numbers:
        """
        The pages that were sent with something in them and are none of the file's any more (a balloon): they read as
        zeros now, but reading them would allocate them.
        """
        gone = self._noted.copy()
        for first, count in data.tolist():
            gone[first : first + count] = False
        numbers = np.flatnonzero(gone)
        holds = np.empty(len(numbers), dtype=np.bool_)
        for start in range(0, len(numbers), BLOCK):
            part = slice(start, start + BLOCK)
            holds[part] = self._pages[numbers[part]].any(axis=1)
        self._noted[numbers[~holds]] = False
        return numbers[holds]


def _zeros(ram: GuestRam) -> Pages:
    region = Region(ram.bytes)
    region.clear()
    return region.pages


class _Blocks:
    """Runs of pages, a block at a time, for several threads."""

    def __init__(self, runs: Iterator[list[int]]) -> None:
        self._blocks = self._divide(runs)
        self._lock = threading.Lock()

    def next(self) -> tuple[int, int] | None:
        """The first page and the one after the last; ``None``: there are no more."""
        with self._lock:
            return next(self._blocks, None)

    @staticmethod
    def _divide(runs: Iterator[list[int]]) -> Iterator[tuple[int, int]]:
        for first, count in runs:
            for start in range(first, first + count, BLOCK):
                yield start, min(start + BLOCK, first + count)
