"""
Which pages the standby does not have yet.

A page that a tracker has reported is not reported again, so what becomes of it is followed here: it is *unsent* until
it is taken into a transaction, *uncommitted* until that transaction is, and unsent again when the transaction fails.
"""

from __future__ import annotations

import numpy as np

from ftd.vm.ram import Numbers
from ftd.vm.tracking import DirtyTracker

NONE: Numbers = np.empty(0, dtype=np.int64)


def union(one: Numbers, other: Numbers) -> Numbers:
    """The pages in either.  Usually one of them is empty, which costs nothing."""
    if not len(one):
        return other
    return np.union1d(one, other) if len(other) else one


class DirtyPages:
    """
    :ivar unsent: pages that the open transaction does not have.
    """

    def __init__(self, tracker: DirtyTracker) -> None:
        self.unsent = NONE
        self._tracker = tracker
        self._uncommitted = NONE

    def find(self) -> None:
        """Ask the tracker.  Blocking; nothing else may be called meanwhile."""
        self.unsent = union(self.unsent, self._tracker.collect())

    def start_over(self) -> None:
        """All pages are about to be sent: forget what was dirty until now.  Blocking, as `find`."""
        self._tracker.start()
        self.unsent = self._uncommitted = NONE

    def taken(self) -> None:
        """The unsent ones are in the open transaction now."""
        self._uncommitted = union(self._uncommitted, self.unsent)
        self.unsent = NONE

    def committed(self) -> None:
        """The transaction is in."""
        self._uncommitted = NONE

    def failed(self) -> None:
        """It is not: its pages have to be sent again."""
        self.unsent = union(self.unsent, self._uncommitted)
        self._uncommitted = NONE
