"""A check on a tracker: whether it misses pages."""

from __future__ import annotations

import numpy as np

from ftd.vm.ram import GuestRam, Numbers, Pages
from ftd.vm.tracking.shadow import Shadow


class Verifier:
    """
    Beside a tracker, for tests and for a person who does not trust it: everything that is sent is noted, and while the
    guest is stopped the RAM is compared with that.
    """

    def __init__(self, ram: GuestRam) -> None:
        self._shadow = Shadow(ram)

    def start(self) -> None:
        """Nothing was sent: a full checkpoint comes."""
        self._shadow.clear()

    def sent(self, numbers: Numbers, pages: Pages) -> None:
        """These pages were sent."""
        self._shadow.note(numbers, pages)

    def check(self, numbers: Numbers) -> Numbers:
        """
        :param numbers: what the tracker has found and was not sent yet.  The guest is stopped.
        :return: the pages that are not what was sent of them and are not among ``numbers``: those it has missed.
        """
        return np.setdiff1d(self._shadow.differing(), numbers)

    def close(self) -> None:
        """Give its memory back."""
        self._shadow.close()
