"""
Dirty pages by asynchronous write protection (Linux 6.7): the kernel notes the first write to every page and lets it
happen.  What it costs goes with the pages that are written, not with the RAM; if ftd dies, the guest notices nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftd.vm import inject
from ftd.vm.pagemap import NotRegistered, Pagemap, Span
from ftd.vm.ram import GuestRam, Numbers, Pages


class WriteProtect:
    """
    See `DirtyTracker`.

    :param pid: of QEMU.
    :param spans: where the RAM is in its memory.
    :param register: makes the registration inside QEMU where an earlier ftd, or a library that QEMU was started with,
        has not.
    """

    name = "write-protect"
    collects_while_running = True

    def __init__(
        self,
        pid: int,
        spans: Sequence[Span],
        ram: GuestRam,
        *,
        register: Callable[[int, Sequence[tuple[int, int]]], None] = inject.register,
        pagemap: Callable[[int], Pagemap] = Pagemap,
    ) -> None:
        self.why_not = ""
        self._pid = pid
        self._spans = tuple(spans)
        self._ram = ram
        self._register = register
        self._open = pagemap
        self._pagemap: Pagemap | None = None

    def start(self) -> None:
        """See `DirtyTracker`."""
        if self._pagemap is None:
            self._pagemap = self._open(self._pid)
        try:
            self._pagemap.written(self._spans)
        except NotRegistered:
            self._register(self._pid, [(span.start, span.end) for span in self._spans])
            self._pagemap.written(self._spans)

    def collect(self) -> Numbers:
        """See `DirtyTracker`."""
        assert self._pagemap is not None, "not started"
        return self._pagemap.written(self._spans)

    def take(self, numbers: Numbers, out: Pages) -> None:
        """See `DirtyTracker`."""
        self._ram.take(numbers, out)

    def close(self) -> None:
        """See `DirtyTracker`.  The registration stays, for the next ftd."""
        if self._pagemap is not None:
            self._pagemap.close()
            self._pagemap = None
