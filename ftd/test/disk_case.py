"""The system calls that a directory sink makes, in the hands of a test: noted, failed, or cut off by a crash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks import DirectorySink
from ftd.sinks.blocks import BLOCK_SIZE
from ftd.sinks.directory import RunInThread
from ftd.status import Checkpoint
from ftd.testing.sink_suite import commit_state, content, digest, state
from ftd.testing.threads import run_at_once

_CALLS = ("open", "writev", "posix_fadvise", "utime", "fsync", "close", "rename", "unlink")


class Crash(Exception):
    """The process is gone: no system call is made any more."""


@attrs.define(eq=False)
class _File:
    """What the disk has of a file: its bytes and its time as of the last sync."""

    synced: bytes = b""
    modified: float = 0.0


class Disk:
    """
    Stands between the `os` module and the kernel, for all that concerns one directory.

    A crash of the process leaves what the calls have done.  A crash of the machine leaves what the disk has, and what
    that is beyond the last sync nobody can say; `after_power_loss` makes the two extremes of it.

    :ivar log: the calls that were made, such as ``fsync partial`` and ``rename partial to 3``.
    :ivar fail_at: the number of the call that fails, counted from 0 at the last `restart`; ``None`` for none.
    :ivar error: what it fails with: an error number, or `Crash`, after which every call fails.
    :ivar is_broken: the failure is not the only one: every call from there on has it.
    :ivar most_written: bytes that one write takes at most; 0 for all.
    :ivar written_back: offset and size of what the kernel was told to begin to write.
    """

    def __init__(self, directory: Path, patch: Callable[[Any, str, Any], object]) -> None:
        self.log: list[str] = []
        self.fail_at: int | None = None
        self.error: int | type[Crash] = Crash
        self.is_broken = False
        self.most_written = 0
        self.written_back: list[tuple[int, int]] = []
        self._directory = directory
        self._open: dict[int, str] = {}
        self._names: dict[str, _File] = {}
        self._synced_names: dict[str, _File] = {}
        self._kernel: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _CALLS}
        for name in _CALLS:
            patch(os, name, getattr(self, f"_on_{name}"))

    def restart(self) -> None:
        """Begin to count anew, with nothing that fails."""
        self.log.clear()
        self.written_back.clear()
        self.fail_at = None
        self.is_broken = False

    def bury(self) -> None:
        """The process that crashed is gone, and what it had open is closed."""
        self.restart()
        for descriptor in self._open:
            self._kernel["close"](descriptor)
        self._open.clear()

    def wipe(self) -> None:
        """Begin with no directory."""
        self.bury()
        self._names.clear()
        self._synced_names.clear()
        shutil.rmtree(self._directory, ignore_errors=True)

    def after_power_loss(self, target: Path, *, is_lucky: bool) -> Path:
        """
        A directory as the disk has it.

        :param is_lucky: names that were made, changed or removed since the directory was synced last are so on the
            disk too; otherwise none is.  What was written to a file since its last sync is lost in both cases.
        """
        target.mkdir()
        for name, file in (self._names if is_lucky else self._synced_names).items():
            (target / name).write_bytes(file.synced)
            self._kernel["utime"](target / name, (file.modified, file.modified))
        return target

    def _called(self, what: str) -> None:
        at = len(self.log)
        self.log.append(what)
        if self.fail_at is None or at < self.fail_at:
            return
        if self.error is Crash:
            raise Crash(what)
        if at == self.fail_at or self.is_broken:
            assert isinstance(self.error, int)
            raise OSError(self.error, os.strerror(self.error))

    def _label(self, path: Any) -> str:
        name = Path(path).name
        if Path(path) == self._directory:
            return "directory"
        return {"incoming.partial": "partial"}.get(name) or str(int(name.partition(".")[0]))

    def _concerns(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).parent == self._directory

    def _on_open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if not self._concerns(path) and path != self._directory:
            return int(self._kernel["open"](path, flags, mode, **more))
        label = self._label(path)
        self._called(f"open {label}")
        descriptor = int(self._kernel["open"](path, flags, mode, **more))
        self._open[descriptor] = label
        if flags & os.O_CREAT:
            self._names.setdefault(Path(path).name, _File())
        return descriptor

    def _on_writev(self, descriptor: int, buffers: Sequence[memoryview]) -> int:
        if descriptor in self._open:
            self._called(f"write {self._open[descriptor]}")
            if self.most_written:
                buffers = [buffers[0][: self.most_written]]
        return int(self._kernel["writev"](descriptor, buffers))

    def _on_posix_fadvise(self, descriptor: int, offset: int, size: int, advice: int) -> None:
        if descriptor in self._open:
            self._called(f"write back {self._open[descriptor]}")
            self.written_back.append((offset, size))
            return
        self._kernel["posix_fadvise"](descriptor, offset, size, advice)

    def _on_fsync(self, descriptor: int) -> None:
        """Nothing waits for the real disk: what this one has is what it is said to have."""
        label = self._open.get(descriptor)
        if label is None:
            return
        self._called(f"fsync {label}")
        if label == "directory":
            self._synced_names = dict(self._names)
        else:
            file = self._names["incoming.partial"]
            file.synced = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            file.modified = os.fstat(descriptor).st_mtime

    def _on_utime(self, target: Any, *args: Any, **more: Any) -> None:
        if target in self._open:
            self._called(f"utime {self._open[target]}")
        self._kernel["utime"](target, *args, **more)

    def _on_close(self, descriptor: int) -> None:
        label = self._open.pop(descriptor, None)
        try:
            self._kernel["close"](descriptor)
        except OSError:
            # In a process with threads it would have been somebody else's.
            raise AssertionError(f"descriptor {descriptor} is closed twice") from None
        if label is not None:
            # Linux has closed it, whatever it says.
            self._called(f"close {label}")

    def _on_rename(self, source: Any, target: Any, **more: Any) -> None:
        if self._concerns(source):
            self._called(f"rename {self._label(source)} to {self._label(target)}")
        self._kernel["rename"](source, target, **more)
        if self._concerns(source):
            self._names[Path(target).name] = self._names.pop(Path(source).name)

    def _on_unlink(self, path: Any, **more: Any) -> None:
        if self._concerns(path):
            self._called(f"unlink {self._label(path)}")
        self._kernel["unlink"](path, **more)
        if self._concerns(path):
            self._names.pop(Path(path).name, None)


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # The listing's own is among them, and gone by now.
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue
    return found


class DiskTestCase(SynchronousTestCase):
    """Each test has a directory; the sinks on it keep two checkpoints."""

    now = 1_700_000_000.5

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def recovered(
        self,
        directory: Path | None = None,
        keep: int = 2,
        run_in_thread: RunInThread = run_at_once,
        buffer: int = 8 * BLOCK_SIZE,
    ) -> DirectorySink:
        """A sink on the directory as it is now."""
        sink = DirectorySink(directory or self.directory, keep, run_in_thread, lambda: self.now, buffer=buffer)
        sink.recover()
        return sink

    def committed(self, sink: DirectorySink, data: bytes, id: int = 0) -> Checkpoint:
        """Commit ``data``, which has to work."""
        return self.successResultOf(commit_state(sink, data, id))

    def filled(self, *numbers: int) -> DirectorySink:
        """A sink with these checkpoints, each of which holds ``state(1000, number)``."""
        sink = self.recovered()
        for number in numbers:
            assert self.committed(sink, state(1000, number), id=number).number == number
        return sink

    def check_whole(self, sink: DirectorySink) -> list[int]:
        """Make sure that every checkpoint is what its name says; the numbers."""
        for held in sink.checkpoints():
            data = content(sink, held.number)
            self.assertEqual((held.bytes, held.xxh3), (len(data), digest(data)), f"checkpoint {held.number}")
        return [held.number for held in sink.checkpoints()]

    def names(self) -> list[str]:
        """The files in the directory, sorted."""
        return sorted(os.listdir(self.directory))
