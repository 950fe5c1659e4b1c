"""What can go wrong with a VM.  Every text ends with what to do next, where there is something to do."""

from __future__ import annotations

from ftd.errors import FtdError


class VmError(FtdError):
    """An operation on a VM that could not be done."""

    kind = "vm"


class CannotProtect(VmError):
    """The VM is not set up so that it can be protected; the text says what to change."""

    kind = "cannot-protect"


class QmpError(VmError):
    """QMP did not do what was asked."""

    kind = "qmp"


class QmpRefused(QmpError):
    """
    QEMU answered a command with an error.

    :ivar command: the command.
    :ivar error_class: QEMU's, such as ``GenericError`` or ``CommandNotFound``.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.error_class = error_class


class QmpTimeout(QmpError):
    """
    QEMU did not answer in time, and its connection has been closed, as what it says later cannot be trusted; or it did
    not tell of something that was waited for.
    """


class QmpClosed(QmpError):
    """The QMP connection is gone: QEMU has ended, or broke it."""


class TrackingUnavailable(VmError):
    """A way of finding dirty pages does not work here; the text says why and what would make it work."""

    kind = "tracking-unavailable"
