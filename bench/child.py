"""
A process of the bench, as the one that started it sees it.

Both speak JSON, a line each way: a request names what to do, its arguments beside it; the answer is what came of it, or
``error``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.daemon import TREE

#: Seconds for anything that a child is asked; several times of what the slowest takes on a slow machine.
PATIENCE = 180.0

Answer = dict[str, Any]


class ChildError(Exception):
    """A child could not do what it was asked for; says why."""


class Child:
    """
    One process of the bench; ends with a `with`.

    :param module: what it runs.
    :param tree: where it finds the package ftd.
    :param log: gets what it has to say about errors.
    :param core: the one that it runs on, modulo how many there are; ``None`` for any.
    """

    def __init__(self, module: str, *arguments: str, log: Path, tree: Path = TREE, core: int | None = None) -> None:
        path = os.pathsep.join(dict.fromkeys((str(tree), str(TREE))))
        self._log = log
        with log.open("ab") as errors:
            # -P: the directory that it is started in is not searched for modules.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        if core is not None:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self._process.pid, {cores[core % len(cores)]})
        self._rest = b""

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, do: str, **arguments: object) -> Answer:
        """
        One request and its answer.

        :raises ChildError: if it says so, ends, or takes too long.
        """
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: object) -> None:
        """A request; `answer` gets what comes of it, and meanwhile others may be asked."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Answer:
        """The answer to the oldest request that has not been answered."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise ChildError(f"no answer within {PATIENCE:g} s{self._said()}")
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise self._ended()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def end(self) -> None:
        """Close its standard input, which ends it; kill it if that does not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ended(self) -> ChildError:
        return ChildError(f"the process ended with {self._process.wait()}{self._said()}")

    def _said(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return f"; it said:\n{text[-2000:]}" if text else ""
