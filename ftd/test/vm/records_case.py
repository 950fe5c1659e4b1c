"""Checkpoints for tests: a small RAM of two backends, contents that tell pages apart, payloads of records."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE, PAGE_WORDS
from ftd.vm.records import (
    CheckpointHeader,
    Tally,
    checkpoint_record,
    device_record,
    end_record,
    pages_records,
    zeros_records,
)

#: Pages of the RAM.
PAGES = 96

OURS = "6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11"
THEIRS = "0c0ffee0-0000-4000-8000-000000000001"

FULL = CheckpointHeader(
    generation=OURS,
    number=1,
    base=None,
    uuid="11111111-2222-3333-4444-555555555555",
    machine="pc-i440fx-7.2",
    fingerprint="00112233445566778899aabbccddeeff",
    ram=(("ram0", 64 * PAGE), ("ram1", 32 * PAGE)),
    qemu_version="7.2.22",
    time=1700000000.25,
)


def delta(number: int, base: int | None = None) -> CheckpointHeader:
    """What says the changes to the one before, or to ``base``."""
    return attrs.evolve(FULL, number=number, base=number - 1 if base is None else base)


def page_numbers(*numbers: int) -> NDArray[np.int64]:
    """As the writer wants them."""
    return np.array(numbers, np.int64)


def contents(numbers: Sequence[int] | NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]:
    """A page for each number, none of them zero, and no two alike if number or ``seed`` differ."""
    first: NDArray[np.uint64] = (np.asarray(numbers, np.uint64) + np.uint64(1)) * np.uint64(1 << 32) + np.uint64(seed)
    pages: NDArray[np.uint64] = first[:, None] + np.arange(PAGE_WORDS, dtype=np.uint64) * np.uint64(1 << 52)
    return pages


class Payload:
    """
    A payload that is written record by record.

    :ivar data: what there is of it.
    """

    def __init__(self, header: CheckpointHeader = FULL, encoding: Encoding = Encoding.RAW) -> None:
        self.tally = Tally()
        self._encoding = encoding
        self.data = checkpoint_record(header)
        self.tally.add_checkpoint()

    def pages(self, *numbers: int, seed: int = 0) -> Payload:
        """With `contents`."""
        made = pages_records(page_numbers(*numbers), contents(numbers, seed), self._encoding, self.tally)
        self.data += b"".join(made)
        return self

    def zeros(self, *runs: tuple[int, int]) -> Payload:
        """First page and number of pages."""
        self.data += b"".join(zeros_records(np.array(runs, np.int64), self.tally))
        return self

    def device(self, blob: bytes = b"the device state") -> Payload:
        """A device record."""
        self.data += b"".join(device_record(blob, self._encoding))
        self.tally.add_device(len(blob))
        return self

    def end(self) -> bytes:
        """All of it."""
        return self.data + end_record(self.tally)


@attrs.define(eq=False)
class FakeRam:
    """
    RAM that is an array.

    :ivar calls: what was done to it.
    """

    pages: int = PAGES
    content: NDArray[np.uint64] = attrs.field(init=False)
    calls: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        # Whatever was there before: nothing that a checkpoint says.
        self.content = contents(range(self.pages), seed=0xDEAD)

    def put(self, numbers: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
        """Write pages."""
        assert numbers.dtype == np.int64 and pages.shape == (len(numbers), PAGE_WORDS)
        self.calls.append("put")
        self.content[numbers] = pages

    def zero(self, runs: NDArray[np.int64]) -> None:
        """Make pages zero."""
        assert runs.dtype == np.int64 and runs.shape == (len(runs), 2)
        self.calls.append("zero")
        for first, count in runs.tolist():
            assert count > 0
            self.content[first : first + count] = 0
