"""
Checkpoints as files of a directory.

A checkpoint is one file with the bytes and nothing else, and everything that is known of it is in its name::

    0000000042.00007.6f9c4a0e-….9a2b6c3d4e5f6071.checkpoint
    number     id    generation xxh3-64

So the one rename that makes it visible makes number, id and generation durable with it, atomically, and there is no
second file that could disagree.  What is being received is a ``.partial``; one that is found at the start is the
rest of a crash and is removed.  The time of the commit is the file's modification time.

Everything here blocks and belongs in a thread.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ftd.durable import sync_directory
from ftd.status import Checkpoint

_NAME = re.compile(r"(\d{10,})\.(\d{5})\.([0-9a-fA-F-]*)\.([0-9a-f]{16})\.checkpoint")
_PARTIAL = "incoming.partial"

#: What the kernel may hold back before it is told to write, so that the fsync at the end is a short one.
_WRITE_BACK_EVERY = 4 * 1024 * 1024

#: The kernel takes this many buffers in one call at most (IOV_MAX).
_MOST_VIEWS = 1024


def file_name(checkpoint: Checkpoint) -> str:
    """The name that says everything."""
    return f"{checkpoint.number:010}.{checkpoint.id:05}.{checkpoint.generation}.{checkpoint.xxh3}.checkpoint"


def recover(directory: Path) -> list[Checkpoint]:
    """
    Make the directory if need be, remove what a crash left, and list the checkpoints, oldest first.

    :raises OSError: if it cannot be used.
    """
    _make(directory)
    (directory / _PARTIAL).unlink(missing_ok=True)
    found = [checkpoint for entry in os.scandir(directory) if (checkpoint := _read_entry(entry)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.number)


def _make(directory: Path) -> None:
    """A directory that is there after a power loss too, as a checkpoint in it is said to be."""
    missing = []
    path = directory.absolute()
    while not path.exists():
        missing.append(path)
        path = path.parent
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in reversed(missing):
        sync_directory(path.parent)


def _read_entry(entry: os.DirEntry[str]) -> Checkpoint | None:
    name = _NAME.fullmatch(entry.name)
    if name is None or not entry.is_file(follow_symlinks=False):
        return None
    stat = entry.stat(follow_symlinks=False)
    return Checkpoint(
        number=int(name[1]),
        id=int(name[2]),
        bytes=stat.st_size,
        xxh3=name[4],
        generation=name[3],
        committed_at=stat.st_mtime,
    )


class PartialFile:
    """The checkpoint that is being received."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _PARTIAL
        self._size = 0
        self._held_back = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor: int | None = os.open(self._path, flags, 0o600)

    def write(self, views: list[memoryview]) -> None:
        """Append them all; ``views`` is emptied."""
        assert self._descriptor is not None
        while views:
            written = os.writev(self._descriptor, views[:_MOST_VIEWS])
            self._size += written
            self._held_back += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]
        if self._held_back >= _WRITE_BACK_EVERY:
            # Starts to write what is dirty and does not wait for it: an fdatasync would, with nothing being written
            # meanwhile.  What is dirty is not dropped.
            start = self._size - self._held_back
            os.posix_fadvise(self._descriptor, start, self._held_back, os.POSIX_FADV_DONTNEED)
            self._held_back = 0

    def publish(self, checkpoint: Checkpoint) -> None:
        """Make it a checkpoint, durably: file, name, directory, in this order."""
        assert self._descriptor is not None
        os.utime(self._descriptor, (checkpoint.committed_at, checkpoint.committed_at))
        os.fsync(self._descriptor)
        self._close()
        final = self._directory / file_name(checkpoint)
        self._path.rename(final)
        # If it is refused after all, it is discarded under this name: it must not come back as committed.
        self._path = final
        sync_directory(self._directory)

    def discard(self) -> None:
        """Remove it.  After an error it may be tried again."""
        try:
            self._close()
        finally:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Also where this fails the descriptor is gone, and soon may be somebody else's.
            os.close(descriptor)
