"""
The sending half of a pair: transactions are asked for here, and it is known here what became of them.

A transaction is open between `begin` and its end, which is one of: COMMIT, from where on it is the business of
`ftd.commits`; CANCEL; the loss of the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer, IStreamClientEndpoint
from zope.interface import implementer

from ftd.commits import Commits
from ftd.config import PairConfig
from ftd.errors import FtdError, LinkDown, NotInState
from ftd.feed import Upload
from ftd.history import Transaction
from ftd.interfaces import IPrimaryPair
from ftd.lineage import load_generation
from ftd.link import Dialer
from ftd.pair import Pair, Surroundings
from ftd.protocol import SenderProtocol
from ftd.refusals import Refusals
from ftd.status import Commit, FtMode, LastCommitted, LinkState, OpenTransaction, Outcome
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import InFlight
from ftd.wire.hello import Hello
from ftd.wire.sender import Buffer, SenderMachine
from ftd.wire.session import Session
from ftd.wire.states import State


@implementer(IPrimaryPair)
class PrimaryPair(Pair):
    """
    :param endpoint: where the standby listens.
    :param directory: where the generation is kept.
    """

    def __init__(
        self, config: PairConfig, around: Surroundings, *, endpoint: IStreamClientEndpoint, directory: Path
    ) -> None:
        super().__init__(config, around)
        self.generation = load_generation(directory, self.name)
        self._refusals = Refusals(self.name, config.link)
        self._dialer = Dialer(
            endpoint,
            self._build,
            around.clock,
            attempt_time=config.handshake_time,
            longest_wait=config.reconnect_max,
            changed=self._set_link,
        )
        self._sender: SenderProtocol | None = None
        self._open: Transaction | None = None
        self._upload: Upload | None = None
        self._commits = Commits(self.history, around.clock, self.generation)
        # Begins that wait for the ACK of a heartbeat.
        self._queued_begins: deque[Callable[[], None]] = deque()
        self._when_drained: list[Deferred[None]] = []
        # The next id when there is no session, as far as is known.
        self._last_id = 0

    # Life

    def start(self) -> Deferred[None]:
        """See `Pair`."""
        self._dialer.start()
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Cancel the open transaction, wait for the ACK of what is in flight, and close."""
        if self._open is not None:
            with suppress(FtdError):
                self.cancel()
        stopped: Deferred[None] = Deferred()

        def stop_now() -> None:
            closed = self._dialer.stop()
            self._commits.abandon()
            closed.addCallback(lambda _: self._tell_no_more())
            closed.chainDeferred(stopped)

        self._commits.when_none(stop_now)
        return stopped

    def reset(self) -> Deferred[None]:
        """See `IPair`."""
        self.error = None
        self._changed()
        self._dialer.redial()
        return succeed(None)

    # Transactions

    def begin(self) -> Deferred[int]:
        """See `IPrimaryPair`."""
        begun: Deferred[int] = Deferred()

        def try_it() -> None:
            try:
                id = self._begin()
            except FtdError as error:
                begun.errback(error)
            else:
                begun.callback(id)

        self._in_its_turn(try_it)
        return begun

    def append(self, body: IPushProducer) -> Upload:
        """See `IPrimaryPair`."""
        sender = self._up()
        if self._open is None:
            raise self._refusals.none_open(sender.machine, "begin one first")
        self._check_no_upload(sender.machine)
        upload = self._upload = self._new_upload(sender, body, is_checkpoint=False)
        sender.registerProducer(upload, True)
        return upload

    def checkpoint(self, body: IPushProducer) -> Upload:
        """See `IPrimaryPair`."""
        sender = self._up()
        if self._open is not None:
            raise self._refusals.already_open(sender.machine)
        self._check_no_upload(sender.machine)
        upload = self._upload = self._new_upload(sender, body, is_checkpoint=True)
        upload.hold()

        def try_it() -> None:
            if self._upload is not upload:
                return
            try:
                self._begin()
            except FtdError as error:
                self._upload = None
                upload.fail(error)
                return
            if self._sender is not None:
                self._sender.registerProducer(upload, True)
            upload.release()

        self._in_its_turn(try_it)
        return upload

    def commit(self, timeout: float | None = None) -> Deferred[Commit]:
        """See `IPrimaryPair`."""
        sender = self._up()
        if self._open is None:
            raise self._refusals.none_open(sender.machine, "nothing to commit")
        self._check_no_upload(sender.machine)
        return self._commit(timeout)

    def cancel(self) -> None:
        """See `IPrimaryPair`."""
        sender = self._up()
        if self._open is None:
            raise self._refusals.none_open(sender.machine, "nothing to cancel")
        self._cancel(sender, NotInState("the transaction was cancelled", State.CANCEL.value))

    def set_rate_limit(self, enabled: bool | None, bandwidth: int | None) -> None:
        """See `IPrimaryPair`."""
        if enabled is not None:
            self.rate_limit = enabled
        if bandwidth is not None:
            self.bandwidth_limit = bandwidth
        if self._sender is not None:
            self._sender.set_rate_limit(self.rate_limit)
            self._sender.set_bandwidth(self.bandwidth_limit)
        self._changed()

    def set_protection(self, enabled: bool | None, interval: float | None) -> Deferred[None]:  # noqa: ARG002
        """See `IPrimaryPair`."""
        return self._without_vm()

    def drained(self) -> Deferred[None]:
        """
        Fires when all that was sent is with the kernel, so that its memory may be used again; errbacks with `LinkDown`
        if the link breaks first.
        """
        waiting: Deferred[None] = Deferred()
        self._when_drained.append(waiting)
        if self._sender is None:
            self._tell_drained(None)
        else:
            self._sender.want_drained()
        return waiting

    def _begin(self) -> int:
        sender = self._up()
        if self._open is not None:
            raise self._refusals.already_open(sender.machine)
        try:
            sender.begin()
        except CallRefused:
            raise self._refusals.window_full(sender.machine) from None
        self._refusals.why_none_open = ""
        transaction = self._open = self.history.begin(sender.machine.id)
        if sender.is_frozen:
            transaction.note_frozen(self._now(), still_frozen=True)
        self._progressed()
        return transaction.id

    def _commit(self, timeout: float | None) -> Deferred[Commit]:
        sender, transaction = self._up(), self._open
        assert transaction is not None
        machine = sender.machine
        if machine.seq == 0:
            # A transaction without a frame is a heartbeat: an empty checkpoint says so with an empty frame.
            sender.write(b"")
        if transaction.frozen_since is not None:
            transaction.note_frozen(self._now(), still_frozen=False)
        self._open = None
        limit = self.config.ack_time if timeout is None else timeout
        done = self._commits.sent(transaction, machine.seq, machine.size, limit)
        sender.commit()
        self._progressed()
        return done

    def _cancel(self, sender: SenderProtocol, why: FtdError) -> None:
        sender.cancel()
        upload = self._end_cancelled(sender, why)
        self._changed()
        if upload is not None:
            upload.fail(why)

    def _end_cancelled(self, sender: SenderProtocol, why: FtdError) -> Upload | None:
        """The open transaction is no more, and the standby knows.  Returns what went into it, which does not know."""
        transaction, self._open = self._open, None
        assert transaction is not None
        self._note_size(transaction, sender)
        self.history.end(transaction, Outcome.CANCELLED, str(why))
        return self._take_upload()

    def _up(self) -> SenderProtocol:
        """The open session.  :raises FtdError: if there is none."""
        sender = self._sender
        if sender is not None and sender.is_open and self.error is None:
            return sender
        self._check_error()
        raise self._refusals.link_down(self.link_detail, self._dialer.retry_after)

    def _check_no_upload(self, machine: SenderMachine) -> None:
        if self._upload is not None:
            raise self._refusals.upload_under_way(machine)

    def _in_its_turn(self, begin: Callable[[], None]) -> None:
        """A heartbeat in flight is nobody's business: what finds no room because of one waits for an ACK."""
        sender = self._sender
        if sender is not None and self._open is None:
            in_flight = sender.machine.in_flight
            if len(in_flight) >= sender.machine.window and any(sent.is_heartbeat for sent in in_flight):
                self._queued_begins.append(begin)
                return
        begin()

    def _run_queued(self) -> None:
        queued, self._queued_begins = self._queued_begins, deque()
        for act in queued:
            act()

    def _new_upload(self, sender: SenderProtocol, body: IPushProducer, is_checkpoint: bool) -> Upload:
        frame_size = min(self.config.frame_size, sender.machine.limits.max_payload)
        return Upload(self, body, frame_size, is_checkpoint)

    # What uploads ask

    def send_frame(self, pieces: tuple[Buffer, ...]) -> None:
        """One frame of an upload into the open transaction."""
        sender = self._sender_inside()
        try:
            sender.write_frame(pieces)
        except CallRefused:
            raise self._too_large(sender) from None
        self._counted()

    def send_run(self, data: memoryview, frame_size: int) -> None:
        """A run of frames of an upload into the open transaction."""
        sender = self._sender_inside()
        try:
            sender.write_run(data, frame_size)
        except CallRefused:
            raise self._too_large(sender) from None
        self._counted()

    def _sender_inside(self) -> SenderProtocol:
        sender, transaction = self._up(), self._open
        assert transaction is not None
        if transaction.first_data is None:
            transaction.first_data = self._now()
        return sender

    def _too_large(self, sender: SenderProtocol) -> FtdError:
        too_large = self._refusals.too_large(sender.machine)
        self._cancel(sender, too_large)
        return too_large

    @property
    def unsent(self) -> int:
        """See `UploadTarget`."""
        return self._sender.unsent if self._sender is not None else 0

    def upload_finished(self, upload: Upload) -> None:
        """The upload under way has handed over all its bytes."""
        self._upload = None
        self._up().unregisterProducer()
        if upload.is_checkpoint:
            self._commit(None).addCallbacks(upload.succeed, lambda failure: upload.fail(failure.value))
        else:
            upload.succeed(upload.accepted)

    def upload_cut(self, reason: str) -> None:
        """The upload under way will not be finished: the transaction, which has a hole now, is cancelled."""
        if self._open is None:
            # Still waiting for its turn to begin.
            self._drop_upload(NotInState(reason, State.CANCEL.value))
        else:
            self._cancel(self._up(), NotInState(reason, State.CANCEL.value))

    def _take_upload(self) -> Upload | None:
        upload, self._upload = self._upload, None
        if self._sender is not None:
            self._sender.unregisterProducer()
        return upload

    def _drop_upload(self, why: FtdError) -> None:
        upload = self._take_upload()
        if upload is not None:
            upload.fail(why)

    # What the link tells (`ftd.link_protocol.SenderOwner`)

    def hello(self) -> Hello:
        """The answer to the standby's HELLO."""
        return Hello(
            pair=self.config.name,
            node=self._around.node,
            generation=self.generation,
            max_payload=self.config.max_payload,
            max_transaction=self.config.max_transaction,
            window=self.config.window,
            state="primary",
        )

    def superseded(self, hello: Hello) -> None:
        """The standby was promoted, though this pair has nothing that it could stop."""
        self.log.warn("{pair}: the standby has been promoted on {node}", pair=self.name, node=hello.node)

    def opened(self, sender: SenderProtocol, hello: Hello | None, next_id: int) -> None:
        """The session is open."""
        self._sender = sender
        self._dialer.session_opened()
        self._take_standby_position(hello)
        assert sender.transport is not None
        peer = self._peer_text(sender.transport.getPeer())

        def known(newest: Transaction | None) -> None:
            self._note_committed(newest)
            self._session_opened(peer)

        # Whoever is told what became of his transaction may begin the next one at once.
        self._commits.resolve(hello, next_id, known)

    def acknowledged(self, transaction: InFlight) -> None:
        """The oldest transaction in flight is committed."""
        if transaction.is_heartbeat:
            self.heartbeats += 1
        else:
            self._commits.acknowledged(self._note_committed)
            self._progressed()
        if self._queued_begins:
            self._run_queued()

    def refused(
        self,
        transaction: InFlight,
        code: ErrorCode,
        behind: Sequence[InFlight],  # noqa: ARG002
        was_open: bool,
    ) -> None:
        """The oldest transaction in flight was dropped by the standby, and all that came after it."""
        before = f"the standby refused transaction {transaction.id} ({code.name}) before it"
        cancelled = NotInState(f"the transaction was cancelled: {before}", State.CANCEL.value)
        upload = None
        if was_open and self._sender is not None:
            self._refusals.why_none_open = f"the last one was cancelled: {before}"
            upload = self._end_cancelled(self._sender, cancelled)
        # Nobody is told before all of them are over: what is told may lead to the next transaction at once.
        self._commits.refused(transaction.id, code)
        self._changed()
        if upload is not None:
            upload.fail(cancelled)
        self._run_queued()

    def freeze_changed(self) -> None:
        """The output froze or thawed."""
        if self._open is not None and self._sender is not None:
            self._open.note_frozen(self._now(), self._sender.is_frozen)
        self._counted()

    def all_sent(self) -> None:
        """The memory of all that was sent may be used again."""
        self._tell_drained(None)

    def lost(self, sender: SenderProtocol, error: WireError | None) -> None:
        """The link is gone: what was open is lost, what was in flight is in doubt."""
        if sender is self._sender:
            self._sender = None
            self._last_id = sender.machine.id
            self.link_peer = None
            self._lose_open(sender, error)
        if error is not None:
            self._fail(error)
        self._dialer.session_ended(error.detail if error is not None else "the standby closed the link")
        # Last, as a `stop` that waits for what is in flight goes on from here.
        self._commits.link_lost(self._last_id)
        self._run_queued()

    def _lose_open(self, sender: SenderProtocol, error: WireError | None) -> None:
        why = error.detail if error is not None else "the standby closed the link"
        lost = self._refusals.link_broke(why)
        transaction, self._open = self._open, None
        if transaction is not None:
            self._note_size(transaction, sender)
            self.history.end(transaction, Outcome.FAILED, why)
        self._drop_upload(lost)
        self._tell_drained(lost)

    def _tell_drained(self, result: LinkDown | None) -> None:
        waiting, self._when_drained = self._when_drained, []
        for deferred in waiting:
            # Deferred tells an error from a result by its type.
            deferred.callback(None) if result is None else deferred.errback(result)

    def _take_standby_position(self, hello: Hello | None) -> None:
        """Learn which checkpoint the standby holds; what it has lost is not committed any more."""
        if hello is None:
            return
        number = hello.last.sequence if hello.last is not None else 0
        holds_ours = hello.last is not None and hello.last.generation == self.generation
        if self.last_committed is not None and (not holds_ours or number < self.last_committed.number):
            self.log.warn("{pair}: the standby has lost committed checkpoints", pair=self.name)
            self.last_committed = None
        self._commits.number = number

    def _note_committed(self, transaction: Transaction | None) -> None:
        if transaction is not None:
            assert transaction.number is not None and transaction.ended is not None
            self.last_committed = LastCommitted(
                id=transaction.id, number=transaction.number, bytes=transaction.bytes, at=transaction.ended
            )

    # Bookkeeping

    def _build(self) -> SenderProtocol:
        self._set_link(LinkState.HANDSHAKE)
        machine = SenderMachine(
            self._limits(), pair=self.config.name, byte_order=self.config.byte_order.value, trace=self.trace
        )
        return SenderProtocol(
            machine,
            self,
            clock=self._around.clock,
            times=self._times(),
            trace=self.trace,
            traffic=self.traffic,
            options=self._link_options(),
            rate_limit=self.rate_limit,
            bandwidth=self.bandwidth_limit,
            shared=self._around.bandwidth,
            buffer_limit=self.config.buffer_limit,
        )

    def _now(self) -> float:
        return self._around.now()

    def _note_size(self, transaction: Transaction, sender: SenderProtocol) -> None:
        transaction.seq = sender.machine.seq
        transaction.bytes = sender.machine.size
        transaction.note_frozen(self._now(), still_frozen=False)

    def _session(self) -> Session | None:
        return self._sender.machine if self._sender is not None else None

    def _peer(self) -> str:
        if self._sender is None:
            return self.config.peer.value
        return "kemari" if self._sender.machine.peer_is_kemari else "ftd"

    def _ft_mode_when_up(self) -> FtMode:
        if self._open is None:
            return FtMode.TRANSACTION_COMMIT if self._commits.in_flight else FtMode.INIT
        is_fresh = self._sender is None or self._sender.machine.seq == 0
        return FtMode.TRANSACTION_BEGIN if is_fresh else FtMode.TRANSACTION_ITER

    def _open_transaction(self) -> OpenTransaction | None:
        if self._open is None or self._sender is None:
            return None
        machine = self._sender.machine
        return OpenTransaction(id=self._open.id, seq=machine.seq, bytes=machine.size)

    def _next_id(self) -> int:
        return self._sender.machine.id if self._sender is not None else self._last_id

    def _generation(self) -> str:
        return self.generation

    def _freezes_output(self) -> bool:
        return self._sender is not None and self._sender.is_frozen

    def _buffered_bytes(self) -> int:
        return self._sender.buffered if self._sender is not None else 0
