"""Directories on tmpfs for the memory of machines, which go again even if the tests that made them were killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

_TMPFS = Path("/dev/shm")
_PREFIX = "ftd-tests-"


def own_prefix() -> str:
    """How the name of everything begins that this process makes where names are the whole machine's."""
    return f"{_PREFIX}{os.getpid()}-"


def orphaned(names: Iterable[str]) -> list[str]:
    """Those of the names whose process is no more."""
    found = []
    for name in names:
        pid = name.removeprefix(_PREFIX).split("-")[0]
        if name.startswith(_PREFIX) and pid.isdigit() and not Path("/proc", pid).exists():
            found.append(name)
    return found


def memory_directory() -> Path:
    """A new one; those that nobody has any more are removed."""
    for name in orphaned(os.listdir(_TMPFS)):
        shutil.rmtree(_TMPFS / name, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=own_prefix(), dir=_TMPFS))
