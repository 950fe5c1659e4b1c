"""The programs that the tests of virtual machines run; ``.ci/install-programs`` brings them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
from twisted.trial.unittest import FailTest, SkipTest

from tests.case import IN_CI
from tests.daemon import TREE

#: Where `.ci/install-programs` unpacks, and where the guests are kept that the tests make.
MADE = TREE / ".build" / "vm"

_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def missing(what: str, is_needed: bool = True) -> Exception:
    """
    What to raise where something is not here.

    :param is_needed: whether a server that runs the tests has to have it; anywhere else the test is skipped.
    """
    text = f"there is no {what} here; .ci/install-programs brings it where it is root on Debian"
    return FailTest(text) if IN_CI and is_needed else SkipTest(text)


def program(name: str) -> str:
    """
    The path of a program.

    :raises SkipTest: if there is none; in CI it is a failure.
    """
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise missing(name)
    return path


@attrs.frozen
class QemuProgram:
    """
    A QEMU.

    :ivar command: how its command line begins.
    """

    name: str
    command: tuple[str, ...]


def system_qemu() -> QemuProgram:
    """
    The QEMU of the system; 7.2 on Debian bookworm.

    :raises SkipTest: if there is none; in CI it is a failure.
    """
    return QemuProgram("the system's QEMU", (program("qemu-system-x86_64"),))


def qemu_10() -> QemuProgram:
    """
    QEMU 10 of bookworm-backports, which nobody has to have: its firmware is its own, its libraries are the system's.

    :raises SkipTest: if there is none.
    """
    system_qemu()
    unpacked = MADE / "qemu-10" / "usr"
    path = unpacked / "bin" / "qemu-system-x86_64"
    if not path.exists():
        raise missing("QEMU 10", is_needed=False)
    firmware = [part for name in ("qemu", "seabios") for part in ("-L", str(unpacked / "share" / name))]
    return QemuProgram("QEMU 10", (str(path), *firmware))


def kernel() -> tuple[Path, Path]:
    """
    Debian's cloud kernel, and the directory that its modules lie under.

    :raises SkipTest: if it is not here; in CI it is a failure.
    """
    unpacked = MADE / "kernel"
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if not images:
        raise missing("Linux kernel for guests")
    return images[-1], unpacked


def need_root() -> None:
    """
    Network namespaces and tap devices are root's.

    :raises SkipTest: for anybody else; in CI it is a failure.
    """
    if os.geteuid() != 0:
        raise missing("root")
