"""``.ci/run`` and its counting: the last line tells what trial counted, and no failure passes for a success."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

_CI = Path(__file__).parent.parent / ".ci"


def run_of_trial(verdict: str, tests: int = 3) -> str:
    """The output of a run of trial that ends in ``verdict``."""
    return f"ftd.test\n  test_a ... [OK]\n\n{'-' * 79}\nRan {tests} tests in 0.012s\n\n{verdict}\n"


GOOD = run_of_trial("PASSED (skips=1, successes=2)")


class CountTests(SynchronousTestCase):
    """``count_results.py``, run as ``.ci/run`` runs it."""

    def setUp(self) -> None:
        self.log = Path(self.mktemp())

    def count(self, output: str) -> tuple[int, list[str]]:
        """The exit status and the lines for two runs whose output was ``output``."""
        self.log.write_text(output)
        command = [sys.executable, str(_CI / "count_results.py"), "--runs", "2", str(self.log)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout.splitlines()

    def assert_counts(self, output: str, status: int, last_line: str) -> None:
        found_status, lines = self.count(output)
        self.assertEqual((found_status, lines[-1]), (status, last_line))

    def test_two_good_runs_add_up(self) -> None:
        self.assert_counts(GOOD + run_of_trial("PASSED (successes=40)", 40), 0, "42 passed, 0 failed, 1 skipped")

    def test_the_closing_lines_are_repeated(self) -> None:
        _status, lines = self.count(GOOD + GOOD)
        self.assertEqual(lines[:2], ["Ran 3 tests in 0.012s", "PASSED (skips=1, successes=2)"])
        self.assertEqual(len(lines), 5)

    def test_failures_and_errors_are_failed(self) -> None:
        bad = run_of_trial("FAILED (skips=1, failures=2, errors=3, successes=4)")
        self.assert_counts(bad + GOOD, 1, "6 passed, 5 failed, 2 skipped")

    def test_a_todo_that_fails_is_skipped_and_one_that_works_is_failed(self) -> None:
        todo = run_of_trial("PASSED (expectedFailures=2, unexpectedSuccesses=1, successes=1)")
        self.assert_counts(todo + GOOD, 1, "3 passed, 1 failed, 3 skipped")

    def test_a_count_nobody_knows_is_failed(self) -> None:
        self.assert_counts(run_of_trial("FAILED (surprises=2, successes=1)") + GOOD, 1, "3 passed, 2 failed, 1 skipped")

    def test_a_run_that_crashed_is_a_failure(self) -> None:
        self.assert_counts(GOOD + "Segmentation fault\n", 1, "2 passed, 1 failed, 1 skipped")

    def test_no_output_at_all_is_two_failures(self) -> None:
        self.assert_counts("", 1, "0 passed, 2 failed, 0 skipped")

    def test_a_run_without_tests_is_a_failure(self) -> None:
        self.assert_counts(GOOD + run_of_trial("PASSED", 0), 1, "2 passed, 1 failed, 1 skipped")

    def test_a_bad_verdict_without_counts_is_a_failure(self) -> None:
        self.assert_counts(GOOD + run_of_trial("FAILED (successes=3)"), 1, "5 passed, 1 failed, 1 skipped")

    def test_a_verdict_that_a_test_prints_is_not_one(self) -> None:
        self.assert_counts(GOOD + "PASSED (successes=1000)\n" + GOOD, 0, "4 passed, 0 failed, 2 skipped")


class RunTests(SynchronousTestCase):
    """``.ci/run`` in a tree whose ``make`` is a stand-in."""

    def setUp(self) -> None:
        if shutil.which("bash") is None:
            raise SkipTest("there is no bash here")
        self.tree = Path(self.mktemp()).absolute()
        shutil.copytree(_CI, self.tree / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
        self.program(".venv/bin/python", f"exec '{sys.executable}' \"$@\"")

    def program(self, path: str, code: str) -> None:
        """A shell script in the tree."""
        script = self.tree / path
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)

    def run_ci(self, test: str, lint: str) -> subprocess.CompletedProcess[str]:
        """Run it with shell code for ``make test`` and ``make lint``."""
        self.program("bin/make", f'echo "called: make $1"\ncase $1 in test) {test};; lint) {lint};; esac')
        return subprocess.run(
            [str(self.tree / ".ci" / "run")],
            env={"PATH": f"{self.tree / 'bin'}:/usr/bin:/bin", "CI": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def prints(self, text: str) -> str:
        """Shell code that prints ``text``."""
        (self.tree / "output").write_text(text)
        return f"cat '{self.tree / 'output'}'"

    def test_all_well(self) -> None:
        done = self.run_ci(self.prints(GOOD + GOOD), "true")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout.splitlines()[-1], "4 passed, 0 failed, 2 skipped")

    def test_lint_runs_after_a_failure_of_the_tests(self) -> None:
        done = self.run_ci(self.prints(GOOD + run_of_trial("FAILED (failures=1, successes=2)")) + "; exit 2", "true")
        self.assertEqual(done.returncode, 1)
        self.assertIn("called: make lint", done.stdout)
        self.assertIn("make test failed", done.stdout)
        self.assertEqual(done.stdout.splitlines()[-1], "4 passed, 1 failed, 1 skipped")

    def test_a_failure_of_lint_is_told_before_the_last_line(self) -> None:
        done = self.run_ci(self.prints(GOOD + GOOD), "exit 2")
        self.assertEqual(done.returncode, 1)
        self.assertIn("make lint failed (exit status 2)", done.stdout)
        self.assertEqual(done.stdout.splitlines()[-1], "4 passed, 0 failed, 2 skipped")

    def test_a_bad_exit_with_a_good_verdict_is_no_success(self) -> None:
        done = self.run_ci(self.prints(GOOD + GOOD) + "; exit 2", "true")
        self.assertEqual(done.returncode, 1)
        self.assertIn("make test failed (exit status 2)", done.stdout)

    def test_an_installation_that_fails_is_no_success(self) -> None:
        done = self.run_ci("exit 2", "true")
        self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), (1, "0 passed, 2 failed, 0 skipped"))

    def test_without_a_python_nothing_passed(self) -> None:
        self.program(".venv/bin/python", "exit 127")
        done = self.run_ci("exit 2", "exit 2")
        self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), (1, "0 passed, 2 failed, 0 skipped"))


class InstallTests(SynchronousTestCase):
    """``.ci/install-programs`` in a tree of its own."""

    def setUp(self) -> None:
        if shutil.which("bash") is None:
            raise SkipTest("there is no bash here")
        self.tree = Path(self.mktemp()).absolute()
        shutil.copytree(_CI, self.tree / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
        self.programs = self.tree / "programs"
        self.programs.mkdir()

    def program(self, name: str, code: str) -> None:
        """A program that is found before that of the system."""
        script = self.programs / name
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)

    def install(self) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            [str(self.tree / ".ci" / "install-programs")],
            env={"PATH": f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_who_is_not_root_is_told_so(self) -> None:
        self.program("id", "echo 1000")
        self.program("apt-get", "exit 1")
        done = self.install()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("not root", done.stdout)
        self.assertFalse((self.tree / ".build").exists())

    def test_what_cannot_be_had_is_told_and_the_rest_goes_on(self) -> None:
        self.program("id", "echo 0")
        self.program("dpkg", "echo amd64")
        self.program("apt-get", "echo apt-get fails >&2; exit 100")
        self.program("apt-cache", "exit 0")
        done = self.install()
        self.assertEqual(done.returncode, 0, done)
        self.assertIn("cloud kernel could not be fetched", done.stdout)
        self.assertEqual(sorted(path.name for path in (self.tree / ".build" / "vm").iterdir() if path.is_dir()), [])

    def test_what_is_there_is_left_alone(self) -> None:
        self.program("id", "echo 0")
        self.program("dpkg", "echo amd64")
        self.program("apt-get", "echo 'apt-get was called' >&2; exit 100")
        for name in ("qemu-system-x86_64", "nasm", "ip", "busybox", "cpio", "curl", "setpriv"):
            self.program(name, "exit 1")
        for name in ("kernel", "qemu-10"):
            (self.tree / ".build" / "vm" / name).mkdir(parents=True)
        done = self.install()
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
