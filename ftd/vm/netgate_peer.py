"""
QEMU's end of a connection that ftd dialled, made such that QEMU does not wait for ftd.

A QEMU that dials sets its socket non-blocking.  One that listens (``server=on``) leaves what it accepts blocking (7.2,
and versions much later too): when ftd reads no more, because it holds all that it may, QEMU stands still in the middle
of a write, with the guest and with QMP, so that the checkpoint that would release what is held cannot be taken.  The
flag belongs to the socket, not to the process, so whoever has a copy of the descriptor can set it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

#: The same on every architecture.  Linux 5.6 and later.
_PIDFD_GETFD = 438

#: ``struct ucred``: pid, uid, gid.
_UCRED = struct.Struct("3i")

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def unblock_peer(end: socket.socket) -> bool:
    """
    Make the other end of a unix connection non-blocking, in the process that listens there.

    :returns: whether it was found; the process may not have accepted yet.
    :raises OSError: if it cannot be done: it takes the right to trace that process.
    """
    pid, _uid, _gid = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    name = end.getpeername()
    found = False
    process = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            theirs = _copy_of_socket(process, pid, number)
            if theirs is None:
                continue
            with theirs:
                if (
                    theirs.family == socket.AF_UNIX
                    and theirs.getsockname() == name
                    and not theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                ):
                    theirs.setblocking(False)
                    found = True
    finally:
        os.close(process)
    return found


def _copy_of_socket(process: int, pid: int, number: str) -> socket.socket | None:
    try:
        if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
            return None
    except FileNotFoundError:
        return None
    copy = _syscall(_PIDFD_GETFD, process, int(number), 0)
    if copy >= 0:
        return socket.socket(fileno=copy)
    error = ctypes.get_errno()
    if error == errno.EBADF:
        # Closed since it was listed.
        return None
    raise OSError(error, os.strerror(error))
