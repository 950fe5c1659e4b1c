"""Finding the pages that a guest has written since the last checkpoint; QEMU does not tell."""

from __future__ import annotations

from ftd.vm.tracking.choice import choose
from ftd.vm.tracking.tracker import DirtyTracker
from ftd.vm.tracking.verify import Verifier

__all__ = ["DirtyTracker", "Verifier", "choose"]
