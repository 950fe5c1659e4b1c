"""
Dirty pages by the soft-dirty bits of the kernel (CONFIG_MEM_SOFT_DIRTY): all are cleared by a write to ``clear_refs``,
which makes the next write to every page set its bit in ``pagemap``.

The bit is lost when the kernel takes a page of a file out of a process's page table, to swap it or to write it back.
So where that may happen, every page that the file has and the page table has not counts as written.

Linux, Documentation/admin-guide/mm/soft-dirty.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ftd.vm.errors import TrackingUnavailable, VmError
from ftd.vm.pagemap import PRESENT, SOFT_DIRTY, SWAPPED, Pagemap, Span, numbers_of
from ftd.vm.ram import PAGE, GuestRam, Numbers, Pages, pages_of

#: What is written to ``clear_refs``.
CLEAR_SOFT_DIRTY: Final = b"4"

#: ``f_type`` of ``struct statfs``, linux/magic.h.
TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6

#: Bytes, more than ``struct statfs`` has anywhere.
_STATFS_SIZE: Final = 512

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)


def file_system(path: str) -> int:
    """
    The magic number of the file system on which a file is.

    :raises TrackingUnavailable: it is not there (any more).
    """
    found = (ctypes.c_ulong * (_STATFS_SIZE // 8))()
    if _libc.statfs(os.fsencode(path), found):
        raise TrackingUnavailable(f"{path} cannot be looked at: {os.strerror(ctypes.get_errno())}")
    return int(found[0])


def swaps() -> bool:
    """Whether the machine swaps."""
    return len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1


def kernel_has_soft_dirty() -> bool:
    """
    Try it on memory of our own: a kernel without it takes the write to ``clear_refs`` all the same.
    """
    with mmap.mmap(-1, PAGE) as memory:
        array = np.frombuffer(memory, dtype=np.uint8)
        entry = array.ctypes.data // PAGE * 8
        seen = []
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for _ in range(2):
                memory[0] = 1
                seen.append(_is_soft_dirty(pagemap.fileno(), entry))
                Path("/proc/self/clear_refs").write_bytes(CLEAR_SOFT_DIRTY)
                seen.append(_is_soft_dirty(pagemap.fileno(), entry))
        del array
    return seen == [True, False] * 2


def _is_soft_dirty(pagemap: int, position: int) -> bool:
    return bool(int.from_bytes(os.pread(pagemap, 8, position), "little") & SOFT_DIRTY)


class SoftDirty:
    """
    See `DirtyTracker`.  Reading the bits and clearing them are two steps, so the guest has to be stopped for it.

    :param pid: of QEMU.
    :param spans: where the RAM is in its memory.
    """

    name = "soft-dirty"
    collects_while_running = False

    def __init__(
        self,
        pid: int,
        spans: Sequence[Span],
        ram: GuestRam,
        *,
        works: Callable[[], bool] = kernel_has_soft_dirty,
        swaps: Callable[[], bool] = swaps,
        file_system: Callable[[str], int] = file_system,
        pagemap: Callable[[int], Pagemap] = Pagemap,
    ) -> None:
        self.why_not = ""
        self._pid = pid
        self._spans = tuple(spans)
        self._ram = ram
        self._works = works
        self._swaps = swaps
        self._file_system = file_system
        self._open = pagemap
        self._pagemap: Pagemap | None = None
        self._loses = False

    def start(self) -> None:
        """See `DirtyTracker`."""
        if not self._works():
            raise TrackingUnavailable("the kernel was built without CONFIG_MEM_SOFT_DIRTY; use another one")
        kinds = {self._file_system(backend.path) for backend in self._ram.backends}
        if HUGETLBFS_MAGIC in kinds:
            raise TrackingUnavailable("huge pages (hugetlbfs) have no soft-dirty bits; use a file on tmpfs")
        self._loses = self._swaps() or kinds != {TMPFS_MAGIC}
        if self._pagemap is None:
            self._pagemap = self._open(self._pid)
        try:
            self._clear()
        except VmError as error:
            raise TrackingUnavailable(f"{error}; run ftd as root or as QEMU's user") from error

    def collect(self) -> Numbers:
        """See `DirtyTracker`."""
        assert self._pagemap is not None, "not started"
        found = [self._pagemap.entries(span, is_written) for span in self._spans]
        if self._loses:
            data = np.zeros(self._ram.pages, dtype=np.bool_)
            data[pages_of(self._ram.data_runs())] = True
            for index, span in enumerate(self._spans):
                absent = self._pagemap.entries(span, is_absent)
                found[index] = np.union1d(found[index], absent[data[absent]])
        self._pagemap.check()
        self._clear()
        return numbers_of(self._spans, found)

    def take(self, numbers: Numbers, out: Pages) -> None:
        """See `DirtyTracker`."""
        self._ram.take(numbers, out)

    def close(self) -> None:
        """See `DirtyTracker`."""
        if self._pagemap is not None:
            self._pagemap.close()
            self._pagemap = None

    def _clear(self) -> None:
        assert self._pagemap is not None
        path = f"{self._pagemap.directory}/clear_refs"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, CLEAR_SOFT_DIRTY)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise VmError(f"the soft-dirty bits cannot be cleared by {path}: {error.strerror}") from error


def is_written(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries of ``pagemap`` say that the page was written."""
    found: NDArray[np.bool_] = (entries & np.uint64(SOFT_DIRTY)) != 0
    return found


def is_absent(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries of ``pagemap`` say nothing of the page, as it is not in the page table."""
    found: NDArray[np.bool_] = (entries & np.uint64(PRESENT | SWAPPED)) == 0
    return found
