"""What tests of a standby stand on: a host in memory on which QEMU comes and goes, real RAM files, a real store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import PairConfig, pair_from_mapping
from ftd.status import Checkpoint, VmStatus
from ftd.testing.fake_qmp import UUID, FakeQemu, QmpReactor
from ftd.testing.threads import SteppedThread, run_at_once
from ftd.vm.device_feed import load_from
from ftd.vm.discovery import Backend, Vm
from ftd.vm.encoding import Encoding
from ftd.vm.gates import Gates
from ftd.vm.processes import ProcessIdentity
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam
from ftd.vm.records import CheckpointHeader, Tally, checkpoint_record, device_record, end_record, pages_records
from ftd.vm.standby import VmStandby
from ftd.vm.standby_parts import StandbyParts
from ftd.vm.standby_store import StandbyStore
from ftd.vm.surroundings import VmSurroundings

QMP_PATH = "/run/vm.qmp"
GENERATION = "6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11"
PAGES = 64
DEVICE = b"device state " * 1000
#: qemu-time.
LIMIT = 5.0
NOW = 1_700_000_000.0


class RecordingGates(Gates):
    """Gates that pass nothing, and tell a log what is done with them."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(())
        self._log = log
        self.error: Exception | None = None
        self.is_open = False
        self.is_started = False

    def start(self) -> None:
        """See `Gates`."""
        if self.error is not None:
            raise self.error
        self.is_started = True

    def stop(self) -> Deferred[None]:
        """See `Gates`."""
        self.is_started = self.is_open = False
        return super().stop()

    def open(self) -> None:
        """See `Gates`."""
        self.is_open = True
        self._log.append("gates open")

    def close(self) -> None:
        """See `Gates`."""
        self.is_open = False
        self._log.append("gates close")


class FakeProcesses:
    """
    :ivar spawned: the words of every start, in order.
    :ivar on_spawn: what becomes of a process that is started; its number is given.
    :ivar words: what a process that is started says.
    :ivar living: by number, those that live; a `FakeQemu` lives as long as it is not dead.
    :ivar immortal: numbers of those that a SIGKILL does not end.
    """

    def __init__(self, reactor: QmpReactor) -> None:
        self.spawned: list[list[str]] = []
        self.on_spawn: Callable[[int], object] = lambda _: None
        self.words = ""
        self.living: dict[int, FakeQemu | None] = {}
        self.killed: list[int] = []
        self.immortal: set[int] = set()
        self.statuses: dict[int, int] = {}
        self.error: OSError | None = None
        self._reactor = reactor
        self._next = 1000

    def spawn(self, words: Sequence[str], log: Path) -> int:
        """See `Processes`."""
        if self.error is not None:
            raise self.error
        self._next += 1
        self.spawned.append(list(words))
        self.living[self._next] = None
        with log.open("a") as file:
            file.write(self.words)
        self.on_spawn(self._next)
        return self._next

    def exit_status(self, pid: int) -> int | None:
        """See `Processes`."""
        return self.statuses.get(pid)

    def identity(self, pid: int) -> ProcessIdentity | None:
        """See `Processes`."""
        qemu = self.living.get(pid)
        is_alive = pid in self.living and (qemu is None or not qemu.is_dead)
        return ProcessIdentity(pid, 7 * pid) if is_alive else None

    def kill(self, process: ProcessIdentity) -> None:
        """See `Processes`."""
        self.killed.append(process.pid)
        if process.pid in self.immortal:
            return
        qemu = self.living.pop(process.pid, None)
        if qemu is not None and not qemu.is_dead:
            qemu.die()

    def somebody_listens(self, path: str) -> bool:
        """See `Processes`."""
        qemu = self._reactor.qemus.get(path)
        return qemu is not None and not qemu.is_dead


class FailingRam(GuestRam):
    """RAM that cannot be written."""

    error: Exception | None = None

    def put(self, numbers: Any, pages: Any) -> None:
        """See `GuestRam`."""
        if self.error is not None:
            raise self.error
        super().put(numbers, pages)


def discover(qmp: Qmp, backends: Sequence[Backend]) -> Deferred[Vm]:
    """Asks little of QEMU, and believes the rest."""

    async def ask() -> Vm:
        uuid = (await qmp.execute("query-uuid"))["UUID"]
        return _vm(uuid, backends)

    return Deferred.fromCoroutine(ask())


def _vm(uuid: str, backends: Sequence[Backend]) -> Vm:
    return Vm(
        pid=1,
        uuid=uuid,
        version="7.2.22",
        machine="pc-i440fx-7.2",
        cpus=1,
        backends=tuple(backends),
        devices=(),
        run_state="inmigrate",
    )


class StandbyCase(SynchronousTestCase):
    """
    :ivar log: what happened, in order: commands to QEMU (without questions), gates.
    :ivar thread: ``None`` for threads that are done at once.
    """

    def setUp(self) -> None:
        self.reactor = QmpReactor()
        self.processes = FakeProcesses(self.reactor)
        self.log: list[str] = []
        self.root = Path(self.mktemp()).absolute()
        self.state = self.root / "state"
        self.state.mkdir(parents=True)
        self.backends = [Backend("ram0", PAGES * PAGE, str(self.root / "ram"))]
        self.make_ram_file()
        self.thread: SteppedThread | None = None
        self.loaded: list[bytes] = []
        self.changes = 0
        self.gates = RecordingGates(self.log)
        self.ram_error: Exception | None = None
        self.discovery_error: Exception | None = None
        self.now = NOW
        # The ftd that lives is the last of these.
        self.daemons: list[object] = []

    # The host

    def make_ram_file(self) -> None:
        """A new file for the guest's RAM, all zeros."""
        path = Path(self.backends[0].path)
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(self.backends[0].size)

    def qemu(self, run_state: str = "inmigrate", pid: int = 42) -> FakeQemu:
        """Start a QEMU; it can be reached as soon as time passes."""
        qemu = FakeQemu(self.reactor, backends=self.backends, run_state=run_state, uuid=UUID, pid=pid)
        self.processes.living[pid] = qemu
        self.reactor.qemus[QMP_PATH] = qemu
        for command in ("cont", "quit", "stop", "announce-self", "migrate-incoming"):
            act = getattr(qemu, "_do_" + command.replace("-", "_"))
            setattr(qemu, "_do_" + command.replace("-", "_"), partial(self._logged, command, act))
        qemu.on_incoming = lambda _: None
        return qemu

    def _logged(self, command: str, act: Callable[[Any], Any], arguments: Any) -> Any:
        self.log.append(command)
        return act(arguments)

    def spawns(self, run_state: str = "inmigrate") -> None:
        """From now on `qemu-command` starts QEMUs."""
        self.processes.on_spawn = lambda pid: self.qemu(run_state, pid)

    def pass_time(self, seconds: float = 0.5) -> None:
        """Let time pass, and everything that is said arrive."""
        self.reactor.pass_time(seconds, 0.01 if seconds <= 1 else 0.05)

    # The standby

    def config(self, **keys: str) -> PairConfig:
        """Of the pair; `qemu_command` is given by itself, as only a file may have it."""
        command = keys.pop("qemu_command", "")
        values = {"role": "secondary", "link": "tcp:8441:interface=127.0.0.1", "sink": "qemu", "qemu-qmp": QMP_PATH}
        return attrs.evolve(pair_from_mapping("vm", values | keys), qemu_command=command)

    def standby(self, *, is_started: bool = True, **keys: str) -> VmStandby:
        """A standby on this host; the one before must be gone."""
        daemon = object()
        self.daemons.append(daemon)
        around = VmSurroundings(
            reactor=self.reactor, run_in_thread=partial(self._in_thread, daemon), now=lambda: self.now
        )
        standby = VmStandby(
            self.config(**keys), around, directory=self.state, changed=self._changed, parts=self._parts(around)
        )
        if is_started:
            standby.start()
            self.pass_time()
        return standby

    def ready(self, *, ack: str = "received", qemu_command: str = "") -> tuple[VmStandby, FakeQemu]:
        """A standby whose QEMU waits."""
        qemu = self.qemu()
        standby = self.standby(ack=ack, qemu_command=qemu_command)
        self.assertEqual(standby.refusal(), "")
        return standby, qemu

    def dies(self) -> None:
        """ftd is gone, at once and without a word; QEMU and the files stay."""
        self.daemons.append(None)
        for link in self.reactor.links:
            if not link.is_over:
                link.cut(clean=True)
        self.thread = None
        self.gates = RecordingGates([])
        # QEMU hears of it.  The old one does too, and can do nothing about it.
        while self.reactor.links and any(link.step() for link in self.reactor.links):
            pass
        for call in list(self.reactor.getDelayedCalls()):
            call.cancel()
        self.reactor.unix_dialling.clear()
        self.reactor.links.clear()
        self.gates = RecordingGates(self.log)
        self.log.clear()

    def _changed(self) -> None:
        self.changes += 1

    def _in_thread(self, daemon: object, act: Callable[..., Any], *args: Any, **more: Any) -> Deferred[Any]:
        if daemon is not self.daemons[-1]:
            return Deferred()
        run = run_at_once if self.thread is None else self.thread
        return run(partial(act, *args, **more))

    def _parts(self, around: VmSurroundings) -> StandbyParts:
        def load(qmp: Qmp, state: memoryview) -> Deferred[None]:
            start = partial(self._load, bytes(state))
            return Deferred.fromCoroutine(load_from(qmp, "fd:test", start, self.reactor, LIMIT))

        def ask(qmp: Qmp) -> Deferred[Vm]:
            if self.discovery_error is not None:
                raise self.discovery_error
            return discover(qmp, self.backends)

        def open_ram(backends: Sequence[Backend]) -> GuestRam:
            ram = FailingRam(backends, writable=True)
            ram.error = self.ram_error
            return ram

        return StandbyParts(
            connect=lambda connected, lost, failed: QmpConnection(
                self.reactor,
                QMP_PATH,
                limit=LIMIT,
                reconnect_max=0.5,
                connected=connected,
                lost=lost,
                failed=failed,
                jitter=lambda: 1.0,
            ),
            store=StandbyStore(self.root / "staging", limit=16 << 20, now=around.now),
            gates=self.gates,
            processes=self.processes,
            discover=ask,
            load=load,
            open_ram=open_ram,
        )

    def _load(self, state: bytes) -> None:
        self.loaded.append(state)

    # Checkpoints

    def payload(
        self,
        number: int = 1,
        base: int | None = None,
        pages: dict[int, int] | None = None,
        *,
        device: bytes = DEVICE,
        fingerprint: str | None = None,
    ) -> bytes:
        """A checkpoint in which page n of ``pages`` is full of the word that it maps to."""
        vm = _vm(UUID, self.backends)
        header = CheckpointHeader(
            generation=GENERATION,
            number=number,
            base=base,
            uuid=UUID,
            machine=vm.machine,
            fingerprint=fingerprint or vm.fingerprint,
            ram=tuple((backend.id, backend.size) for backend in self.backends),
            qemu_version="7.2.22",
            time=NOW,
        )
        pages = {3: number} if pages is None else pages
        tally = Tally()
        pieces: list[Any] = [checkpoint_record(header)]
        tally.add_checkpoint()
        numbers = np.array(sorted(pages), dtype=np.int64)
        words = np.repeat(np.array([pages[page] for page in numbers], dtype=np.uint64)[:, None], PAGE_WORDS, axis=1)
        pieces += pages_records(numbers, np.ascontiguousarray(words), Encoding.RAW, tally)
        pieces += device_record(device)
        tally.add_device(len(device))
        pieces.append(end_record(tally))
        return b"".join(bytes(piece) for piece in pieces)

    def send(self, standby: VmStandby, payload: bytes, id: int = 0) -> Deferred[Checkpoint]:
        """A whole transaction."""
        standby.begin()
        standby.write(memoryview(payload))
        return standby.commit(id, "00000000000000aa", "whatever the sender says")

    def commit(self, standby: VmStandby, number: int = 1, base: int | None = None, **more: Any) -> Checkpoint:
        """One that succeeds."""
        done = self.send(standby, self.payload(number, base, **more), id=number)
        self.pass_time(0.02)
        return self.successResultOf(done)

    def ram(self) -> list[int]:
        """The first word of every page that is not zero, and its number: what is in the RAM file."""
        words = np.fromfile(self.backends[0].path, dtype=np.uint64).reshape(-1, PAGE_WORDS)
        return [int(word) for page in np.flatnonzero(words.any(axis=1)) for word in (page, words[page, 0])]

    # Taking over

    def result(self, doing: Deferred[None], seconds: float = 1.0) -> None:
        """What becomes of it, in time."""
        self.pass_time(seconds)
        self.successResultOf(doing)

    def error(self, doing: Deferred[Any], kind: type[Exception], seconds: float = 1.0) -> str:
        """The error that becomes of it, in time."""
        self.pass_time(seconds)
        return str(self.failureResultOf(doing, kind).value)

    def reason(self, standby: VmStandby) -> str:
        """Why it is not what it should be."""
        status: VmStatus = standby.vm_status()
        return status.reason

    def events(self) -> list[str]:
        """`log` since the last time."""
        log = list(self.log)
        self.log.clear()
        return log

    @property
    def marker(self) -> Path:
        """The file that says that it is promoted."""
        return self.state / "promoted"
