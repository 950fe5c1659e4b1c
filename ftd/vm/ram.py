"""
The guest's RAM, which QEMU shares: every backend's file mapped here too, all of them as one row of pages.

The backends are mapped side by side, so a page's number is its index and copying pages that are scattered over several
backends is one call of numpy, which allocates nothing and releases the GIL.  What is read in bulk is read from the
files instead: on tmpfs, reading a page that nobody has written allocates it, but only through a mapping.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ftd.vm.discovery import Backend
from ftd.vm.errors import CannotProtect, VmError

#: Bytes of a page, whatever the guest and its host use.
PAGE: Final = 4096

#: 64-bit words of a page.
PAGE_WORDS: Final = PAGE // 8

#: Page numbers; where they stand for a set, sorted and each once.
Numbers: TypeAlias = NDArray[np.int64]

#: Contents of pages, ``(n, 512)``.
Pages: TypeAlias = NDArray[np.uint64]

#: Pages that follow one another, ``(n, 2)``: the first one, how many.
Runs: TypeAlias = NDArray[np.int64]

#: From here on a run of pages is read from the file rather than through the mapping.
_BULK_PAGES: Final = 256

#: Shorter runs of zero pages are overwritten, longer ones are given back to the file system.
_PUNCH_PAGES: Final = 16

#: Pages that are looked at in one go by `GuestRam.differing`: 1 MiB, which stays in the cache.
_COMPARED_PAGES: Final = 256

#: What a mapping is aligned to: the largest page in which a backend may be (hugetlbfs).
_ALIGNMENT: Final = 1 << 30

#: Bytes of what ``st_blocks`` counts.
_STAT_BLOCK: Final = 512

_PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def pages_of(runs: Runs) -> Numbers:
    """Every page of ``runs``, in their order."""
    first, count = runs[:, 0], runs[:, 1]
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum(), dtype=np.int64)


def runs_of(numbers: Numbers) -> Runs:
    """The fewest runs that have the pages ``numbers``, which are sorted and each there once."""
    if not len(numbers):
        return np.empty((0, 2), dtype=np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1))
    counts = np.diff(starts, append=len(numbers))
    return np.stack((numbers[starts], counts), axis=1)


class Region:
    """
    Memory of a given size, of which nothing is allocated until it is written.

    It is given back when the last array over it is gone, so no thread finds it missing under its hands.  It is neither
    inherited by programs that ftd starts nor a part of its core dumps.

    :ivar address: of its first byte.
    :raises OSError: there is not enough address space.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # More than is needed, so that an aligned part of it can be chosen.
        reserved = size + _ALIGNMENT
        base = _map(None, reserved, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        self.address = (base + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        self._memory = (ctypes.c_uint64 * (size // 8)).from_address(self.address)
        weakref.finalize(self._memory, _libc.munmap, base, reserved).atexit = False

    @property
    def pages(self) -> Pages:
        """All of it."""
        return np.frombuffer(memoryview(self._memory), dtype=np.uint64).reshape(-1, PAGE_WORDS)

    def clear(self) -> None:
        """Make it memory of ftd's own that reads as zeros and takes no room."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        _map(self.address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1)
        self._advise(0, self.size)

    def show(self, descriptor: int, offset: int, size: int, *, writable: bool) -> None:
        """
        Make ``size`` bytes at ``offset`` the beginning of the file ``descriptor``, shared with whoever maps it.

        :raises OSError: it cannot be mapped, or not there.
        """
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        _map(self.address + offset, size, protection, mmap.MAP_SHARED | _MAP_FIXED, descriptor)
        self._advise(offset, size)

    def _advise(self, offset: int, size: int) -> None:
        for advice in (mmap.MADV_DONTFORK, mmap.MADV_DONTDUMP):
            _libc.madvise(self.address + offset, size, advice)


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    mapped = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(mapped)


class GuestRam:
    """
    :param backends: in the order in which their pages are numbered.
    :param writable: whether `put` and `zero` are going to be called.
    :ivar pages: how many there are.
    :ivar bytes: all of them.
    :ivar first_page: of every backend.
    :raises CannotProtect: a file cannot be opened or is not what QEMU says it is.
    """

    def __init__(self, backends: Sequence[Backend], *, writable: bool) -> None:
        if not backends:
            raise CannotProtect("the VM has no RAM that is shared; give it a memory-backend-file with share=on")
        for backend in backends:
            if backend.size % PAGE:
                raise CannotProtect(f"the size of the backend {backend.id} is no multiple of {PAGE}; make it one")
        self.backends = tuple(backends)
        self.bytes = sum(backend.size for backend in self.backends)
        self.pages = self.bytes // PAGE
        ends = np.cumsum([backend.size // PAGE for backend in self.backends], dtype=np.int64)
        self.first_page = (0, *(int(end) for end in ends[:-1]))
        self._ends = tuple(int(end) for end in ends)
        self._writable = writable
        self._descriptors: list[int] = []
        region = Region(self.bytes)
        self._live = region.pages
        try:
            for first, backend in zip(self.first_page, self.backends, strict=True):
                self._open(backend, region, first * PAGE)
        except BaseException:
            self.close()
            raise
        if not writable:
            self._live.flags.writeable = False
        # Whether the file has a page.  To write one that it does not have may need room that its file system has not
        # got, and the kernel tells that to whoever writes through a mapping by SIGBUS: room is asked for before.
        self._backed = np.zeros(self.pages, dtype=np.bool_)
        if writable:
            self._backed[pages_of(self.data_runs())] = True

    def _open(self, backend: Backend, region: Region, offset: int) -> None:
        where = f"the RAM of the backend {backend.id}, {backend.path}"
        try:
            flags = os.O_RDWR if self._writable else os.O_RDONLY
            descriptor = os.open(backend.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
            self._descriptors.append(descriptor)
            found = os.fstat(descriptor)
        except OSError as error:
            raise CannotProtect(
                f"{where}, cannot be opened: {error.strerror}; give mem-path a file that ftd may"
                f" {'write' if self._writable else 'read'}"
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise CannotProtect(f"{where}, is not a file; give mem-path a file, such as one in /dev/shm")
        if found.st_size < backend.size:
            raise CannotProtect(
                f"{where}, has {found.st_size} bytes where QEMU says {backend.size}; is it another VM's, or not in use?"
            )
        try:
            region.show(descriptor, offset, backend.size, writable=self._writable)
        except OSError as error:
            raise CannotProtect(
                f"{where}, cannot be mapped: {error.strerror}; is its size a multiple of the pages it is made of?"
            ) from error

    @property
    def live(self) -> Pages:
        """The RAM itself; reading a page of it that nobody has written allocates it."""
        return self._live

    def close(self) -> None:
        """Give the files back; the mappings go with the last array that is over them."""
        descriptors, self._descriptors = self._descriptors, []
        self._live = np.empty((0, PAGE_WORDS), dtype=np.uint64)
        for descriptor in descriptors:
            os.close(descriptor)

    def take(self, numbers: Numbers, out: Pages) -> None:
        """
        Copy pages out.

        :param numbers: sorted.
        :param out: as many pages, contiguous.
        :raises VmError: there are no such pages, or a file has become shorter.
        """
        count = len(numbers)
        if not count:
            return
        first = int(numbers[0])
        self._check(first, int(numbers[-1]))
        if count >= _BULK_PAGES and numbers[-1] - first == count - 1:
            self.read(first, count, out)
        else:
            # With any other mode numpy copies to memory of its own first.
            np.take(self._live, numbers, axis=0, out=out, mode="clip")

    def read(self, first: int, count: int, out: Pages) -> None:
        """
        Copy pages that follow one another out of the files.  Pages that nobody has written stay unallocated.

        :raises VmError: there are no such pages, or a file has become shorter.
        """
        if not count:
            return
        self._check(first, first + count - 1)
        target = out.data.cast("B")
        for backend, start, size in self._parts(first, count):
            descriptor, position, done = self._descriptors[backend], start * PAGE, 0
            while done < size * PAGE:
                got = os.preadv(descriptor, [target[done : size * PAGE]], position + done)
                if not got:
                    raise VmError(f"{self.backends[backend].path} has become shorter; has QEMU ended?")
                done += got
            target = target[done:]

    def put(self, numbers: Numbers, pages: Pages) -> None:
        """
        Write pages.

        :param numbers: in any order; of a page that is there twice the last one counts.
        :raises VmError: there are no such pages, or the file system is full.
        """
        if not len(numbers):
            return
        self._check(int(numbers.min()), int(numbers.max()))
        missing = numbers[~self._backed[numbers]]
        if len(missing):
            self._reserve(np.unique(missing))
        self._live[numbers] = pages

    def zero(self, runs: Runs) -> None:
        """
        Make pages all zero.  Long runs are given back to the file system, and what is not allocated stays so.

        :raises VmError: there are no such pages.
        """
        if not len(runs):
            return
        self._check(int(runs[:, 0].min()), int((runs[:, 0] + runs[:, 1]).max()) - 1)
        overwritten = []
        for first, count in runs.tolist():
            if count < _PUNCH_PAGES and self._backed[first : first + count].all():
                overwritten.append(np.arange(first, first + count))
            else:
                self._punch(first, count)
        if overwritten:
            self._live[np.concatenate(overwritten)] = 0

    def differing(self, numbers: Numbers, pages: Pages) -> Numbers:
        """
        Those of ``numbers`` whose page in RAM is not the one in ``pages``.

        :raises VmError: there are no such pages.
        """
        if not len(numbers):
            return numbers
        self._check(int(numbers.min()), int(numbers.max()))
        differs = np.empty(len(numbers), dtype=np.bool_)
        scratch = np.empty((_COMPARED_PAGES, PAGE_WORDS), dtype=np.uint64)
        for start in range(0, len(numbers), _COMPARED_PAGES):
            part = slice(start, start + _COMPARED_PAGES)
            live = scratch[: len(numbers[part])]
            np.take(self._live, numbers[part], axis=0, out=live, mode="clip")
            (live != pages[part]).any(axis=1, out=differs[part])
        return numbers[differs]

    def data_runs(self) -> Runs:
        """
        The runs of pages that may hold something else than zeros: all but what was never written (or given back).

        Their order is that of the pages, and none touches the next.
        """
        runs = np.array([run for backend in range(len(self.backends)) for run in self._data(backend)], dtype=np.int64)
        runs = runs.reshape(-1, 2)
        # Those at the seam of two backends.
        touches = np.flatnonzero(runs[:-1, 0] + runs[:-1, 1] == runs[1:, 0])
        return runs_of(pages_of(runs)) if len(touches) else runs

    def _data(self, backend: int) -> Iterator[tuple[int, int]]:
        descriptor, size, base = self._descriptors[backend], self.backends[backend].size, self.first_page[backend]
        if os.fstat(descriptor).st_blocks * _STAT_BLOCK >= size:
            # No holes.  To look for the first one would take 5 ms a GiB.
            yield base, size // PAGE
            return
        position = 0
        while position < size:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
                end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno != errno.EINVAL:
                    raise
                # A file system that does not know.
                start, end = position, size
            if start >= size:
                return
            first, position = start // PAGE, -(-end // PAGE) * PAGE
            yield base + first, position // PAGE - first

    def _parts(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where a run is: index of the backend, first page in that, how many; in order."""
        for backend, (start, end) in enumerate(zip(self.first_page, self._ends, strict=True)):
            low, high = max(first, start), min(first + count, end)
            if low < high:
                yield backend, low - start, high - low

    def _check(self, first: int, last: int) -> None:
        if first < 0 or last >= len(self._live):
            raise VmError(f"pages {first} to {last} are not in this RAM, which has {len(self._live)} pages")

    def _reserve(self, numbers: Numbers) -> None:
        for first, count in runs_of(numbers).tolist():
            for backend, start, size in self._parts(first, count):
                try:
                    os.posix_fallocate(self._descriptors[backend], start * PAGE, size * PAGE)
                except OSError as error:
                    raise VmError(
                        f"no room for the RAM of the guest in {self.backends[backend].path}: {error.strerror};"
                        " make its file system larger"
                    ) from error
            self._backed[first : first + count] = True

    def _punch(self, first: int, count: int) -> None:
        for backend, start, size in self._parts(first, count):
            pages = slice(self.first_page[backend] + start, self.first_page[backend] + start + size)
            mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
            if _libc.fallocate(self._descriptors[backend], mode, start * PAGE, size * PAGE) == 0:
                self._backed[pages] = False
            else:
                # A file system that cannot; nor does it have holes that would have to be left alone.
                self._live[pages] = 0
