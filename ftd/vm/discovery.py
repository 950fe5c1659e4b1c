"""
What a VM is made of, and whether it can be protected: asked of QEMU, never configured.

Everything that is refused here would otherwise go wrong at the worst moment: RAM that ftd does not see is missing after
a take-over, and a disk that the standby does not see is another disk.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import attrs
import xxhash
from twisted.internet.defer import Deferred, inlineCallbacks

from ftd.vm.errors import CannotProtect, QmpRefused
from ftd.vm.qmp import Qmp

#: QEMU's block drivers for storage that another host reaches by the same address.
REMOTE_DRIVERS = frozenset({"nbd", "rbd", "iscsi", "nfs", "ssh", "gluster", "sheepdog"})

#: How deep the description of a disk is followed.
_DISK_DEPTH = 16

_HOW_TO_SHARE = (
    "start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on"
    " -machine TYPE,memory-backend=ram0"
)


@attrs.frozen
class Backend:
    """
    A part of the guest's RAM: a ``memory-backend-file`` with ``share=on``.

    :ivar id: QEMU's name for it.
    :ivar size: bytes.
    :ivar path: of the file.
    """

    id: str
    size: int
    path: str


@attrs.frozen
class MappedRange:
    """
    Where a part of a backend lies in QEMU's memory.

    :ivar start: first address.
    :ivar end: the address after the last.
    :ivar offset: of ``start`` in the backend, in bytes.
    """

    start: int
    end: int
    offset: int


@attrs.frozen(kw_only=True)
class Vm:
    """
    A VM that can be protected.

    :ivar pid: QEMU's process.
    :ivar uuid: of the guest (``-uuid``).
    :ivar version: of QEMU.
    :ivar machine: its type, such as ``pc-i440fx-7.2``.
    :ivar backends: of all guest RAM, sorted by id.
    :ivar devices: "name type" of everything ``-device`` made, sorted.
    :ivar run_state: as of when it was asked, ``running``, ``paused``, ``inmigrate`` ….
    """

    pid: int
    uuid: str
    version: str
    machine: str
    cpus: int
    backends: tuple[Backend, ...]
    devices: tuple[str, ...]
    run_state: str

    @property
    def ram_bytes(self) -> int:
        """Of all backends."""
        return sum(backend.size for backend in self.backends)

    @property
    def fingerprint(self) -> str:
        """
        16 hexadecimal digits that are the same for two VMs of which one can take the other's checkpoints, as far as
        that can be seen: neither the version (newer ones load what older ones saved) nor paths are in it.
        """
        backends = [f"{backend.id} {backend.size}" for backend in self.backends]
        parts = (self.uuid, self.machine, str(self.cpus), *backends, "devices", *self.devices)
        return xxhash.xxh3_64_hexdigest("\n".join(parts).encode())


@inlineCallbacks
def discover(qmp: Qmp, *, standby: bool = False, proc: Path = Path("/proc")) -> Generator[Deferred[Any], Any, Vm]:
    """
    Find out what a VM is made of.

    :param standby: it is a standby's, which may wait for its state (``inmigrate``).
    :param proc: where the kernel shows processes.
    :return: a `Vm`.  Errbacks with `CannotProtect`, or with what `Qmp.execute` does.
    """
    run_state = (yield qmp.execute("query-status"))["status"]
    if run_state == "inmigrate" and not standby:
        raise CannotProtect(
            "QEMU waits for an incoming migration; start the VM that is to be protected without -incoming"
        )
    capabilities = yield qmp.execute("query-migrate-capabilities")
    if all(each["capability"] != "x-ignore-shared" for each in capabilities):
        raise CannotProtect(
            f"QEMU {qmp.version} cannot leave shared RAM out of a migration (x-ignore-shared); use QEMU 7.2 or later"
        )
    blocked = (yield qmp.execute("query-migrate")).get("blocked-reasons", ())
    if blocked:
        raise CannotProtect(f"QEMU cannot save this VM's state: {'; '.join(blocked)}; start it without that")
    backends = yield _backends(qmp)
    yield _check_all_ram(qmp, backends)
    yield _check_disks(qmp)
    uuid = (yield qmp.execute("query-uuid"))["UUID"]
    machine = yield qmp.execute("qom-get", {"path": "/machine", "property": "type"})
    cpus = yield qmp.execute("query-cpus-fast")
    devices = yield _devices(qmp)
    threads = [cpu["thread-id"] for cpu in cpus]
    return Vm(
        pid=_process(qmp.peer_pid, threads, backends, proc),
        uuid=uuid,
        version=qmp.version,
        machine=machine.removesuffix("-machine"),
        cpus=len(cpus),
        backends=backends,
        devices=devices,
        run_state=run_state,
    )


async def shared_ram_files(qmp: Qmp) -> list[str]:
    """
    The paths of the files that QEMU has shared RAM in, also if it is one that cannot be protected.

    :raises QmpError: see `Qmp.execute`.
    """
    return [
        await _property(qmp, f"/objects/{memory.get('id', '')}", "mem-path", "")
        for memory in await qmp.execute("query-memdev")
        if memory.get("share", False)
    ]


def mappings(
    pid: int, backend: Backend, maps_text: str | None = None, *, proc: Path = Path("/proc")
) -> tuple[MappedRange, ...]:
    """
    Where QEMU has a backend in its memory, by address; neighbours that continue each other are one range.

    :param maps_text: what ``/proc/PID/maps`` says, where it has been read already.
    :raises CannotProtect: if that cannot be told, or QEMU has mapped another file.
    """
    text = _read_maps(pid, proc) if maps_text is None else maps_text
    ranges = _ranges(text, backend)
    found = sum(each.end - each.start for each in ranges)
    if not ranges:
        if f"{os.path.realpath(backend.path)} (deleted)" in text:
            raise CannotProtect(
                f"the file {backend.path} of {backend.id} was deleted or replaced while QEMU uses it; restart the VM"
            )
        raise CannotProtect(
            f"process {pid} has no file {backend.path} in its memory; is it QEMU, and does it see the same file there"
            " (containers, chroot)?"
        )
    if found < backend.size:
        raise CannotProtect(
            f"process {pid} has {found} of the {backend.size} bytes of {backend.id} in its memory; restart the VM"
        )
    return ranges


def _read_maps(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "maps").read_text(errors="surrogateescape")
    except PermissionError:
        raise CannotProtect(
            f"no right to read /proc/{pid}/maps; run ftd as root, or as the user that QEMU runs as"
        ) from None
    except OSError as error:
        raise CannotProtect(
            f"cannot read /proc/{pid}/maps ({error.strerror}); ftd has to run on QEMU's host and see its processes"
        ) from None


def _ranges(text: str, backend: Backend) -> tuple[MappedRange, ...]:
    # The kernel shows a file by the name that it has after all symbolic links, a line end in it as \012.
    name = os.path.realpath(backend.path).replace("\n", "\\012")
    try:
        inode: int | None = os.stat(backend.path).st_ino
    except OSError:
        inode = None
    ranges: list[MappedRange] = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[5] != name or fields[1][3] != "s":
            continue
        if inode is not None and int(fields[4]) != inode:
            # A file of the same name, but not the one that is there now.
            continue
        start, end = (int(address, 16) for address in fields[0].split("-"))
        offset = int(fields[2], 16)
        end = min(end, start + max(0, backend.size - offset))
        if ranges and ranges[-1].end == start and ranges[-1].offset + start - ranges[-1].start == offset:
            ranges[-1] = attrs.evolve(ranges[-1], end=end)
        elif start < end:
            ranges.append(MappedRange(start, end, offset))
    return tuple(ranges)


def _process(peer: int | None, threads: Iterable[int], backends: tuple[Backend, ...], proc: Path) -> int:
    """
    QEMU's process: who opened the socket, or, where that was somebody else (libvirt), whose thread the first CPU is.

    :return: one of them, if neither can be seen to have the RAM; 0 if there is none.
    """
    candidates = [peer] if peer is not None else []
    for thread in threads:
        try:
            status = (proc / str(thread) / "status").read_text(errors="replace")
        except OSError:
            # In another PID namespace QEMU's own numbers mean nothing here; or there is no right to look.
            continue
        group = re.search(r"^Tgid:\s*(\d+)$", status, re.MULTILINE)
        if group is not None and int(group[1]) not in candidates:
            candidates.append(int(group[1]))
        break
    for pid in candidates:
        try:
            text = _read_maps(pid, proc)
        except CannotProtect:
            continue
        if all(_ranges(text, backend) for backend in backends):
            return pid
    return candidates[0] if candidates else 0


@inlineCallbacks
def _backends(qmp: Qmp) -> Generator[Deferred[Any], Any, tuple[Backend, ...]]:
    found = yield qmp.execute("query-memdev")
    objects = yield qmp.execute("qom-list", {"path": "/objects"})
    kinds = {each["name"]: each["type"].removeprefix("child<").removesuffix(">") for each in objects}
    backends = []
    for memory in found:
        name = memory.get("id", "")
        kind = kinds.get(name, "a memory backend without a name")
        if kind != "memory-backend-file":
            raise CannotProtect(f"ftd cannot see the guest's RAM '{name}' ({kind}); {_HOW_TO_SHARE}")
        if not memory.get("share", False):
            raise CannotProtect(f"the guest's RAM '{name}' is not shared (share=off); {_HOW_TO_SHARE}")
        where = {"path": f"/objects/{name}"}
        path = yield qmp.execute("qom-get", where | {"property": "mem-path"})
        offset = yield _property(qmp, f"/objects/{name}", "offset", 0)
        if offset:
            raise CannotProtect(
                f"the guest's RAM '{name}' starts inside of {path} (offset={offset}); give it a file of its own"
            )
        _check_file(name, path, memory["size"])
        backends.append(Backend(name, memory["size"], path))
    backends.sort(key=lambda backend: backend.id)
    paths = [os.path.realpath(backend.path) for backend in backends]
    if len(set(paths)) < len(paths):
        raise CannotProtect("two memory backends have the same mem-path; give each a file of its own")
    return tuple(backends)


def _check_file(name: str, path: str, size: int) -> None:
    if not os.path.isabs(path):
        raise CannotProtect(f"the mem-path '{path}' of the guest's RAM '{name}' is relative; give it in full")
    try:
        found = os.stat(path)
    except OSError as error:
        raise CannotProtect(
            f"there is no reaching the file {path} of the guest's RAM '{name}' ({error.strerror}); it was deleted, or"
            " ftd does not see the same files as QEMU"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise CannotProtect(
            f"the mem-path {path} of the guest's RAM '{name}' is a directory, in which QEMU hides its file; name a"
            f" file: mem-path={path.rstrip('/')}/NAME"
        )
    if not stat.S_ISREG(found.st_mode):
        raise CannotProtect(f"the mem-path {path} of the guest's RAM '{name}' is no file; use one in /dev/shm")
    if found.st_size < size:
        raise CannotProtect(
            f"the file {path} has {found.st_size} bytes, but the guest's RAM '{name}' {size}; it was replaced or cut:"
            " restart the VM"
        )


@inlineCallbacks
def _check_all_ram(qmp: Qmp, backends: tuple[Backend, ...]) -> Generator[Deferred[Any], Any, None]:
    summary = yield qmp.execute("query-memory-size-summary")
    ram = summary["base-memory"] + summary.get("plugged-memory", 0)
    known = sum(backend.size for backend in backends)
    if known < ram:
        raise CannotProtect(
            f"{ram - known} of {ram} bytes of the guest's RAM are in no memory backend; {_HOW_TO_SHARE}"
        )


@inlineCallbacks
def _check_disks(qmp: Qmp) -> Generator[Deferred[Any], Any, None]:
    """Refuse disks that the guest writes to and that the standby does not see."""
    disks = yield qmp.execute("query-block")
    nodes = yield qmp.execute("query-named-block-nodes", {"flat": True})
    refused = []
    for disk in disks:
        medium = disk.get("inserted")
        if medium is None or medium["ro"] or _is_remote(medium, nodes):
            continue
        device = disk.get("qdev", "")
        is_shared = False
        if device:
            path = device if device.startswith("/") else f"/machine/peripheral/{device}"
            is_shared = yield _property(qmp, path, "share-rw", False)
        if not is_shared:
            name = disk.get("device") or device or medium.get("node-name", "")
            refused.append(f"{name} ({_short(medium['file'])})")
    if refused:
        raise CannotProtect(
            f"the guest writes to disks that the standby does not have: {', '.join(refused)}; make them read-only"
            " (readonly=on), put them on a server that both hosts use (nbd, rbd, iscsi …), or, if both hosts have the"
            " same storage under that name, say share-rw=on at the -device"
        )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_remote(medium: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    """Whether what is written to a medium goes to another host, however many formats and filters are in between."""
    file = medium["file"]
    if not file.startswith("json:"):
        # All the nodes on top of a protocol have its file name, where that says it all.
        return medium["drv"] in REMOTE_DRIVERS or any(
            node["drv"] in REMOTE_DRIVERS and node["file"] == file and not node["ro"] for node in nodes
        )
    try:
        layer = json.loads(file.removeprefix("json:"))
        for _ in range(_DISK_DEPTH):
            if not isinstance(layer, dict):
                break
            if "file" not in layer:
                return layer.get("driver") in REMOTE_DRIVERS
            layer = layer["file"]
    except (ValueError, RecursionError):
        pass
    return False


@inlineCallbacks
def _devices(qmp: Qmp) -> Generator[Deferred[Any], Any, tuple[str, ...]]:
    devices = []
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        children = yield qmp.execute("qom-list", {"path": path})
        kinds = {child["name"]: child["type"] for child in children if child["type"].startswith("child<")}
        devices += [f"{name} {kind.removeprefix('child<').removesuffix('>')}" for name, kind in kinds.items()]
    return tuple(sorted(devices))


@inlineCallbacks
def _property(qmp: Qmp, path: str, name: str, default: Any) -> Generator[Deferred[Any], Any, Any]:
    """A property that not every QEMU and not every device has."""
    try:
        value = yield qmp.execute("qom-get", {"path": path, "property": name})
    except QmpRefused:
        return default
    return value
