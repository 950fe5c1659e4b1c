"""What a VM is made of, and whether it can be protected: asked of QEMU, never configured."""

from __future__ import annotations

import attrs
import xxhash


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
