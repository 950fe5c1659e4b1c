"""
What a standby has been sent, in files that survive ftd.

Two slots take turns: one has the checkpoint that is held, the other the one that comes in.  ``meta`` says which one is
held, what it is, and whether its pages are in the RAM of the standby's VM already.  It is replaced by one rename, and
that is the commit: whenever ftd dies, the next one finds the checkpoint before or the checkpoint after, whole.

::

    begin … write …        the other slot fills; meta, held checkpoint and RAM stay as they are
    commit                 meta → the other slot, *staged*
    apply                  its pages → RAM (the old state of RAM is gone from here on), meta → *applied*, memory back

Between commit and the end of apply RAM is neither the old nor the new state; the slot has all it takes to write it
again, so `load` finds *staged* and `apply` starts over.  After that only the device state is needed.

The files belong on tmpfs: they are to survive the process, not the machine, whose RAM is gone with it.  So nothing is
synced, and what is found from before a restart of the machine is not used.

Rejected: one file for each checkpoint, made anew (its memory would be fresh each time, at a twentieth of the speed);
writing pages to RAM as they come in (there would be no state to go back to when the rest does not come).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import numpy as np
from attrs.validators import in_, instance_of
from numpy.typing import NDArray
from twisted.logger import Logger

from ftd.sinks.sink import SinkError, cannot_store
from ftd.vm.discovery import Backend
from ftd.vm.record_reader import RecordReader
from ftd.vm.records import CheckpointHeader, Piece
from ftd.vm.standby_slot import Extent, Slot
from ftd.wire.errors import ErrorCode

#: Of the files.
_VERSION: Final = 1

_META: Final = "meta"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StandbyRam(Protocol):
    """What of a `ftd.vm.ram.GuestRam` is needed to apply a checkpoint."""

    @property
    def pages(self) -> int:
        """Of all backends."""

    def put(self, numbers: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
        """Write pages."""

    def zero(self, runs: NDArray[np.int64]) -> None:
        """Make pages zero."""


@attrs.frozen
class HeldCheckpoint:
    """
    The committed checkpoint.

    :ivar slot: which one it is in.
    :ivar is_applied: whether RAM has its pages.
    :ivar id: of its transaction.
    :ivar xxh3: of its transaction's bytes, as the wire has it.
    :ivar bytes: of its transaction.
    :ivar committed_at: Unix seconds.
    :ivar ram_files: which files RAM is in: they could be made anew under the same name.
    :ivar boot: of the machine, in which it was committed.
    """

    header: CheckpointHeader
    slot: int = attrs.field(validator=in_((0, 1)))
    is_applied: bool = attrs.field(validator=instance_of(bool))
    id: int = attrs.field(validator=instance_of(int))
    xxh3: str = attrs.field(validator=instance_of(str))
    bytes: int = attrs.field(validator=instance_of(int))
    committed_at: float = attrs.field(validator=instance_of((int, float)))
    ram_files: tuple[str, ...]
    boot: str = attrs.field(validator=instance_of(str))
    extents: tuple[Extent, Extent, Extent]

    def to_text(self) -> str:
        """As ``meta`` has it."""
        return json.dumps({"version": _VERSION, **attrs.asdict(self)})

    @classmethod
    def from_text(cls, text: str) -> HeldCheckpoint:
        """:raises ValueError: if it is not what `to_text` gives."""
        try:
            found = json.loads(text)
            if found.pop("version") != _VERSION:
                raise ValueError("another version of ftd wrote it")
            found["header"] = CheckpointHeader.from_json(found["header"])
            found["ram_files"] = tuple(found["ram_files"])
            pages, index, device = (Extent(int(extent["size"]), int(extent["xxh3"])) for extent in found["extents"])
            return cls(**{**found, "extents": (pages, index, device)})
        except (SinkError, AttributeError, KeyError, OverflowError, TypeError, RecursionError) as error:
            raise ValueError(f"it is damaged ({error})") from None


class StandbyStore:
    """
    One transaction at a time comes in with `begin`, `write` and `commit` or `abort`; one checkpoint is held.  All of it
    is the reactor's but for `apply` and `forget`, which may block and belong in a thread, one at a time: what comes in
    meanwhile goes to the other slot, and is not committed before they are done.

    :param directory: on tmpfs; made if need be.
    :param limit: the most bytes of pages that a checkpoint may have.  A full one has all pages of the guest that are
        not zero, and again those that it wrote meanwhile.
    :param device_limit: the most bytes of device state.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        *,
        limit: int,
        device_limit: int = 256 * 1024 * 1024,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._limit = limit
        self._device_limit = device_limit
        self._now = now
        self._slots: tuple[Slot, ...] = ()
        self._held: HeldCheckpoint | None = None
        # The slot that is held, or was until it was forgotten: a thread may still be giving its memory back.
        self._newest = 1
        self._incoming: Slot | None = None
        self._reader = RecordReader(self._check, device_limit)
        self._failure: SinkError | None = None
        self._received = 0
        self._is_busy = False
        self._fingerprint = ""
        self._ram: tuple[tuple[str, int], ...] = ()
        self._ram_files: tuple[str, ...] = ()
        self._boot = ""

    @property
    def checkpoint(self) -> HeldCheckpoint | None:
        """What is held, with all that is known of it."""
        return self._held

    @property
    def held(self) -> CheckpointHeader | None:
        """What is held."""
        return None if self._held is None else self._held.header

    @property
    def committed_at(self) -> float:
        """When what is held was committed, Unix seconds; 0 if nothing is."""
        return 0.0 if self._held is None else self._held.committed_at

    @property
    def bytes(self) -> int:
        """Of the transaction that brought what is held; 0 if nothing is."""
        return 0 if self._held is None else self._held.bytes

    @property
    def is_applied(self) -> bool:
        """Whether RAM is in the state that is held."""
        return self._held is not None and self._held.is_applied

    @property
    def unfit(self) -> str:
        """Why the VM that `expect` told of cannot go on from what is held; empty if it can, or nothing is held."""
        if self._held is None:
            return ""
        return self._misfit(self._held.header)

    def load(self) -> None:
        """
        Find what an earlier ftd left; to be called before anything else.

        :raises SinkError: if the directory cannot be used.  Files that are damaged are no error: nothing is held then.
        """
        self._boot = _boot_id()
        self._make_directory()
        self._slots = tuple(
            Slot(self._directory, f"slot-{number}", self._limit, self._device_limit) for number in range(2)
        )
        self._held = self._found()
        if self._held is not None:
            self._newest = self._held.slot
        for number, slot in enumerate(self._slots):
            if self._held is None or number != self._held.slot:
                # A transaction that was coming in may have left any amount of memory there.
                slot.release()

    def _found(self) -> HeldCheckpoint | None:
        try:
            held = HeldCheckpoint.from_text((self._directory / _META).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._drop(f"{self._directory / _META} cannot be used: {error}")
            return None
        if held.boot != self._boot:
            self._drop("this machine was restarted since")
        elif not self._slots[held.slot].adopt(held.extents, is_applied=held.is_applied):
            self._drop(f"its files in {self._directory} are damaged")
        else:
            return held
        return None

    def expect(self, fingerprint: str, ram: Sequence[Backend]) -> None:
        """
        What the standby's VM is.  If its RAM is in other files than those that hold the checkpoint, that is lost.

        :param ram: in the order of their page numbers.
        """
        self._fingerprint = fingerprint
        self._ram = tuple((backend.id, backend.size) for backend in ram)
        self._ram_files = tuple(file_identity(backend.path) for backend in ram)
        held = self._held
        if held is None or self.unfit or held.ram_files == self._ram_files:
            return
        if held.header.base is None and not held.is_applied:
            # All of it is still here, and RAM is to be written anyway.
            self._held = attrs.evolve(held, ram_files=self._ram_files)
        else:
            self._drop("the standby's RAM is in a new file")

    def begin(self) -> None:
        """A transaction opens; what was not committed of the one before is dropped."""
        assert self._slots, "load() comes first"
        self._incoming = self._slots[1 - self._newest]
        self._incoming.restart()
        self._reader.restart(self._incoming)
        self._failure = None
        self._received = 0

    def write(self, data: Piece) -> None:
        """Payload bytes; never raises: see `failure`."""
        self._received += len(data)
        if self._incoming is None or self._failure is not None:
            return
        try:
            self._reader.feed(data)
        except SinkError as error:
            self._failure = error
        except MemoryError:
            self._failure = SinkError(ErrorCode.FLUSH, "there is no memory left to read the checkpoint")

    def abort(self) -> None:
        """Drop the open transaction, if there is one."""
        self._incoming = None
        self._failure = None

    def failure(self) -> SinkError | None:
        """Why the open transaction cannot be committed, as far as it was written."""
        if self._incoming is None or self._failure is not None:
            return self._failure
        if (incomplete := self._reader.incomplete()) is not None:
            return incomplete
        assert self._reader.header is not None
        return self._refusal(self._reader.header) or self._unapplied(self._reader.header)

    def commit(self, id: int = 0, xxh3: str = "") -> CheckpointHeader:
        """
        What was written becomes what is held, to be applied.

        :param id: of the transaction.
        :param xxh3: of its bytes.
        :raises SinkError: see `failure`; what was held stays so, and the transaction is dropped.
        """
        incoming, header = self._incoming, self._reader.header
        assert incoming is not None, "nothing was begun"
        try:
            if (failure := self.failure()) is not None:
                raise failure
            assert header is not None
            held = HeldCheckpoint(
                header=header,
                slot=self._slots.index(incoming),
                is_applied=False,
                id=id,
                xxh3=xxh3,
                bytes=self._received,
                committed_at=self._now(),
                ram_files=self._ram_files,
                boot=self._boot,
                extents=incoming.extents(),
            )
            self._write_meta(held)
        finally:
            self.abort()
        self._held = held
        self._newest = held.slot
        return header

    def apply(self, ram: StandbyRam) -> None:
        """
        Bring RAM into the state that is held, unless it is; blocks.  May be done again after it was cut short.

        :raises SinkError: if it cannot be done: nothing is held, or it is another VM's.  Errors of ``ram`` pass.
        """
        held = self._held
        if held is None:
            raise SinkError(ErrorCode.STATE_INVALID, "no checkpoint is held that could be applied")
        if self.unfit:
            raise SinkError(ErrorCode.STATE_INVALID, self.unfit)
        if ram.pages != held.header.pages:
            raise SinkError(
                ErrorCode.STATE_INVALID, f"RAM has {ram.pages} pages, the checkpoint is of {held.header.pages}"
            )
        if held.is_applied:
            return
        slot = self._slots[held.slot]
        self._is_busy = True
        try:
            if held.header.base is None:
                unsaid = _unsaid(slot, ram.pages)
                if len(unsaid):
                    ram.zero(unsaid)
            for numbers, pages in slot.segments():
                if pages is None:
                    ram.zero(numbers)
                else:
                    ram.put(numbers, pages)
            applied = attrs.evolve(held, is_applied=True)
            self._write_meta(applied)
            self._held = applied
            slot.trim(is_typical=held.header.base is not None)
        finally:
            self._is_busy = False

    def device_state(self) -> memoryview:
        """
        The device state of what is held; valid until a transaction begins after the next commit.

        :raises SinkError: if nothing is held.
        """
        if self._held is None:
            raise SinkError(ErrorCode.STATE_INVALID, "no checkpoint is held")
        return self._slots[self._held.slot].device.content.toreadonly()

    def forget(self) -> None:
        """Nothing is held any more: RAM is in no state that is known.  Giving back gigabytes takes a moment."""
        assert not self._is_busy, "what is being applied is still needed"
        self._is_busy = True
        try:
            held, self._held = self._held, None
            (self._directory / _META).unlink(missing_ok=True)
            if held is not None:
                self._slots[held.slot].trim(is_typical=False)
        finally:
            self._is_busy = False

    def close(self) -> None:
        """Let go of the files, which stay."""
        self._incoming = None
        self._held = None
        slots, self._slots = self._slots, ()
        for slot in slots:
            slot.close()

    def _check(self, header: CheckpointHeader) -> None:
        """What cannot be committed is not even received."""
        if (refusal := self._refusal(header)) is not None:
            raise refusal

    def _misfit(self, header: CheckpointHeader) -> str:
        if not self._ram:
            return "the standby's VM is not known yet"
        if header.ram != self._ram:
            return f"the checkpoint is of RAM {_layout(header.ram)}, the standby's VM has {_layout(self._ram)}"
        if header.fingerprint != self._fingerprint:
            return (
                "the standby's VM differs from the primary's in its uuid, machine type, processors or devices; give"
                " both the same command line"
            )
        return ""

    def _refusal(self, header: CheckpointHeader) -> SinkError | None:
        """Why a checkpoint that says this of itself can never be committed now."""
        why = self._misfit(header)
        held = self.held
        if not why and header.base is not None:
            if held is None:
                why = f"checkpoint {header.number} is based on {header.base}, but none is held"
            elif (held.generation, held.number) != (header.generation, header.base):
                why = (
                    f"checkpoint {header.number} is based on {header.base} of generation {header.generation}, but"
                    f" {held.number} of {held.generation} is held"
                )
        return SinkError(ErrorCode.STATE_INVALID, why) if why else None

    def _unapplied(self, header: CheckpointHeader) -> SinkError | None:
        """Whether something has to be done with the checkpoint that is held before this one may be committed."""
        if self._is_busy or (header.base is not None and not self.is_applied):
            return SinkError(
                ErrorCode.STATE_INVALID, "the checkpoint before this one is still being applied, or dropped"
            )
        return None

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self._directory.lstat()
        except OSError as error:
            raise cannot_store(f"cannot use {self._directory}", error) from None
        # It has the guest's memory in it, often in a directory that everybody may write to.
        if not self._directory.is_dir() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise SinkError(
                ErrorCode.FLUSH, f"{self._directory} is not a directory that only ftd can use; remove it, or chmod 700"
            )

    def _write_meta(self, held: HeldCheckpoint) -> None:
        """:raises SinkError: if it cannot be written; then the old one stands."""
        partial = self._directory / f"{_META}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                text = held.to_text().encode()
                if os.write(descriptor, text) != len(text):
                    raise OSError(0, "it was cut short")
            finally:
                os.close(descriptor)
            partial.rename(self._directory / _META)
        except OSError as error:
            raise cannot_store(f"cannot write {self._directory / _META}", error) from None

    def _drop(self, reason: str) -> None:
        self._log.warn("the checkpoint that was held is lost, a full one is needed: {reason}", reason=reason)
        self.forget()


def _unsaid(slot: Slot, pages: int) -> NDArray[np.int64]:
    """The runs of pages that a slot says nothing of."""
    # How many records speak of a page, as changes from the page before: one array, whatever the records are.
    changes = np.zeros(pages + 1, np.int32)
    for numbers, contents in slot.segments():
        firsts, ends = (numbers, numbers + 1) if contents is not None else (numbers[:, 0], numbers.sum(axis=1))
        # In one record no page begins twice, nor ends twice.
        changes[firsts] += 1
        changes[ends] -= 1
    is_unsaid = np.zeros(pages + 2, np.int8)
    np.equal(np.cumsum(changes[:-1], out=changes[:-1]), 0, out=is_unsaid[1:-1].view(np.bool_))
    edges = np.flatnonzero(np.diff(is_unsaid))
    return np.column_stack((edges[::2], edges[1::2] - edges[::2])).astype(np.int64)


def _layout(ram: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name} of {size // (1024 * 1024)} MiB" for name, size in ram)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def file_identity(path: str) -> str:
    """What tells a file from another one under the same name; empty while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"
