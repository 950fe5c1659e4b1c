"""The memory into which pages are copied while the guest is stopped, allocated once."""

from __future__ import annotations

import numpy as np

from ftd.vm.ram import PAGE, PAGE_WORDS, Numbers, Pages
from ftd.vm.tracking import DirtyTracker


class Staging:
    """
    :param limit: bytes; what a checkpoint has beyond that goes out in several portions.
    :ivar capacity: pages.
    """

    def __init__(self, limit: int) -> None:
        self.capacity = max(1, limit // PAGE)
        self._pages: Pages = np.empty((self.capacity, PAGE_WORDS), dtype=np.uint64)

    def warm(self) -> None:
        """Touch all of it, which is what costs the time at its first use; blocking, 0.1 s for 64 MiB."""
        self._pages[:] = 0

    def take(self, tracker: DirtyTracker, numbers: Numbers) -> Pages:
        """
        Copy pages out of the guest's RAM; blocking.

        :param numbers: at most ``capacity``.
        :return: their contents, until the next call.
        """
        pages = self._pages[: len(numbers)]
        tracker.take(numbers, pages)
        return pages
