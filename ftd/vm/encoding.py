"""
How the bytes of a checkpoint travel: as they are, or compressed, and which of the two is quicker now.

zstd at its lowest level gives about 0.7 GB/s a core on mixed data, so it pays on links that are slower than that, and
only where the data shrinks.  `EncodingChoice` decides from what was measured: how fast the link takes bytes, how fast
the pages compress and by how much.  Compressing one record and sending the one before it do overlap, but not always
(the first record, one core), so the sum of both times is what has to beat sending the bytes as they are.

Rejected: trying both in turn and keeping the quicker.  Two checkpoints are never alike, and one that is slow for
another reason would decide for a long time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Final

import zstandard

#: The fastest of the standard levels; the higher ones are slower than any link that would be worth them.
_LEVEL: Final = 1

#: What a compressed record may make its reader keep beside the result, in bytes.  Level 1 needs 512 KiB.
MAX_WINDOW: Final = 8 * 1024 * 1024

#: How much better one encoding has to be than the other before it takes over.
_HYSTERESIS: Final = 1.25

#: How much a new measurement counts against what was measured before.
_WEIGHT: Final = 0.25

#: Fewer bytes than these say more about the round trip than about the link's speed.
_TELLING_BYTES: Final = 64 * 1024

#: While nothing is compressed, so many checkpoints go by before a sample is compressed to see what it would bring.
_SAMPLE_EVERY: Final = 64

#: Bytes of a sample, at most.
SAMPLE_BYTES: Final = 256 * 1024

_own = threading.local()


class Encoding(IntEnum):
    """What the flags of a record say."""

    RAW = 0
    ZSTD = 1


def compress(data: memoryview) -> bytes:
    """
    One zstd frame that holds ``data`` and says its size.

    A compressor serves one thread at a time, so each thread has its own.
    """
    compressor: zstandard.ZstdCompressor | None = getattr(_own, "compressor", None)
    if compressor is None:
        compressor = _own.compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, write_checksum=False
        )
    return compressor.compress(data)


def decompress(frame: memoryview, room: memoryview) -> bool:
    """
    Fill ``room`` from one zstd frame; never takes more memory than that and `MAX_WINDOW`, whatever the frame says.

    :return: whether ``frame`` is one whole frame that fills ``room`` exactly; if not, anything may be in ``room``.
    """
    decompressor: zstandard.ZstdDecompressor | None = getattr(_own, "decompressor", None)
    if decompressor is None:
        decompressor = _own.decompressor = zstandard.ZstdDecompressor()
    try:
        says = zstandard.get_frame_parameters(frame)
        if says.content_size != len(room) or says.window_size > MAX_WINDOW or says.dict_id:
            return False
        if _end_of_frame(frame, len(room)) + (_CHECKSUM if says.has_checksum else 0) != len(frame):
            return False
        with decompressor.stream_reader(frame) as reader:
            done = 0
            while done < len(room):
                step = reader.readinto(room[done:])
                if not step:
                    return False
                done += step
            return not reader.read(1)
    except zstandard.ZstdError:
        return False


def _end_of_frame(frame: memoryview, size: int) -> int:
    """
    Where the blocks of the frame end that ``frame`` begins with (RFC 8878, section 3.1.1); 0 if they do not.

    The stream reader would not tell: it ignores what follows a frame, more or less of it in different versions.

    :param size: what is in the frame, in bytes: it bounds the work.
    :raises ZstdError: if it is none.
    """
    at = zstandard.frame_header_size(frame)
    for _ in range(_SPARE_BLOCKS + size // _SMALL_BLOCK):
        header = int.from_bytes(frame[at : at + _BLOCK_HEADER], "little")
        is_one_byte = (header >> 1) & 3 == _RLE_BLOCK
        at += _BLOCK_HEADER + (1 if is_one_byte else header >> 3)
        if at > len(frame):
            break
        if header & 1:
            return at
    return 0


#: Bytes of the header of a block in a zstd frame, and of what may follow the last one.
_BLOCK_HEADER: Final = 3
_CHECKSUM: Final = 4

#: A frame may have so many blocks, and one more for each of so many bytes.  Compressors make blocks of up to 128 KiB.
_SPARE_BLOCKS: Final = 16
_SMALL_BLOCK: Final = 256

#: The type of a block that has one byte, however long it is when it is decompressed.
_RLE_BLOCK: Final = 1


class EncodingChoice:
    """
    Which encoding the next checkpoint is to have.

    :param fixed: this one always; ``None``: the quicker one.
    :param clock: seconds; for tests.
    :ivar link_rate: bytes per second that the link takes, 0 while unknown.
    :ivar compress_rate: bytes per second that go into the compressor, 0 while unknown.
    :ivar ratio: what comes out for each byte that goes in.
    """

    def __init__(self, fixed: Encoding | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.encoding = Encoding.RAW if fixed is None else fixed
        self.link_rate = 0.0
        self.compress_rate = 0.0
        self.ratio = 1.0
        self._is_fixed = fixed is not None
        self._clock = clock
        self._until_sample = 0

    @property
    def is_sample_due(self) -> bool:
        """Whether `sample` should be given some pages, as nothing else tells how well they compress."""
        return not self._is_fixed and self.encoding is Encoding.RAW and self._until_sample <= 0

    def sample(self, data: memoryview) -> None:
        """Compress the first `SAMPLE_BYTES` of ``data`` and throw the result away; belongs in a thread."""
        data = data[:SAMPLE_BYTES]
        self._until_sample = _SAMPLE_EVERY
        if data:
            started = self._clock()
            size = len(compress(data))
            self.compressed(len(data), size, self._clock() - started)

    def compressed(self, before: int, after: int, seconds: float) -> None:
        """Compressing ``before`` bytes took so long and made ``after`` bytes of them."""
        if before <= 0 or seconds <= 0:
            return
        is_first = not self.compress_rate
        self.compress_rate = _mean(self.compress_rate, before / seconds, is_first)
        self.ratio = _mean(self.ratio, after / before, is_first)
        self._choose()

    def acknowledged(self, size: int, seconds: float, round_trip: float = 0.0) -> None:
        """
        A checkpoint is acknowledged.

        :param size: its bytes on the link.
        :param seconds: from its first byte to the ACK.
        :param round_trip: seconds that an empty transaction takes, if known: no encoding changes those.
        """
        self._until_sample -= 1
        seconds -= round_trip
        if size < _TELLING_BYTES or seconds <= 0:
            return
        self.link_rate = _mean(self.link_rate, size / seconds, not self.link_rate)
        self._choose()

    def _choose(self) -> None:
        """
        A byte takes 1/link as it is, and 1/compressor + ratio/link compressed: the latter is less where
        compressor * (1 - ratio) > link.
        """
        if self._is_fixed or not self.link_rate or not self.compress_rate:
            return
        pays_up_to = self.compress_rate * (1.0 - self.ratio)
        if self.encoding is Encoding.RAW and pays_up_to > self.link_rate * _HYSTERESIS:
            self.encoding = Encoding.ZSTD
        elif self.encoding is Encoding.ZSTD and pays_up_to * _HYSTERESIS < self.link_rate:
            self.encoding = Encoding.RAW
            self._until_sample = _SAMPLE_EVERY


def _mean(before: float, now: float, is_first: bool) -> float:
    return now if is_first else before + _WEIGHT * (now - before)
