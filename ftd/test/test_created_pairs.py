"""The pairs that were created at run time, in their files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import PairConfig, Role
from ftd.created_pairs import CreatedPairs


def pair(section: str, port: int = 8441) -> PairConfig:
    return PairConfig(section=section, role=Role.PRIMARY, link=f"tcp:127.0.0.1:{port}", keep=8, heartbeat=0.5)


class CreatedPairsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.created = CreatedPairs(self.directory)

    def test_there_are_none_at_first(self) -> None:
        self.assertEqual(self.created.load(), [])
        self.assertFalse(self.directory.exists())

    def test_what_was_saved_is_there_after_a_restart(self) -> None:
        pairs = [pair("a"), pair("b.c-d_e", 8442)]
        for config in reversed(pairs):
            self.created.save(config)
        self.assertEqual(CreatedPairs(self.directory).load(), pairs)
        self.assertEqual(sorted(os.listdir(self.directory)), ["a.conf", "b.c-d_e.conf"])

    def test_what_was_removed_is_not(self) -> None:
        self.created.save(pair("a"))
        self.created.save(pair("a.b"))
        self.created.remove("a")
        self.assertEqual(CreatedPairs(self.directory).load(), [pair("a.b")])
        self.created.remove("a")

    def test_what_is_removed_stays_so_after_a_crash(self) -> None:
        self.created.save(pair("a"))
        synced: list[list[str]] = []
        self.patch(os, "fsync", lambda _descriptor: synced.append(os.listdir(self.directory)))
        self.created.remove("a")
        self.assertEqual(synced, [[]])

    def test_a_file_that_cannot_be_used_is_logged_and_the_others_run(self) -> None:
        self.created.save(pair("good"))
        garbled = {
            "0binary.conf": b"\xff\xfe\x00",
            "empty.conf": b"",
            "key.conf": b"[pair key]\nrole = primary\nlink = tcp:127.0.0.1:1\ncolour = red\n",
            "two.conf": b"[pair two]\nrole = primary\nlink = tcp:127.0.0.1:1\n[pair three]\nrole = primary\n",
            "zini.conf": b"role = primary",
        }
        for name, data in garbled.items():
            (self.directory / name).write_bytes(data)
        (self.directory / "directory.conf").mkdir()
        with capturedLogs() as logs:
            self.assertEqual(self.created.load(), [pair("good")])
        lines = sorted(formatEvent(event) for event in logs if event["log_level"] is LogLevel.error)
        for line, name in zip(lines, sorted([*garbled, "directory.conf"]), strict=True):
            self.assertTrue(line.startswith(f"{self.directory}/{name} cannot be used, its pair is off: "), line)
        for name, data in garbled.items():
            self.assertEqual((self.directory / name).read_bytes(), data)

    def test_other_files_are_not_looked_at(self) -> None:
        self.created.save(pair("a"))
        (self.directory / "a.partial").write_text("rest of a crash")
        (self.directory / "a.conf~").write_text("of an editor")
        self.assertEqual(self.created.load(), [pair("a")])

    def test_one_that_was_not_saved_is_not_there_after_a_restart(self) -> None:
        self.created.save(pair("a"))
        kernel = os.fsync
        for failing in (1, 2):
            calls: list[int] = []

            def fsync(descriptor: int, calls: list[int] = calls, failing: int = failing) -> None:
                calls.append(descriptor)
                if len(calls) == failing:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                kernel(descriptor)

            self.patch(os, "fsync", fsync)
            self.assertRaises(OSError, self.created.save, pair("b"))
            self.assertEqual(CreatedPairs(self.directory).load(), [pair("a")])
