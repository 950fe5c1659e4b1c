"""Small files that are whole whatever happens."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ftd.durable import sync_directory, write_durably
from ftd.test.disk_case import descriptors


class DurableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.path = self.directory / "a.b.conf"

    def trace(self, fail: str = "", error: int = errno.EIO) -> list[str]:
        """Note the system calls that matter from here on, and have one kind of them fail."""
        log: list[str] = []

        def watched(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                kind = name
                if name == "fsync":
                    kind = "fsync directory" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "fsync file"
                log.append(kind)
                if kind == fail:
                    raise OSError(error, os.strerror(error))
                return kernel(*args, **more)

            return call

        for name in ("fsync", "rename"):
            self.patch(os, name, watched(name, getattr(os, name)))
        return log

    def test_a_new_file(self) -> None:
        write_durably(self.path, "text\n")
        self.assertEqual(self.path.read_text(), "text\n")
        self.assertEqual(os.listdir(self.directory), ["a.b.conf"])

    def test_the_directories_that_are_missing_are_made_for_nobody_else(self) -> None:
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        write_durably(self.directory / "made" / "a.conf", "text\n")
        self.assertEqual(stat.S_IMODE((self.directory / "made").stat().st_mode), 0o700)

    def test_an_old_file_is_replaced(self) -> None:
        write_durably(self.path, "a longer text\n")
        write_durably(self.path, "short\n")
        self.assertEqual(self.path.read_text(), "short\n")

    def test_the_order(self) -> None:
        log = self.trace()
        write_durably(self.path, "text\n")
        self.assertEqual(log, ["fsync file", "rename", "fsync directory"])

    def test_the_old_file_stays_whole_when_the_new_one_cannot_be_written(self) -> None:
        write_durably(self.path, "old\n")
        before = descriptors()
        for fail in ("rename", "fsync file"):
            log = self.trace(fail)
            self.assertRaises(OSError, write_durably, self.path, "new\n")
            self.assertEqual(log[-1], fail)
            self.assertEqual(self.path.read_text(), "old\n")
            self.assertEqual(descriptors(), before)

    def test_what_a_failure_left_is_no_obstacle(self) -> None:
        self.directory.mkdir()
        self.path.with_suffix(".partial").write_text("a longer rest of a failure")
        write_durably(self.path, "new\n")
        self.assertEqual(self.path.read_text(), "new\n")
        self.assertEqual(os.listdir(self.directory), ["a.b.conf"])

    def test_a_directory_that_cannot_be_synced_is_an_error_and_is_closed(self) -> None:
        write_durably(self.path, "old\n")
        before = descriptors()
        self.trace("fsync directory")
        self.assertRaises(OSError, sync_directory, self.directory)
        self.assertEqual(descriptors(), before)

    def test_only_directories_are_synced(self) -> None:
        write_durably(self.path, "old\n")
        self.assertRaises(NotADirectoryError, sync_directory, self.path)
