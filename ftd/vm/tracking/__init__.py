"""Finding the pages that a guest has written since the last checkpoint; QEMU does not tell."""

from __future__ import annotations

from ftd.vm.tracking.tracker import DirtyTracker

__all__ = ["DirtyTracker"]
