"""
What runs inside the virtual machines.

The guests are made of the sources in ``guests/`` on the first use and kept in ``.build``, each under a name that the
sources it was made of decide.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import attrs

from tests.vm import programs

_SOURCES = Path(__file__).parent / "guests"

#: Modules that virtio-net needs beside those that these name themselves.
_MODULES = ("virtio_pci", "virtio_net")

#: Seconds in which Linux boots under TCG on the slowest machine.
BOOT_TIME = 120.0

#: MiB that the boot sector keeps off: the first, and the last, which the BIOS fills.
_NOT_FREE = 2

#: What the Linux guest prints when it can be talked to.
READY = "the guest is ready"

#: What the boot sector prints when it stands still.
STILL = "=\n"

#: A count that the boot sector printed to its end.
_COUNT = re.compile(r"^([0-9a-f]{8})\n", re.MULTILINE)


@attrs.frozen
class Guest:
    """
    What a machine boots.

    :ivar arguments: of QEMU.
    :ivar nic: the device that its network is, without the ``netdev``; empty for none.
    :ivar ram: MiB.
    """

    arguments: tuple[str, ...]
    nic: str
    ram: int


def counter(
    *, pages: int = 256, delay: int = 200_000, ram: int = 32, has_nic: bool = False, has_reins: bool = False
) -> Guest:
    """
    The boot sector that counts: ``guests/counter.asm`` says what it does.

    :param pages: how many it dirties between two counts; they have to fit into the memory.
    :param delay: turns of an empty loop between two counts, about two million a millisecond.
    :param ram: MiB.
    :param has_nic: whether each count is sent as a frame too.
    :param has_reins: whether `tests.vm.qemu.Qemu.stand_still` works.
    """
    assert 1 <= pages <= (ram - _NOT_FREE) * 256, "there is not so much memory"
    assembler = programs.program("nasm")
    source = _SOURCES / "counter.asm"
    numbers = {"PAGES": pages, "DELAY": delay, "NIC": int(has_nic), "REINS": int(has_reins)}
    defines = [part for name, number in numbers.items() for part in ("-D", f"{name}={number}")]
    image = _kept(
        "counter",
        [source.read_bytes(), *(define.encode() for define in defines)],
        lambda path: _run(assembler, "-f", "bin", *defines, str(source), "-o", str(path)),
    )
    nic = "ne2k_isa,iobase=0x300,irq=9,mac=52:54:00:00:00:01" if has_nic else ""
    return Guest(("-drive", f"file={image},format=raw,if=floppy,read-only=on", "-boot", "a"), nic, ram)


def flood(*, ram: int = 128) -> Guest:
    """The boot sector that counts, as fast as it can and over all the memory that it may have."""
    return counter(pages=(ram - _NOT_FREE) * 256, delay=0, ram=ram)


def counts(serial: str) -> list[int]:
    """The whole counts in what the boot sector printed.  :raises AssertionError: if it found a page lost."""
    assert "!" not in serial, f"the guest found a page that does not hold the last count: {serial[-200:]!r}"
    return [int(digits, 16) for digits in _COUNT.findall(serial)]


def linux() -> Guest:
    """Debian's kernel with busybox: numbered lines on port 7000, numbered answers on port 80, at 10.0.2.15."""
    kernel, _ = programs.kernel()
    arguments = ("-kernel", str(kernel), "-initrd", str(initramfs()), "-append", "console=ttyS0 quiet panic=-1")
    return Guest(arguments, "virtio-net-pci,romfile=,mac=52:54:00:00:00:02", 128)


@cache
def initramfs() -> Path:
    """The first file system of the Linux guest."""
    _, modules_directory = programs.kernel()
    busybox, archiver = Path(programs.program("busybox")), programs.program("cpio")
    files = [_SOURCES / name for name in ("init", "count", "lines")]
    modules = in_order({path.name.split(".")[0]: path for path in modules_directory.rglob("*.ko*")}, _MODULES)

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            for directory in ("bin", "modules"):
                (root / directory).mkdir()
            shutil.copy(busybox, root / "bin" / "busybox")
            for file in files:
                shutil.copy(file, root)
            for module, code in modules.items():
                (root / "modules" / f"{module}.ko").write_bytes(code)
            (root / "modules" / "order").write_text("".join(f"{module}.ko\n" for module in modules))
            names = sorted(str(found.relative_to(root)) for found in root.rglob("*"))
            archive = subprocess.run(
                [archiver, "--quiet", "--create", "--format=newc", "--owner=0:0"],
                input="\n".join(names).encode(),
                cwd=root,
                stdout=subprocess.PIPE,
                check=True,
            )
            path.write_bytes(archive.stdout)

    return _kept("initramfs", [busybox.read_bytes(), *(file.read_bytes() for file in files), *modules.values()], make)


def in_order(modules: dict[str, Path], wanted: Iterable[str]) -> dict[str, bytes]:
    """
    The code of kernel modules and of those that they need, each after what it needs.

    What a module needs, it says itself.  One that no file is for is a part of the kernel.
    """
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name not in modules:
            return
        code = modules[name].read_bytes()
        if modules[name].suffix == ".xz":
            code = lzma.decompress(code)
        needs = re.search(rb"\0depends=([^\0]*)\0", code)
        for needed in needs[1].decode().split(",") if needs else ():
            add(needed)
        order[name] = code

    for name in wanted:
        add(name)
    return order


def _kept(name: str, made_of: Iterable[bytes], make: Callable[[Path], object]) -> Path:
    """The file that ``make`` makes, unless it was made before of the same."""
    digest = hashlib.sha256()
    for part in made_of:
        digest.update(hashlib.sha256(part).digest())
    path = programs.MADE / "guests" / f"{name}-{digest.hexdigest()[:16]}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        make(unfinished)
        unfinished.rename(path)
    return path


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
