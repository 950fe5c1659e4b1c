"""The installed ftd, the tree it comes from and the Makefile, as somebody meets them who has just cloned it."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

_TREE = Path(__file__).parent.parent


def run(*command: str, directory: Path = _TREE) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and catch what it writes."""
    return subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


class PluginTests(SynchronousTestCase):
    """``twistd ftd`` is there, and Twisted is as whole as before."""

    def test_twistd_offers_ftd_beside_its_own(self) -> None:
        done = run(sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--help")
        self.assertEqual(done.returncode, 0, done.stderr)
        offered = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.split()}
        self.assertLessEqual({"ftd", "web", "manhole"}, offered)

    def test_the_tree_adds_one_module_to_twisted(self) -> None:
        added = {path.relative_to(_TREE).as_posix() for path in (_TREE / "twisted").rglob("*") if path.is_file()}
        made = {path for path in added if path.endswith((".pyc", "/dropin.cache"))}
        self.assertEqual(added - made, {"twisted/plugins/ftd_plugin.py"})


class DataTests(SynchronousTestCase):
    """What is not Python goes into the wheel too."""

    def test_every_data_file_is_named(self) -> None:
        settings = configparser.ConfigParser()
        settings.read(_TREE / "setup.cfg")
        named = {
            path
            for package, patterns in settings["options.package_data"].items()
            for pattern in patterns.split()
            for path in (_TREE / package.replace(".", "/")).glob(pattern)
            if path.is_file()
        }
        there = {path for path in (_TREE / "ftd").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        self.assertEqual(there - named, set())


class MakefileTests(SynchronousTestCase):
    """``make``, in a copy of the tree that has no environment."""

    def setUp(self) -> None:
        if shutil.which("make") is None:
            raise SkipTest("there is no make here")
        self.copy = Path(self.mktemp())
        self.copy.mkdir()
        shutil.copy(_TREE / "Makefile", self.copy)

    def test_alone_it_lists_its_targets(self) -> None:
        done = run("make", directory=self.copy)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")]
        self.assertEqual(
            listed, ["help", "run", "demo", "test", "programs", "lint", "format", "coverage", "bench", "news", "clean"]
        )
        self.assertFalse((self.copy / ".venv").exists())

    def stand_in(self, old: bool) -> str:
        """An interpreter that is too old, or that has no module venv."""
        path = self.copy.absolute() / "python"
        path.write_text(f"#!/bin/sh\ncase $2 in *version_info*) exit {int(old)};; *) exit 1;; esac\n")
        path.chmod(0o755)
        return str(path)

    def assert_refused(self, python: str, reason: str) -> None:
        done = run("make", "run", f"PYTHON={python}", directory=self.copy)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(reason, done.stderr)
        self.assertFalse((self.copy / ".venv").exists())

    def test_an_old_python_is_refused(self) -> None:
        self.assert_refused(self.stand_in(old=True), "ftd needs Python 3.11 or later")

    def test_a_python_without_venv_is_refused(self) -> None:
        self.assert_refused(self.stand_in(old=False), "lacks its venv module")
