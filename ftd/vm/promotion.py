"""
The take-over: what it writes down, and its steps.

::

    marker         "promoted" becomes durable.  From here on the old primary is refused, whoever asks
    apply          the checkpoint that was committed last gets into RAM, if it is not there yet
    load           QEMU is given the device state; the guest is paused then
    note, gates    "the guest may have run" is noted, the network gates open
    cont           the guest runs; announce-self tells the network

What an ftd finds that comes after one that died on the way:

================== ================= ================================================================================
marker             note              so
================== ================= ================================================================================
none               (counts not)      it is a standby; a QEMU that does not wait for its take-over is none of its own
there              none              the guest has never run: the take-over is finished, as the old primary may have
                                     been told that it is fenced by now, and then nobody else runs it
there              there             the guest may have run, so the checkpoint is no more than its past: it is let go on
                                     if its QEMU still has it, and never started from the checkpoint again
================== ================= ================================================================================

A take-over that fails before the guest may have run leaves a standby: QEMU is ended if it was used, then the marker is
removed, in that order.

The note need not survive the host, as neither RAM nor QEMU does, so it is not synced; the marker has to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from ftd.durable import sync_directory, write_durably
from ftd.vm.fence import FENCE


@attrs.frozen(kw_only=True)
class Promoted:
    """
    That a standby has taken over.

    :ivar time: when, Unix seconds.
    :ivar generation: the lineage that it goes on from; empty if the marker is damaged.
    :ivar checkpoint: the number of the checkpoint that it goes on from.
    """

    time: float = 0.0
    generation: str = ""
    checkpoint: int = 0


class PromotionMarker:
    """
    Whether this standby is promoted, on disk; and whether its guest may have run.

    :param directory: durable, the pair's own.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "promoted"
        self._note = directory / "guest-started"

    @property
    def is_there(self) -> bool:
        """Whether there is one, whatever is in it."""
        return self._path.exists()

    def load(self) -> Promoted | None:
        """
        What is there.  A marker that cannot be understood is one all the same: two guests that run are worse than none.

        :raises OSError: if that cannot be found out.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        try:
            found = json.loads(text)
            return Promoted(
                time=float(found["time"]), generation=str(found["generation"]), checkpoint=int(found["checkpoint"])
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            return Promoted()

    def write(self, promoted: Promoted) -> None:
        """Make it durable; blocks.  :raises OSError: if it cannot be."""
        # An older one is no longer about anything.
        self.guest_started = False
        write_durably(self._path, json.dumps(attrs.asdict(promoted)) + "\n")

    def remove(self) -> None:
        """It is a standby again, durably; blocks.  :raises OSError: if that cannot be."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        self.guest_started = False

    @property
    def guest_started(self) -> bool:
        """Whether the guest may have run since the promotion."""
        return self._note.exists()

    @guest_started.setter
    def guest_started(self, is_started: bool) -> None:
        if is_started:
            self._note.touch(mode=0o600)
        else:
            self._note.unlink(missing_ok=True)


def become_primary(directory: Path) -> None:
    """
    A pair of this name is the primary from now on: the VM that its standby has taken over is its own; blocks.

    What that has written down is removed.  Found again by a later standby of this name, it would have the host that
    runs the VM by then stop it.  So is a fence from the time before the take-over: whoever fences this primary does so
    later than now.

    :param directory: durable, the pair's own.
    :raises OSError: if it cannot be removed.
    """
    marker = PromotionMarker(directory)
    if marker.is_there:
        (directory / FENCE).unlink(missing_ok=True)
        marker.remove()


class Steps:
    """How long each step of a take-over takes; see `milliseconds`."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._begin = self._last = ticks()
        self._milliseconds: dict[str, float] = {}

    def done(self, step: str) -> None:
        """``step`` is done, and the next one begins."""
        now = self._ticks()
        self._milliseconds[step] = self._milliseconds.get(step, 0.0) + (now - self._last) * 1e3
        self._last = now

    @property
    def milliseconds(self) -> Mapping[str, float]:
        """By step, in order, and ``total``."""
        return {**self._milliseconds, "total": (self._last - self._begin) * 1e3}

    def __str__(self) -> str:
        return ", ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in self.milliseconds.items())
