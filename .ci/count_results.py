"""
Count what trial reports: repeat the closing lines of each run, then print ``N passed, N failed, N skipped``.

A run ends with the line ``Ran 12 tests in 0.345s``, an empty line and a verdict such as
``FAILED (failures=1, errors=2, skips=3, successes=6)``.  Every count of a verdict goes into one of three numbers:

=====================  ============================================================================
successes              passed
skips                  skipped
expectedFailures       skipped: a ``todo`` says nothing about what works
failures, errors       failed
unexpectedSuccesses    failed: the ``todo`` no longer holds, though trial itself lets that pass
anything else          failed
=====================  ============================================================================

A run that is missing (it crashed, or was never started), one that found no test and one whose verdict is bad though it
counts no failure are one failure each: nothing that went wrong ends as ``0 failed``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_SUMMARY = re.compile(r"^(Ran (\d+) tests? in [\d.]+s)\n\n((PASSED|FAILED)(?: \(([^()\n]*)\))?)$", re.MULTILINE)


class Report(NamedTuple):
    """How many tests ended how, and the closing lines that say so."""

    passed: int
    failed: int
    skipped: int
    closing_lines: tuple[str, ...]


def read_report(output: str, runs: int) -> Report:
    """
    Add up the verdicts in ``output``.

    :param runs: how many there have to be; each that is missing counts as one failure.
    """
    passed = failed = skipped = 0
    closing_lines = []
    summaries = _SUMMARY.findall(output.replace("\r\n", "\n"))
    for ran, tests, verdict, word, counts_text in summaries:
        closing_lines += [ran, verdict]
        counts = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", counts_text)}
        passed += counts.pop("successes", 0)
        skipped += counts.pop("skips", 0) + counts.pop("expectedFailures", 0)
        run_failed = sum(counts.values())
        if run_failed == 0 and (word == "FAILED" or int(tests) == 0):
            run_failed = 1
        failed += run_failed
    missing = max(0, runs - len(summaries))
    if missing:
        closing_lines.append(f"{missing} of {runs} runs of trial did not come to an end")
    return Report(passed, failed + missing, skipped, tuple(closing_lines))


def main(arguments: Sequence[str]) -> int:
    """Print the report on a file of trial's output; 0 if something passed and nothing failed."""
    parser = argparse.ArgumentParser(description="Count the results that trial reports.")
    parser.add_argument("--runs", type=int, required=True, help="how many runs of trial the file has to hold")
    parser.add_argument("log", type=Path, help="trial's output")
    options = parser.parse_args(arguments)
    report = read_report(options.log.read_text(errors="replace"), options.runs)
    totals = f"{report.passed} passed, {report.failed} failed, {report.skipped} skipped"
    sys.stdout.write("\n".join([*report.closing_lines, totals]) + "\n")
    return 0 if report.failed == 0 and report.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
