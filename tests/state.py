"""States to push: bytes that are the same in every run, and so many of them that they are made on the way."""

from __future__ import annotations

import os
import random
from io import RawIOBase

import xxhash
from twisted.web.client import FileBodyProducer

MIB = 1024 * 1024


def state_of(size: int, seed: str = "") -> bytes:
    """So many bytes that look random and depend on ``seed`` and nothing else."""
    return random.Random(seed).randbytes(size)


class LongState(RawIOBase):
    """
    A file of any length that takes no place: blocks of one MiB, each with its number in front.

    :ivar at: how much has been read.
    :ivar digest: the xxh3-64 of that.
    """

    def __init__(self, mebibytes: int) -> None:
        super().__init__()
        self.size = mebibytes * MIB
        self.at = 0
        self.digest = xxhash.xxh3_64()
        self._block = state_of(MIB, "a long state")

    def read(self, size: int = -1) -> bytes:
        """The rest of the current block, whatever was asked for; nothing at the end."""
        assert size < 0 or size >= MIB, "it is read by the block"
        if self.at >= self.size:
            return b""
        data = self.at.to_bytes(8, "little") + self._block[8:]
        self.at += len(data)
        self.digest.update(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """To an end of it: that is how its length is found out."""
        self.at = self.size if whence == os.SEEK_END else offset
        return self.at

    def tell(self) -> int:
        """Where it stands."""
        return self.at

    def body(self) -> FileBodyProducer:
        """As the body of a request."""
        return FileBodyProducer(self, readSize=MIB)
