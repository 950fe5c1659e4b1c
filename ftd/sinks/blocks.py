"""
Memory for state: blocks that are allocated once and used again.

The first touch of fresh memory costs twenty times as much as a copy into memory that is warm, so blocks go back to a
pool instead of to the allocator.  A run of bytes grows by another block, never by moving what is there.
"""

from __future__ import annotations

from typing import Final

BLOCK_SIZE: Final = 1024 * 1024


class BlockPool:
    """
    :ivar spare: how many unused blocks are kept for the next transaction.
    """

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """A block of `BLOCK_SIZE` bytes with anything in it."""
        return self._free.pop() if self._free else bytearray(BLOCK_SIZE)

    def give(self, blocks: list[bytearray]) -> None:
        """Take back blocks that nobody uses any more; ``blocks`` is emptied."""
        self._free.extend(blocks[: max(0, self.spare - len(self._free))])
        blocks.clear()


class BlockRun:
    """Bytes in the order in which they were written, in blocks of a pool."""

    def __init__(self, pool: BlockPool) -> None:
        self.size = 0
        self.blocks: list[bytearray] = []
        self._pool = pool

    def write(self, data: bytes | memoryview) -> None:
        """Append a copy of ``data``."""
        view = memoryview(data)
        while view:
            offset = self.size % BLOCK_SIZE
            if offset == 0 and self.size == len(self.blocks) * BLOCK_SIZE:
                self.blocks.append(self._pool.take())
            fits = view[: BLOCK_SIZE - offset]
            self.blocks[-1][offset : offset + len(fits)] = fits
            self.size += len(fits)
            view = view[len(fits) :]

    def blocks_for(self, more: int) -> int:
        """How many blocks there would be with ``more`` bytes."""
        return -(-(self.size + more) // BLOCK_SIZE)

    def release(self) -> None:
        """Give the blocks back."""
        self._pool.give(self.blocks)
        self.size = 0
