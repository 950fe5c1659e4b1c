"""
Why the VM of a primary is stopped, for the ftd that comes after this one.

A VM that is found stopped may have been stopped by an ftd that died during a checkpoint (it has to go on), by the
policy ``hold`` (it waits for the standby), or by somebody else (it is none of our business).  What QEMU says does not
tell them apart, so ftd writes it down before it stops the guest.  The file need not survive the host, as the VM does
not; so it is not synced, and a checkpoint pays a microsecond for it.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path


class Stopped(Enum):
    """Who has stopped the guest, as the byte in the file."""

    NOT_BY_US = b"-"
    FOR_CHECKPOINT = b"c"
    ON_HOLD = b"h"


class StopMarker:
    """
    :param path: the file; made if need be.
    :raises OSError: if it cannot be.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._value = Stopped(os.pread(self._descriptor, 1, 0))
        except ValueError:
            # New, or damaged: then nobody knows, and nothing is done to the VM.
            self._value = Stopped.NOT_BY_US

    @property
    def value(self) -> Stopped:
        """What was set last, by this ftd or the one before."""
        return self._value

    @value.setter
    def value(self, value: Stopped) -> None:
        if value is not self._value:
            os.pwrite(self._descriptor, value.value, 0)
            self._value = value

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._descriptor)
