"""QEMU as a process: started so that it outlives ftd, recognised by a later ftd, ended when it has to be."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs


@attrs.frozen
class ProcessIdentity:
    """
    A process, and never another one that has its number later.

    :ivar start: when it started, in the kernel's ticks since boot.
    """

    pid: int
    start: int


class Processes(Protocol):
    """What there is to be done with processes; tests put their own in its place."""

    def spawn(self, words: Sequence[str], log: Path) -> int:
        """
        Start a program in a session of its own, with what it says appended to ``log``.

        :raises OSError: if it cannot be started.
        """

    def exit_status(self, pid: int) -> int | None:
        """Of one that `spawn` started, negative for a signal; ``None`` while it runs, or if it is another ftd's."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Of one that lives.  :raises OSError: if that cannot be told."""

    def kill(self, process: ProcessIdentity) -> None:
        """
        SIGKILL, if it still is that one.

        :raises PermissionError: if it is another user's.
        """

    def somebody_listens(self, path: str) -> bool:
        """Whether connections to a unix socket are taken, or cannot even be tried."""


class SystemProcesses:
    """Those of this host."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, words: Sequence[str], log: Path) -> int:
        """See `Processes`."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._children[child.pid] = child
        return child.pid

    def exit_status(self, pid: int) -> int | None:
        """See `Processes`."""
        child = self._children.get(pid)
        status = child.poll() if child is not None else None
        if status is not None:
            del self._children[pid]
        return status

    def identity(self, pid: int) -> ProcessIdentity | None:
        """See `Processes`."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # Any other error, such as too many open files, does not say that it has ended.
            return None
        # proc(5): the state is field 3, the start time field 22; a zombie has ended.
        return None if fields[0] in "ZX" else ProcessIdentity(pid, int(fields[19]))

    def kill(self, process: ProcessIdentity) -> None:
        """See `Processes`."""
        try:
            # From here on the number cannot become another process's.
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            if self.identity(process.pid) == process:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    def somebody_listens(self, path: str) -> bool:
        """See `Processes`."""
        with socket.socket(socket.AF_UNIX) as trial:
            trial.setblocking(False)
            try:
                trial.connect(path)
            except OSError as error:
                # What is left of a QEMU that was killed; what never was.  A queue that is full is somebody's.
                return error.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR)
        return True
