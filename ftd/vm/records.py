"""
The payload of a VM checkpoint: records, and the functions that write them.

The wire carries it without looking into it.  A record is a header of 16 bytes and a body; ``docs/payload.md`` has
every byte.  The order is: one *checkpoint*, then any number of *pages* and *zeros* and exactly one *device* in any
order, then *end* and nothing more.  A page may come several times: what was said of it last counts, which is what
lets a full checkpoint be sent in pieces while the guest runs on.

Nothing here copies a page that is sent as it is: a record is returned in pieces, and the pages are a view of the
caller's memory, which must stay as it is until the pieces are sent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from ftd.sinks.sink import SinkError
from ftd.vm.encoding import Encoding, compress
from ftd.vm.ram import PAGE, PAGE_WORDS
from ftd.wire.errors import ErrorCode

#: ``kind`` u16, ``version`` u16, ``flags`` u32, ``length`` u64: of the body, in bytes.
RECORD_HEADER: Final = struct.Struct("<HHIQ")

#: The version of every kind of record.
RECORD_VERSION: Final = 1

#: Opens the body of a pages record: the number of pages.
PAGES_COUNT: Final = struct.Struct("<I")

#: Opens the body of a device record: the bytes of the device state before compression.
DEVICE_SIZE: Final = struct.Struct("<Q")

#: The body of an end record: pages, zero pages, bytes of device state, records before this one.
END_COUNTS: Final = struct.Struct("<QQQQ")

#: Bytes of a run in a zeros record: first page u32, number of pages u32.
RUN_SIZE: Final = 8

#: The longest body of a checkpoint record.
MAX_CHECKPOINT: Final = 64 * 1024

#: The most pages of one record: 64 MiB.
MAX_RECORD_PAGES: Final = 16 * 1024

#: The most runs of one record.
MAX_RECORD_RUNS: Final = 64 * 1024

#: Page numbers travel in 32 bits: 16 TiB of guest RAM.
MAX_PAGES: Final = 1 << 32

#: Pages of a record that is compressed: the receiver sets to work while the next one is compressed.
_COMPRESSED_PAGES: Final = 256

Piece = bytes | memoryview


class RecordKind(IntEnum):
    """What a record's ``kind`` says."""

    CHECKPOINT = 1
    PAGES = 2
    ZEROS = 3
    DEVICE = 4
    END = 5


class RecordError(SinkError):
    """A payload that is no checkpoint: RECV_PAYLOAD, or STATE_INVALID where a record stands in the wrong place."""


@attrs.frozen
class CheckpointHeader:
    """
    What the first record says.

    :ivar generation: UUID of the lineage that the checkpoint is in.
    :ivar number: of the checkpoint in its generation, from 1.
    :ivar base: the number of the checkpoint that this one says the changes to; ``None``: it is full.
    :ivar uuid: of the VM.
    :ivar machine: QEMU's type of machine.
    :ivar fingerprint: of all that both VMs must have in common.
    :ivar ram: id and bytes of each RAM backend, in the order of their page numbers.
    :ivar qemu_version: of the primary.
    :ivar time: when the guest was stopped for it, Unix seconds.
    """

    generation: str
    number: int
    base: int | None
    uuid: str
    machine: str
    fingerprint: str
    ram: tuple[tuple[str, int], ...]
    qemu_version: str
    time: float

    @property
    def pages(self) -> int:
        """The pages of all backends."""
        return sum(size for _id, size in self.ram) // PAGE

    def to_json(self) -> dict[str, object]:
        """As it travels."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, document: object) -> CheckpointHeader:
        """
        :raises RecordError: if ``document`` is not what `to_json` gives; unknown keys are for later versions.
        """
        if not isinstance(document, dict):
            raise _damaged("the checkpoint record is no JSON object")
        number = _number(document, "number", 1)
        base = None if document.get("base", 0) is None else _number(document, "base", 1)
        if base is not None and base >= number:
            raise _damaged(f"checkpoint {number} cannot be based on {base}")
        time = document.get("time")
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1 << 40:
            raise _damaged("the checkpoint record has no time")
        texts = {name: _text(document, name) for name in _TEXTS}
        return cls(number=number, base=base, ram=_ram(document.get("ram")), time=float(time), **texts)


_TEXTS: Final = ("generation", "uuid", "machine", "fingerprint", "qemu_version")

#: The longest text in a checkpoint record, in characters.
MAX_TEXT: Final = 256

#: The most RAM backends of a VM.
_MAX_BACKENDS: Final = 256


def _damaged(detail: str) -> RecordError:
    return RecordError(ErrorCode.RECV_PAYLOAD, detail)


def _number(document: Mapping[str, object], name: str, least: int) -> int:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
        raise _damaged(f"the checkpoint record's {name} is no number from {least}")
    return value


def _text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    # What cannot be printed must not reach a log; that includes halves of surrogate pairs, which JSON can spell.
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
        raise _damaged(f"the checkpoint record's {name} is no text of at most {MAX_TEXT} characters")
    return value


def _ram(value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_BACKENDS:
        raise _damaged(f"the checkpoint record's ram is no list of 1 to {_MAX_BACKENDS} backends")
    ram: dict[str, int] = {}
    for backend in value:
        if not isinstance(backend, list) or len(backend) != 2:
            raise _damaged("a backend in the checkpoint record is no id and size")
        name = _text({"backend": backend[0]}, "backend")
        size = _number({"size": backend[1]}, "size", PAGE)
        if size % PAGE or name in ram:
            raise _damaged(f"the checkpoint record's backend {name} is there twice or is not in whole pages")
        ram[name] = size
    if sum(ram.values()) > MAX_PAGES * PAGE:
        raise _damaged("the checkpoint record has more RAM than page numbers can tell")
    return tuple(ram.items())


@attrs.define
class Tally:
    """
    What was written of a checkpoint, for its `end_record`; a reader counts the same.

    :ivar pages: in pages records, one that came twice counted twice.
    :ivar zero_pages: in zeros records.
    :ivar device_bytes: of the device state before compression.
    :ivar records: all of them, without the end.
    """

    pages: int = 0
    zero_pages: int = 0
    device_bytes: int = 0
    records: int = 0

    def add_checkpoint(self) -> None:
        """The first record."""
        self.records += 1

    def add_pages(self, count: int) -> None:
        """A pages record with so many."""
        self.records += 1
        self.pages += count

    def add_zeros(self, count: int) -> None:
        """A zeros record with so many pages (not runs)."""
        self.records += 1
        self.zero_pages += count

    def add_device(self, size: int) -> None:
        """The device record."""
        self.records += 1
        self.device_bytes += size


def checkpoint_record(header: CheckpointHeader) -> bytes:
    """The first record.  :raises ValueError: if it is too long for a reader."""
    body = json.dumps(header.to_json(), separators=(",", ":")).encode()
    if len(body) > MAX_CHECKPOINT:
        raise ValueError(f"a checkpoint record of {len(body)} bytes; {MAX_CHECKPOINT} are allowed")
    return _header(RecordKind.CHECKPOINT, Encoding.RAW, len(body)) + body


def pages_record(
    numbers: NDArray[np.int64], pages: NDArray[np.uint64], encoding: Encoding = Encoding.RAW
) -> tuple[Piece, ...]:
    """
    Pages with what is in them.

    :param numbers: which, shape n, ascending, none twice; from 1 to `MAX_RECORD_PAGES`.
    :param pages: shape (n, 512), contiguous; the result has views of it unless it is compressed.
    :param encoding: pages that do not shrink go as they are, which the record says.
    :raises ValueError: for other arrays.
    """
    count = len(numbers)
    if not 1 <= count <= MAX_RECORD_PAGES:
        raise ValueError(f"{count} pages in a record; 1 to {MAX_RECORD_PAGES} are allowed")
    if pages.shape != (count, PAGE_WORDS) or not pages.flags.c_contiguous or pages.itemsize != 8:
        raise ValueError(f"{count} pages need a contiguous array of ({count}, {PAGE_WORDS}) words, not {pages.shape}")
    _check_ascending(numbers[0], numbers[-1])
    encoding, data = _encoded(_bytes_of(pages), encoding)
    head = _header(RecordKind.PAGES, encoding, PAGES_COUNT.size + 4 * count + len(data))
    return head + PAGES_COUNT.pack(count) + numbers.astype("<u4").tobytes(), data


def pages_records(
    numbers: NDArray[np.int64], pages: NDArray[np.uint64], encoding: Encoding, tally: Tally
) -> Iterator[Piece]:
    """As many pages as there are, in as many records as they need; see `pages_record`.  None need none."""
    step = MAX_RECORD_PAGES if encoding is Encoding.RAW else _COMPRESSED_PAGES
    for first in range(0, len(numbers), step):
        some = numbers[first : first + step]
        yield from pages_record(some, pages[first : first + step], encoding)
        tally.add_pages(len(some))


def zeros_record(runs: NDArray[np.int64]) -> bytes:
    """
    Pages that are all zeros.

    :param runs: shape (n, 2): first page and number of pages; ascending, none overlap; from 1 to `MAX_RECORD_RUNS`.
    :raises ValueError: for other arrays.
    """
    count = len(runs)
    if runs.shape != (count, 2) or not 1 <= count <= MAX_RECORD_RUNS:
        raise ValueError(f"runs of shape {runs.shape} in a record; (1 to {MAX_RECORD_RUNS}, 2) are allowed")
    _check_ascending(runs[0, 0], runs[-1, 0])
    return _header(RecordKind.ZEROS, Encoding.RAW, RUN_SIZE * count) + runs.astype("<u4").tobytes()


def zeros_records(runs: NDArray[np.int64], tally: Tally) -> Iterator[bytes]:
    """As many runs as there are, in as many records as they need; see `zeros_record`.  None need none."""
    for first in range(0, len(runs), MAX_RECORD_RUNS):
        some = runs[first : first + MAX_RECORD_RUNS]
        yield zeros_record(some)
        tally.add_zeros(int(some[:, 1].sum()))


def device_record(blob: bytes | bytearray | memoryview, encoding: Encoding = Encoding.RAW) -> tuple[Piece, ...]:
    """The device state: what QEMU wrote when it was told to migrate without its RAM.  See `pages_record`."""
    view = memoryview(blob).cast("B")
    encoding, data = _encoded(view, encoding)
    head = _header(RecordKind.DEVICE, encoding, DEVICE_SIZE.size + len(data))
    return head + DEVICE_SIZE.pack(len(view)), data


def end_record(tally: Tally) -> bytes:
    """The last record."""
    counts = END_COUNTS.pack(tally.pages, tally.zero_pages, tally.device_bytes, tally.records)
    return _header(RecordKind.END, Encoding.RAW, len(counts)) + counts


def split_zero(pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """
    Which of ``pages``, shape (n, 512), are all zeros, shape n.

    Few pages begin with a zero and are not all zeros, so nearly all are told by one word.
    """
    is_zero: NDArray[np.bool_] = pages[:, 0] == 0
    if is_zero.any():
        is_zero &= pages[:, PAGE_WORDS // 2] == 0
        candidates = np.flatnonzero(is_zero)
        for first in range(0, len(candidates), _ZERO_BLOCK):
            some = candidates[first : first + _ZERO_BLOCK]
            is_zero[some] = ~pages[some].any(axis=1)
    return is_zero


#: Pages that are compared with zero at a time: they stay in the processor's cache.
_ZERO_BLOCK: Final = 64


def _header(kind: RecordKind, encoding: Encoding, length: int) -> bytes:
    return RECORD_HEADER.pack(kind, RECORD_VERSION, encoding, length)


def _check_ascending(first: np.int64, last: np.int64) -> None:
    """A reader checks all of them; this finds numbers that would not even travel."""
    if not 0 <= first <= last < MAX_PAGES:
        raise ValueError(f"pages {first} to {last}; they have to ascend from 0 to {MAX_PAGES - 1}")


def _encoded(data: memoryview, encoding: Encoding) -> tuple[Encoding, Piece]:
    if encoding is Encoding.ZSTD:
        compressed = compress(data)
        if len(compressed) < len(data):
            return Encoding.ZSTD, compressed
    return Encoding.RAW, data


def _bytes_of(pages: NDArray[np.uint64]) -> memoryview:
    return pages.reshape(-1).view(np.uint8).data
