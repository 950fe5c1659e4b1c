"""
A daemon with pairs that live in memory and do as they are told: for tests of the API and of its clients.

The pairs keep the rules that can be seen from outside (states, errors, who may call ``finish`` and ``cut`` when), and
break loudly when their caller does not.  Whether there is a link, a freeze or an acknowledgement, the test says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import attrs
import xxhash
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from ftd.bus import EventBus
from ftd.errors import AlreadyExists, ConfigError, FtdError, LinkDown, NoAck, NotInState, Unknown
from ftd.interfaces import ICheckpointStore, IDaemon, IPair, IPrimaryPair, ISecondaryPair, IUpload
from ftd.status import (
    Checkpoint,
    Commit,
    FtMode,
    LinkState,
    OpenTransaction,
    Outcome,
    PairStatus,
    Timeline,
    TransactionStatus,
    VmState,
    VmStatus,
    to_json,
)
from ftd.trace import PairTrace


def fake_status(name: str, role: str) -> PairStatus:
    """A pair that is up and has done nothing yet."""
    return PairStatus(
        name=name,
        role=role,
        peer="ftd",
        link_state=LinkState.UP,
        link_address="tcp:127.0.0.1:8441",
        link_peer="127.0.0.1:8441",
        link_detail="",
        state="ACK",
        ft_mode=FtMode.TRANSACTION_COMMIT,
        transaction=None,
        id=0,
        last_committed=None,
        has_error=0,
        has_error_name=None,
        has_error_detail=None,
        freeze_output=False,
        freeze_input=False,
        rate_limit=True,
        bandwidth_limit=0,
        buffered_bytes=0,
        generation=None,
        bytes_sent=0,
        bytes_received=0,
        transactions_committed=0,
        transactions_cancelled=0,
        transactions_nacked=0,
        transactions_failed=0,
        heartbeats=0,
        reconnects=0,
    )


def fake_vm(role: str) -> VmStatus:
    """A VM that is protected, or the one that stands by for it."""
    is_primary = role == "primary"
    return VmStatus(
        status=VmState.PROTECTED,
        generation="9d5e6c1e-51b4-4ab4-bb12-6e0a4f2f6f10",
        checkpoint=12,
        interval_ms=50.0 if is_primary else None,
        protection=True if is_primary else None,
        run_state="running" if is_primary else "inmigrate",
        dirty_tracking="write-protect" if is_primary else None,
        ram_bytes=128 * 1024 * 1024,
        qemu_version="7.2.22",
    )


@implementer(IUpload)
class FakeUpload:
    """
    What an upload brought.

    :ivar body: the producer that the upload came with.
    :ivar chunks: what was written.
    :ivar ending: ``finished``, or the reason for which it was cut; empty while it goes on.
    :ivar on_write: called after every write, for what a pair might do then.
    :ivar unsent: what `IUpload.unsent` says.
    """

    done: Deferred[Any]

    def __init__(self, body: IPushProducer, finished: Callable[[bytes], None], cut: Callable[[], None]) -> None:
        self.done = Deferred()
        self.body = body
        self.chunks: list[bytes] = []
        self.ending = ""
        self.unsent = 0
        self.on_write: Callable[[], object] = lambda: None
        self._finished = finished
        self._cut = cut

    @property
    def data(self) -> bytes:
        """All that was written."""
        return b"".join(self.chunks)

    def write(self, data: bytes | memoryview) -> None:
        """See `IUpload`."""
        self._check_open()
        self.chunks.append(bytes(data))
        self.on_write()

    def finish(self) -> None:
        """See `IUpload`."""
        self._check_open()
        self.ending = "finished"
        if not self.done.called:
            self._finished(self.data)

    def cut(self, reason: str) -> None:
        """See `IUpload`."""
        self._check_open()
        self.ending = reason
        if not self.done.called:
            self._cut()
            self.done.errback(NotInState(f"The transaction was cancelled: {reason}.", "ACK"))

    def break_off(self, error: FtdError) -> None:
        """The pair gives the upload up."""
        self.done.errback(error)

    def _check_open(self) -> None:
        assert not self.ending, f"used after its end ({self.ending})"


class FakePair:
    """
    What both halves have in common.

    :ivar shown: the state that is shown; `show` changes it.
    :ivar failing: raised by whatever is asked next.
    :ivar resets: how often the pair was reset.
    :ivar promotions: whether each was forced.
    :ivar demotions: how often the pair was demoted.
    """

    role = ""

    def __init__(self, name: str, bus: EventBus) -> None:
        self.name = name
        self.bus = bus
        self.shown = fake_status(name, self.role)
        self.failing: Exception | None = None
        self.resets = 0
        self.promotions: list[bool] = []
        self.demotions = 0
        self.history: list[TransactionStatus] = []
        self.trace = PairTrace(name, bus)

    def show(self, **changes: Any) -> None:
        """Change what is shown, and tell the readers of the events."""
        self.shown = attrs.evolve(self.shown, **changes)
        self.bus.publish("pair", self.name, to_json(self.shown))

    def status(self) -> PairStatus:
        """See `IPair`."""
        return self.shown

    def transactions(self) -> Sequence[TransactionStatus]:
        """See `IPair`."""
        return self.history

    def trace_events(self) -> Mapping[str, bool]:
        """See `IPair`."""
        return self.trace.switches()

    def set_trace_events(self, switches: Mapping[str, bool]) -> None:
        """See `IPair`."""
        self.trace.switch(switches)

    def watch_trace(self, names: Sequence[str]) -> Callable[[], None]:
        """See `IPair`."""
        return self.trace.watch(names)

    def reset(self) -> Deferred[None]:
        """See `IPair`."""
        self.resets += 1
        self.show(has_error=0, has_error_name=None, has_error_detail=None)
        return succeed(None)

    def show_vm(self, **changes: Any) -> None:
        """Change what is shown of the VM, and tell the readers of the events."""
        self.show(vm=attrs.evolve(self._vm(), **changes))

    def promote(self, force: bool) -> Deferred[None]:
        """See `IPair`."""
        self._fail_if_told()
        if self.shown.link_state is LinkState.UP and not force:
            return fail(NotInState(f"{self.name}: the primary is up; force it if it is to be.", self.shown.state))
        self.promotions.append(force)
        self.show_vm(status=VmState.PROMOTED, run_state="running", reason="it has no standby")
        return succeed(None)

    def demote(self) -> Deferred[None]:
        """See `IPair`."""
        self._fail_if_told()
        self.demotions += 1
        self.show_vm(status=VmState.UNPROTECTED, run_state=None, protection=None, reason="it was demoted")
        return succeed(None)

    def _vm(self) -> VmStatus:
        assert self.shown.vm is not None, "the API is to refuse that"
        return self.shown.vm

    def _fail_if_told(self) -> None:
        error, self.failing = self.failing, None
        if error is not None:
            raise error


@implementer(IPrimaryPair)
class FakePrimary(FakePair):
    """
    The sending half.

    :ivar acknowledges: whether commits are acknowledged at once; else `acknowledge` does it.
    :ivar uploads: all there were.
    :ivar timeouts: that commits were asked to wait.
    """

    role = "primary"

    def __init__(self, name: str, bus: EventBus) -> None:
        super().__init__(name, bus)
        self.acknowledges = True
        self.uploads: list[FakeUpload] = []
        self.timeouts: list[float | None] = []
        self._in_flight: Deferred[Commit] | None = None

    def begin(self) -> Deferred[int]:
        """See `IPrimaryPair`."""
        self._open()
        return succeed(self.shown.id)

    def append(self, body: IPushProducer) -> IUpload:
        """See `IPrimaryPair`."""
        self._fail_if_told()
        self._check_is_open("data")
        upload = FakeUpload(body, lambda data: self._appended(upload, data), self.cancel)
        return self._added(upload)

    def checkpoint(self, body: IPushProducer) -> IUpload:
        """See `IPrimaryPair`."""
        self._open()
        upload = FakeUpload(body, lambda data: self._whole(upload, data), self.cancel)
        return self._added(upload)

    def commit(self, timeout: float | None = None) -> Deferred[Commit]:
        """See `IPrimaryPair`."""
        self._fail_if_told()
        self._check_is_open("commit")
        self.timeouts.append(timeout)
        committed: Deferred[Commit] = Deferred()
        self._in_flight = committed
        self.show(state="COMMIT")
        if self.acknowledges:
            self.acknowledge()
        return committed

    def cancel(self) -> None:
        """See `IPrimaryPair`."""
        self._fail_if_told()
        self._check_is_open("cancel")
        self.show(transaction=None, state="ACK", transactions_cancelled=self.shown.transactions_cancelled + 1)

    def set_rate_limit(self, enabled: bool | None, bandwidth: int | None) -> None:
        """See `IPrimaryPair`."""
        self.show(
            rate_limit=self.shown.rate_limit if enabled is None else enabled,
            bandwidth_limit=self.shown.bandwidth_limit if bandwidth is None else bandwidth,
        )

    def set_protection(self, enabled: bool | None, interval: float | None) -> Deferred[None]:
        """See `IPrimaryPair`."""
        self._fail_if_told()
        vm = self._vm()
        is_on = vm.protection if enabled is None else enabled
        self.show_vm(
            protection=is_on,
            interval_ms=vm.interval_ms if interval is None else interval * 1000,
            status=VmState.PROTECTED if is_on else VmState.UNPROTECTED,
        )
        return succeed(None)

    def acknowledge(self) -> None:
        """The standby has the transaction."""
        waiting, transaction = self._in_flight, self.shown.transaction
        assert waiting is not None, "there is nothing to acknowledge"
        assert transaction is not None
        self._in_flight = None
        self.history.append(_committed(transaction, self.bus.now()))
        self.show(
            transaction=None,
            state="ACK",
            id=transaction.id + 1,
            transactions_committed=self.shown.transactions_committed + 1,
        )
        waiting.callback(Commit(id=transaction.id, seq=transaction.seq, bytes=transaction.bytes, seconds=0.25))

    def time_out(self) -> None:
        """The acknowledgement does not come."""
        waiting, self._in_flight = self._in_flight, None
        assert waiting is not None, "there is nothing to wait for"
        waiting.errback(NoAck(f"{self.name}: no ACK in time."))

    def lose_link(self) -> None:
        """The link breaks, and an upload with it."""
        self.show(link_state=LinkState.DOWN, link_detail="connection refused", transaction=None, state="INIT")
        for upload in self.uploads:
            if not upload.done.called:
                upload.break_off(self._link_down())

    def _open(self) -> None:
        self._fail_if_told()
        if self.shown.link_state is not LinkState.UP:
            raise self._link_down()
        if self.shown.transaction is not None:
            raise NotInState(f"{self.name} has transaction {self.shown.id} open already.", self.shown.state)
        self.show(transaction=OpenTransaction(id=self.shown.id, seq=0, bytes=0), state="BEGIN")

    def _link_down(self) -> LinkDown:
        return LinkDown(f"{self.name} has no link.", retry_after=2.5)

    def _check_is_open(self, what: str) -> None:
        if self.shown.transaction is None:
            raise NotInState(f"{self.name} has no transaction open: begin first, then {what}.", self.shown.state)

    def _added(self, upload: FakeUpload) -> IUpload:
        self.uploads.append(upload)
        if self.shown.freeze_output:
            upload.body.pauseProducing()
        return upload

    def _count(self, data: bytes) -> None:
        transaction = self.shown.transaction
        assert transaction is not None
        more = attrs.evolve(transaction, seq=transaction.seq + 1, bytes=transaction.bytes + len(data))
        self.show(transaction=more, state="CONTINUE")

    def _appended(self, upload: FakeUpload, data: bytes) -> None:
        self._count(data)
        upload.done.callback(len(data))

    def _whole(self, upload: FakeUpload, data: bytes) -> None:
        self._count(data)
        self.commit().chainDeferred(upload.done)


def _committed(transaction: OpenTransaction, now: float) -> TransactionStatus:
    return TransactionStatus(
        id=transaction.id,
        number=transaction.id + 1,
        seq=transaction.seq,
        bytes=transaction.bytes,
        outcome=Outcome.COMMITTED,
        detail="",
        frozen_seconds=0.0,
        timeline=Timeline(begun=now, first_data=now, commit=now, ended=now),
    )


@implementer(ICheckpointStore)
class FakeStore:
    """
    Checkpoints in memory.

    :ivar opened: the files that were given out.
    :ivar missing: bytes that the files are short of what the list says.
    """

    def __init__(self) -> None:
        self.opened: list[BytesIO] = []
        self.missing = 0
        self._held: dict[int, tuple[Checkpoint, bytes]] = {}

    def add(self, data: bytes, at: float) -> Checkpoint:
        """Hold one more."""
        number = max(self._held, default=0) + 1
        checkpoint = Checkpoint(
            number=number,
            id=number - 1,
            bytes=len(data),
            xxh3=xxhash.xxh3_64_hexdigest(data),
            generation="",
            committed_at=at,
        )
        self._held[number] = (checkpoint, data)
        return checkpoint

    def drop(self, number: int) -> None:
        """Hold one less."""
        del self._held[number]

    def checkpoints(self) -> Sequence[Checkpoint]:
        """See `ICheckpointStore`."""
        return [checkpoint for checkpoint, _ in self._held.values()]

    def open(self, number: int) -> BinaryIO:
        """See `ICheckpointStore`."""
        _, data = self._held[number]
        file = BytesIO(data[: len(data) - self.missing])
        self.opened.append(file)
        return file


@implementer(ISecondaryPair)
class FakeSecondary(FakePair):
    """
    The receiving half.

    :ivar settling: what `settled` gives, where it is not to fire at once.
    """

    role = "secondary"

    def __init__(self, name: str, bus: EventBus) -> None:
        super().__init__(name, bus)
        self.kept = FakeStore()
        self.settling: Deferred[None] | None = None

    def store(self) -> ICheckpointStore:
        """See `ISecondaryPair`."""
        return self.kept

    def settled(self) -> Deferred[None]:
        """See `ISecondaryPair`."""
        return succeed(None) if self.settling is None else self.settling


@implementer(IDaemon)
class FakeDaemon:
    """
    A daemon, at first with the primary ``demo`` and the secondary ``demo-standby``.

    :ivar configured: the pairs that cannot be deleted.
    """

    node = "host-a"
    version = "1.2.3"

    def __init__(self, bus: EventBus) -> None:
        self.started = bus.now()
        self.bus = bus
        self.primary = FakePrimary("demo", bus)
        self.secondary = FakeSecondary("demo-standby", bus)
        self.all: dict[str, IPair] = {"demo": self.primary, "demo-standby": self.secondary}
        self.configured: set[str] = set()
        self.created: list[Mapping[str, object]] = []

    def add_vms(self) -> tuple[FakePrimary, FakeSecondary]:
        """Have the primary ``vm`` and the secondary ``vm-standby`` as well, each with its VM."""
        primary, standby = FakePrimary("vm", self.bus), FakeSecondary("vm-standby", self.bus)
        for pair in (primary, standby):
            self.all[pair.name] = pair
            pair.show(vm=fake_vm(pair.role))
        return primary, standby

    def pairs(self) -> Mapping[str, IPair]:
        """See `IDaemon`."""
        return self.all

    def create_pair(self, section: str, values: Mapping[str, object]) -> Deferred[IPair]:
        """See `IDaemon`."""
        if section in self.all:
            return fail(AlreadyExists(f"There is a pair {section!r} already."))
        if "role" not in values:
            return fail(ConfigError("is missing", f"pair {section}", "role"))
        self.created.append(values)
        pair = FakePrimary(section, self.bus)
        self.all[section] = pair
        pair.show()
        return succeed(pair)

    def delete_pair(self, name: str) -> Deferred[None]:
        """See `IDaemon`."""
        if name not in self.all:
            return fail(Unknown(f"There is no pair {name!r}."))
        if name in self.configured:
            return fail(NotInState(f"{name} stands in the configuration file: remove it there.", "ACK"))
        del self.all[name]
        return succeed(None)
