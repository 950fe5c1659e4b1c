"""
The receiving half of a pair: which sender may speak, and what happens to what it commits.

Any number of connections may shake hands (up to ``handshakes``), one at a time has the session.  A stranger,
whatever it sends, costs its own connection and nothing else; its error becomes the pair's only while there is no
session that it could hurt.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.config import Ack, PairConfig, Peer
from ftd.history import Transaction
from ftd.interfaces import ICheckpointStore, ISecondaryPair, ISink, IStoringSink
from ftd.pair import Pair, Surroundings
from ftd.protocol import ReceiverProtocol
from ftd.status import Checkpoint, FtMode, LastCommitted, LinkState, OpenTransaction, Outcome
from ftd.wire.constants import ID_MODULUS
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import CommitRequested, DigestMismatch
from ftd.wire.hello import Hello, LastCheckpoint
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.session import Session


@implementer(ISecondaryPair)
class SecondaryPair(Pair):
    """
    :param endpoint: where it listens.
    :param sink: what it keeps; already recovered.
    """

    def __init__(
        self, config: PairConfig, around: Surroundings, *, endpoint: IStreamServerEndpoint, sink: IStoringSink
    ) -> None:
        super().__init__(config, around)
        self.sink: ISink = sink
        self.next_id = 0
        self._store: ICheckpointStore = sink
        self._endpoint = endpoint
        self._port: IListeningPort | None = None
        self._receiver: ReceiverProtocol | None = None
        self._connections: set[ReceiverProtocol] = set()
        self._open: Transaction | None = None
        self._sender_generation = ""
        self._kemari = config.peer is Peer.KEMARI
        # Acknowledge what is held whole before the sink has it for good.
        self._ack_first = config.ack is Ack.RECEIVED
        self._committing = 0
        self._when_settled: list[Deferred[None]] = []
        held = sink.checkpoints()
        if held:
            self._note_committed(held[-1])
            self.next_id = (held[-1].id + 1) % ID_MODULUS

    # Life

    def start(self) -> Deferred[None]:
        """See `Pair`."""
        factory = _ReceiverFactory(self._build)
        return self._endpoint.listen(factory).addCallback(self._listening)

    def stop(self) -> Deferred[None]:
        """Take no connections, let what is committed reach the sink, and close."""
        port, self._port = self._port, None
        closed = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        return closed.addCallback(lambda _: self.settled()).addCallback(lambda _: self._close_all())

    def reset(self) -> Deferred[None]:
        """See `IPair`."""
        self.error = None
        self._changed()
        for connection in list(self._connections):
            connection.hang_up()
        return succeed(None)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        self.link_address = self._peer_text(port.getHost())
        self._wait_for_sender()

    def _close_all(self) -> Deferred[None]:
        closed = DeferredList([connection.close() for connection in list(self._connections)])
        self._set_link(LinkState.DOWN, "stopped")
        return closed.addCallback(lambda _: self._tell_no_more())

    def _wait_for_sender(self) -> None:
        self._set_link(LinkState.DOWN, "waiting for a sender")

    # What the API asks

    def store(self) -> ICheckpointStore:
        """See `ISecondaryPair`."""
        return self._store

    def settled(self) -> Deferred[None]:
        """See `ISecondaryPair`."""
        if not self._committing:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._when_settled.append(waiting)
        return waiting

    # What the link tells (`ftd.link_protocol.ReceiverOwner`)

    def hello(self) -> Hello:
        """This side's HELLO, as of now."""
        held = self._store.checkpoints()
        last = LastCheckpoint(held[-1].generation, held[-1].number) if held else None
        return Hello(
            pair=self.config.name,
            node=self._around.node,
            generation=self._generation(),
            last=last,
            max_payload=self.config.max_payload,
            max_transaction=self.config.max_transaction,
            window=self.config.window,
            state="standby",
        )

    def claim(self, receiver: ReceiverProtocol, hello: Hello | None) -> str:
        """One sender at a time has the session."""
        if self._receiver is not None:
            return f"pair {self.config.name} has a sender already, {self.link_peer}"
        self._receiver = receiver
        self._sender_generation = hello.generation or "" if hello is not None else ""
        return ""

    def opened(self, receiver: ReceiverProtocol) -> None:
        """The session is open."""
        assert receiver.transport is not None
        self._session_opened(self._peer_text(receiver.transport.getPeer()))

    def begun(self, id: int) -> None:
        """The first bytes of a transaction are here."""
        self._open = self.history.begin(id)
        self._open.first_data = self._open.begun
        self._progressed()

    def commit(self, request: CommitRequested) -> Deferred[None]:
        """Make the open transaction the newest checkpoint."""
        transaction, self._open = self._open, None
        assert transaction is not None
        transaction.id = request.id
        self.history.commit_requested(transaction, request.seq, request.size, self._next_number())
        self._committing += 1
        if self._ack_first and self.sink.failure() is None:
            # The sender counts it as committed from now on.
            self._used(request.id)
        stored = self.sink.commit(request.id, f"{request.xxh3:016x}", self._sender_generation)
        return stored.addCallbacks(
            self._committed, self._not_committed, callbackArgs=(transaction,), errbackArgs=(transaction,)
        )

    def heartbeat(self, id: int) -> None:
        """A sign of life, which takes an id."""
        self.heartbeats += 1
        self._used(id)

    def damaged(self, mismatch: DigestMismatch) -> None:
        """What arrived is not what was sent."""
        self._end_open(Outcome.NACKED, mismatch.detail)

    def state_changed(self) -> None:
        """The receiver froze or thawed, or has answered."""
        self._counted()

    def cancelled(self) -> None:
        """The sender dropped the open transaction."""
        self._end_open(Outcome.CANCELLED, "the sender cancelled it")

    def lost(self, receiver: ReceiverProtocol, error: WireError | None) -> None:
        """A connection is gone; only the session's own matters to the pair."""
        self._connections.discard(receiver)
        if receiver is self._receiver:
            self._note_size()
            self._receiver = None
            self.link_peer = None
            why = error.detail if error is not None else "the sender closed the link"
            self._end_open(Outcome.FAILED, why)
            if error is not None:
                self._fail(error)
            self._set_link(LinkState.DOWN, why)
        elif self._receiver is None:
            if error is not None:
                self._fail(error)
            if not self._connections:
                self._wait_for_sender()
        elif error is not None:
            self.log.warn("{pair}: a second connection ended: {why}", pair=self.name, why=error.detail)

    def _committed(self, checkpoint: Checkpoint, transaction: Transaction) -> None:
        try:
            transaction.number = checkpoint.number
            self._used(checkpoint.id)
            self._note_committed(checkpoint)
            self.history.end(transaction, Outcome.COMMITTED)
            if self.error is None:
                self._progressed()
            else:
                # The sink takes checkpoints again, whatever it said before.
                self.error = None
                self._changed()
        finally:
            self._settle()

    def _not_committed(self, failure: Failure, transaction: Transaction) -> Failure:
        try:
            unforeseen = WireError(ErrorCode.UNKNOWN, "the sink failed; the log says how")
            self._fail(failure.value if isinstance(failure.value, WireError) else unforeseen)
            self.history.end(transaction, Outcome.NACKED, failure.getErrorMessage())
            self._changed()
        finally:
            self._settle()
        return failure

    def _settle(self) -> None:
        self._committing -= 1
        if self._when_settled and not self._committing:
            waiting, self._when_settled = self._when_settled, []
            for deferred in waiting:
                deferred.callback(None)

    def _note_size(self) -> None:
        if self._open is not None and self._receiver is not None:
            self._open.seq = self._receiver.machine.seq
            self._open.bytes = self._receiver.machine.size

    def _end_open(self, outcome: Outcome, detail: str) -> None:
        self._note_size()
        transaction, self._open = self._open, None
        if transaction is not None:
            self.history.end(transaction, outcome, detail)
            self._changed()

    def _note_committed(self, checkpoint: Checkpoint) -> None:
        self.last_committed = LastCommitted(
            id=checkpoint.id, number=checkpoint.number, bytes=checkpoint.bytes, at=checkpoint.committed_at
        )

    def _next_number(self) -> int:
        """Of the checkpoint that the open transaction will be."""
        return self.last_committed.number + 1 if self.last_committed is not None else 1

    def _used(self, id: int) -> None:
        self.next_id = (id + 1) % ID_MODULUS

    # Bookkeeping

    def _build(self, address: IAddress | None) -> ReceiverProtocol | None:
        if len(self._connections) >= self.config.handshakes:
            self.log.warn(
                "{pair}: closed a connection from {peer}: {most} are shaking hands already",
                pair=self.name,
                peer=self._peer_text(address),
                most=self.config.handshakes,
            )
            return None
        machine = ReceiverMachine(
            self._limits(),
            pair=self.config.name,
            kemari=self._kemari,
            byte_order=self.config.byte_order.value,
            trace=self.trace,
        )
        receiver = ReceiverProtocol(
            machine,
            self,
            clock=self._around.clock,
            times=self._times(),
            trace=self.trace,
            traffic=self.traffic,
            options=self._link_options(),
            kemari=self._kemari,
            ack_first=self._ack_first,
        )
        self._connections.add(receiver)
        if self._receiver is None:
            self._set_link(LinkState.HANDSHAKE)
        return receiver

    def _session(self) -> Session | None:
        return self._receiver.machine if self._receiver is not None else None

    def _ft_mode_when_up(self) -> FtMode:
        return FtMode.TRANSACTION_RECV

    def _open_transaction(self) -> OpenTransaction | None:
        machine = self._receiver.machine if self._receiver is not None else None
        if machine is None or not machine.is_inside:
            return None
        return OpenTransaction(id=machine.id, seq=machine.seq, bytes=machine.size)

    def _next_id(self) -> int:
        return self.next_id

    def _generation(self) -> str | None:
        held = self._store.checkpoints()
        return held[-1].generation or None if held else None

    def _freezes_input(self) -> bool:
        return self._receiver is not None and self._receiver.is_frozen


class _ReceiverFactory(Factory):
    """Makes a receiver for every connection that may shake hands."""

    noisy = False

    def __init__(self, build: Callable[[IAddress | None], ReceiverProtocol | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> ReceiverProtocol | None:
        return self._build(addr)
