"""A standby's store on a small RAM, with a model that says what RAM has to look like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.records_case import FULL, PAGES, FakeRam, Payload, contents
from ftd.vm.discovery import Backend
from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE, PAGE_WORDS
from ftd.vm.records import CheckpointHeader
from ftd.vm.standby_store import StandbyStore

LIMIT = 4 * PAGES * PAGE


@attrs.frozen
class Said:
    """Pages with contents of ``seed``, or runs of zeros."""

    pages: tuple[int, ...] = ()
    seed: int = 0
    zeros: tuple[tuple[int, int], ...] = ()


def payload(
    header: CheckpointHeader, *said: Said, device: bytes = b"the device state", encoding: Encoding = Encoding.RAW
) -> bytes:
    """A checkpoint that says so."""
    made = Payload(header, encoding)
    for one in said:
        if one.pages:
            made.pages(*one.pages, seed=one.seed)
        if one.zeros:
            made.zeros(*one.zeros)
    return made.device(device).end()


def after(before: NDArray[np.uint64] | None, *said: Said) -> NDArray[np.uint64]:
    """What RAM is after a checkpoint: a full one where ``before`` is ``None``."""
    ram = np.zeros((PAGES, PAGE_WORDS), np.uint64) if before is None else before.copy()
    for one in said:
        ram[list(one.pages)] = contents(one.pages, one.seed)
        for first, count in one.zeros:
            ram[first : first + count] = 0
    return ram


class StoreTestCase(SynchronousTestCase):
    """
    :ivar store: loaded, and knows its VM.
    :ivar ram: of that VM.
    """

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.ram_directory = Path(self.mktemp())
        self.ram_directory.mkdir()
        self.backends = [Backend(name, size, str(self.ram_directory / name)) for name, size in FULL.ram]
        for backend in self.backends:
            Path(backend.path).touch()
        self.now = 1000.0
        self.ram = FakeRam()
        self.store = self.loaded()

    def loaded(self, directory: Path | None = None, limit: int = LIMIT) -> StandbyStore:
        """A new ftd's, which has found out what its VM is."""
        store = StandbyStore(directory or self.directory, limit=limit, device_limit=64 * 1024, now=lambda: self.now)
        self.addCleanup(store.close)
        store.load()
        store.expect(FULL.fingerprint, self.backends)
        return store

    def write(self, data: bytes, step: int = 5000) -> None:
        """A transaction, in pieces whose memory is used for something else afterwards."""
        self.store.begin()
        for first in range(0, len(data), step):
            piece = bytearray(data[first : first + step])
            self.store.write(memoryview(piece))
            piece[:] = bytes(len(piece))

    def commit(self, data: bytes) -> CheckpointHeader:
        """And commit it."""
        self.write(data)
        self.assertIsNone(self.store.failure())
        return self.store.commit()

    def take(self, data: bytes) -> None:
        """And apply it."""
        self.commit(data)
        self.store.apply(self.ram)

    def check_ram(self, expected: NDArray[np.uint64], ram: FakeRam | None = None) -> None:
        """RAM is so."""
        wrong = np.flatnonzero((expected != (ram or self.ram).content).any(axis=1))
        self.assertEqual(wrong.tolist(), [])

    def check_held(self, number: int | None, device: bytes = b"the device state") -> None:
        """This checkpoint is held."""
        held = self.store.held
        self.assertEqual(None if held is None else held.number, number)
        if number is not None:
            self.assertEqual(bytes(self.store.device_state()), device)

    def files(self) -> Sequence[str]:
        """What is in the directory."""
        return sorted(os.listdir(self.directory))
