"""One pass over memory, the least that a comparison can take: libc's ``memcmp``, two threads, half of it each."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_THREADS = 2

#: Bytes of the pattern with which the buffers are filled.
_BLOCK = 1 << 20


class MemoryPass:
    """
    Two buffers with the same in them: one in a file on tmpfs, as a guest's RAM is, and one of this process.

    :param size: bytes of each.
    :param path: of the file, which is made, and removed by `close`.
    """

    def __init__(self, size: int, path: Path) -> None:
        self._size = size
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._maps = (mmap.mmap(descriptor, size), mmap.mmap(-1, size))
        finally:
            os.close(descriptor)
        block = np.random.default_rng(0).integers(1, 255, _BLOCK, dtype=np.uint8).tobytes()
        for memory in self._maps:
            for start in range(0, size, _BLOCK):
                memory[start : start + _BLOCK] = block
        self._threads = ThreadPoolExecutor(_THREADS)

    def close(self) -> None:
        """Give the memory back."""
        self._threads.shutdown()
        self._path.unlink(missing_ok=True)
        for memory in self._maps:
            memory.close()

    def seconds(self) -> float:
        """How long it takes now."""
        arrays = [np.frombuffer(memory, dtype=np.uint8) for memory in self._maps]
        one, other = (int(array.ctypes.data) for array in arrays)
        half = self._size // _THREADS
        begin = time.perf_counter()
        differ = self._threads.map(lambda at: _memcmp(one + at, other + at, half), range(0, self._size, half))
        assert not any(differ), "the buffers are the same"
        return time.perf_counter() - begin
