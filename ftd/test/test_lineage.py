"""The generation of a primary: made once, kept over restarts, and never guessed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import ConfigError
from ftd.lineage import load_generation


class GenerationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "pairs" / "demo"

    def refused(self) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, load_generation, self.directory, "demo")
        return error

    def test_it_is_made_once_and_kept(self) -> None:
        first = load_generation(self.directory, "demo")
        self.assertEqual(str(uuid.UUID(first)), first)
        self.assertEqual(load_generation(self.directory, "demo"), first)
        self.assertEqual(os.listdir(self.directory), ["generation"])
        self.assertEqual((self.directory / "generation").read_text(), first + "\n")

    def test_two_have_different_ones(self) -> None:
        self.assertNotEqual(
            load_generation(self.directory, "demo"), load_generation(self.directory.with_name("other"), "other")
        )

    def test_another_spelling_of_a_uuid_is_the_same_one(self) -> None:
        known = load_generation(self.directory, "demo")
        (self.directory / "generation").write_text(f"  {{{known.upper()}}}\n\n")
        self.assertEqual(load_generation(self.directory, "demo"), known)

    def test_what_is_no_uuid_is_refused_and_left_alone(self) -> None:
        self.directory.mkdir(parents=True)
        for garbled in (b"", b"not a uuid\n", b"\xff\xfe\x00", b"0" * 31):
            (self.directory / "generation").write_bytes(garbled)
            error = self.refused()
            self.assertEqual((error.section, error.key), ("ftd", "state-dir"))
            self.assertEqual(
                str(error),
                f"[ftd] state-dir: {self.directory}/generation does not hold a UUID; remove it and pair demo starts a"
                " new generation",
            )
            self.assertEqual((self.directory / "generation").read_bytes(), garbled)

    def test_a_file_that_cannot_be_read(self) -> None:
        (self.directory / "generation").mkdir(parents=True)
        error = self.refused()
        self.assertEqual((error.section, error.key), ("ftd", "state-dir"))
        self.assertEqual(error.detail, f"{self.directory}/generation: Is a directory")

    def test_a_directory_that_cannot_be_made(self) -> None:
        self.directory.parent.parent.mkdir()
        self.directory.parent.write_text("in the way")
        error = self.refused()
        self.assertEqual((error.section, error.key), ("ftd", "state-dir"))
        self.assertIn("Not a directory", error.detail)
