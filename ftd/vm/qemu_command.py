"""
``qemu-command``: a standby's QEMU, started by ftd whenever there is none.

It looks every `_LOOK` seconds, and starts one when one is wanted, QMP is not connected, nobody listens at its socket,
and the last one has ended.  A look costs nothing while QMP is connected.  Rejected: being told of the end by SIGCHLD,
as most ends are those of a QEMU that an earlier ftd started, or that the command put into the background.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ftd.vm.processes import Processes, ProcessIdentity

#: Seconds between two looks.
_LOOK = 0.1

#: Starts in a minute, whatever comes of them.
STARTS_A_MINUTE = 10

#: Seconds before a command that failed is tried again: the first time, and at most.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0

#: Seconds between two looks at a socket where somebody listens who is not ftd's QEMU.
_LISTENER_WAIT = 5.0

#: Seconds after which a QEMU that does not answer yet is worth a word.
_SLOW = 10.0

#: Bytes of the log from which on a new one is begun.
_LOG_LIMIT = 1 << 20

#: Bytes of the log of a QEMU that goes on and on, and seconds between two looks at it.  What it is told to write to its
#: standard output is the guest's, and must not fill the disk that the promotion is to be written to.
LONGEST_LOG, _LOG_LOOK = 16 << 20, 10.0

#: Characters of QEMU's last words that are shown.
_WORDS_LIMIT = 300


class QemuCommand:
    """
    :param command: a command line, in words as for a shell.
    :param qmp_path: where its QMP listens.
    :param directory: for its log and for what a later ftd has to know of it.
    :param changed: called when `reason` is another one.
    :ivar reason: why there is no QEMU, as far as the command has to do with it; empty where nothing is wrong.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        command: str,
        *,
        qmp_path: str,
        directory: Path,
        processes: Processes,
        changed: Callable[[], None],
    ) -> None:
        self.reason = ""
        self._clock = clock
        self._words = shlex.split(command)
        self._qmp_path = qmp_path
        self._log_path = directory / "qemu.log"
        self._note_path = directory / "qemu-process"
        self._processes = processes
        self._changed = changed
        self._is_wanted = False
        self._is_connected = False
        self._timer: IDelayedCall | None = None
        self._process: ProcessIdentity | None = None
        # Where in the log the words of the latest one begin.
        self._log_start = 0
        self._starts: deque[float] = deque(maxlen=STARTS_A_MINUTE)
        self._failures = 0
        self._not_before = 0.0
        self._probe_after = 0.0
        self._log_look_after = 0.0

    # What its owner calls

    def start(self) -> None:
        """Begin to look after it; one that an earlier ftd has started is known again."""
        self._process = self._noted()
        self._look()

    def stop(self) -> None:
        """Look no more.  QEMU stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def want(self, is_wanted: bool) -> None:
        """Whether there should be one.  If there should be one again, what became of earlier ones counts no more."""
        if is_wanted and not self._is_wanted:
            self._starts.clear()
            self._failures = 0
            self._not_before = 0.0
        self._is_wanted = is_wanted
        if not is_wanted:
            self._say("")

    def connected(self) -> None:
        """QMP answers."""
        self._is_connected = True
        self._probe_after = 0.0
        self._say("")

    def lost(self) -> None:
        """QMP does not answer any more."""
        self._is_connected = False

    def is_good(self) -> None:
        """The QEMU that it has started is what was wanted: should it end, another one is started at once."""
        self._failures = 0

    def is_gone(self) -> None:
        """Whoever listened at its socket does not any more."""
        self._probe_after = 0.0

    @property
    def process(self) -> ProcessIdentity | None:
        """The one that was started last, by this ftd or the one before; it may have ended."""
        return self._process

    def last_words(self) -> str:
        """The last line that the latest one has said; empty if it has said nothing."""
        try:
            with self._log_path.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self._log_start, end - 16 * _WORDS_LIMIT))
                lines = file.read().decode("utf-8", "backslashreplace").split("\n")
        except OSError:
            return ""
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][-_WORDS_LIMIT:] if said else ""

    # Looking

    def _look(self) -> None:
        self._timer = self._clock.callLater(_LOOK, self._look)
        self._bound_log()
        if not self._is_wanted or self._is_connected:
            return
        if self._process is not None:
            try:
                is_alive = self._processes.identity(self._process.pid) == self._process
            except OSError as error:
                self._say(f"whether process {self._process.pid} of qemu-command lives cannot be told: {error.strerror}")
                return
            if is_alive:
                self._watch(self._process)
                return
            self._note_end(self._process)
        if self._clock.seconds() < max(self._not_before, self._probe_after):
            return
        if self._processes.somebody_listens(self._qmp_path):
            # Every try leaves an entry in the queue of a QEMU that hangs or has another client.
            self._probe_after = self._clock.seconds() + _LISTENER_WAIT
            return
        self._launch()

    def _watch(self, process: ProcessIdentity) -> None:
        """It lives and does not answer (yet)."""
        if self._starts and self._clock.seconds() - self._starts[-1] < _SLOW:
            return
        self._say(
            f"the QEMU of qemu-command (process {process.pid}) does not answer at {self._qmp_path}; is that where its"
            f" -qmp is, and is nobody else connected?  It says: {self.last_words() or 'nothing'}"
        )

    def _note_end(self, process: ProcessIdentity) -> None:
        status = self._processes.exit_status(process.pid)
        self._process = None
        self._note_path.unlink(missing_ok=True)
        how = "" if status is None else f" with status {status}" if status >= 0 else f" by signal {-status}"
        words = self.last_words()
        self._fail(f"qemu-command has ended{how}: {words or 'it says nothing'} ({self._log_path})")

    def _launch(self) -> None:
        now = self._clock.seconds()
        if len(self._starts) == STARTS_A_MINUTE and now - self._starts[0] < 60.0:
            self._say(
                f"qemu-command was started {STARTS_A_MINUTE} times in a minute, now it has to wait; {self.reason}"
            )
            self._not_before = self._starts[0] + 60.0
            return
        self._starts.append(now)
        try:
            self._begin_log()
            pid = self._processes.spawn(self._words, self._log_path)
            self._process = self._processes.identity(pid) or ProcessIdentity(pid, 0)
            self._note_path.write_text(json.dumps({"pid": pid, "start": self._process.start}))
        except OSError as error:
            self._fail(f"qemu-command cannot be started: {error.filename or self._words[0]}: {error.strerror}")
            return
        self.log.info("qemu-command is process {pid}, which logs to {path}", pid=pid, path=self._log_path)

    def _begin_log(self) -> None:
        self._log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            if self._log_path.stat().st_size > _LOG_LIMIT:
                self._log_path.rename(self._log_path.with_suffix(".log.old"))
        with self._log_path.open("ab") as file:
            self._log_start = file.tell()

    def _bound_log(self) -> None:
        if self._clock.seconds() < self._log_look_after:
            return
        self._log_look_after = self._clock.seconds() + _LOG_LOOK
        with suppress(OSError):
            if self._log_path.stat().st_size > LONGEST_LOG:
                # QEMU has it open and appends: what it says from now on is at the beginning.
                os.truncate(self._log_path, 0)
                self._log_start = 0

    def _fail(self, reason: str) -> None:
        """A start has come to nothing, or a QEMU to an end: the first time the next one is started at once."""
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._failures - 1)) if self._failures else 0.0
        self._failures = min(self._failures + 1, 20)
        self._not_before = self._clock.seconds() + wait
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            if reason:
                self.log.warn("{reason}", reason=reason)
            self._changed()

    def _noted(self) -> ProcessIdentity | None:
        try:
            noted = json.loads(self._note_path.read_text())
            return ProcessIdentity(int(noted["pid"]), int(noted["start"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
