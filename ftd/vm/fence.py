"""A VM that must not run any more: its standby has taken over, or it was told to stand down."""

from __future__ import annotations

from pathlib import Path

from ftd.durable import sync_directory, write_durably
from ftd.errors import CannotKeep

#: Its file in the directory of a pair.
FENCE = "fenced"


class Fence:
    """
    Kept on disk: a host that comes back must not run the VM that another one runs by now.

    :param path: the file that is there while the VM is fenced; it holds the reason.
    :ivar reason: empty while it is not.
    :raises OSError: if that cannot be found out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found = path.read_text(encoding="utf-8", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            self.reason = ""
        else:
            # That it is there is what counts.
            self.reason = found or "it was fenced; why has been lost"

    def put_up(self, reason: str) -> None:
        """
        The VM must not run from now on.

        :raises CannotKeep: if that cannot be kept; it holds until ftd ends all the same.
        """
        self.reason = reason
        try:
            write_durably(self._path, reason + "\n")
        except OSError as error:
            why = f"{error.filename or self._path}: {error.strerror}"
            raise CannotKeep(f"{why}; the fence does not outlive ftd") from None

    def take_down(self) -> None:
        """It may run again.  :raises CannotKeep: if that cannot be kept; nothing has changed then."""
        try:
            self._path.unlink(missing_ok=True)
            sync_directory(self._path.parent)
        except OSError as error:
            raise CannotKeep(f"{error.filename or self._path}: {error.strerror}") from None
        self.reason = ""
