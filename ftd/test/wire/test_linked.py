"""
A sender and a receiver linked in memory, through random operations, random reads and faults.

What must hold whatever happens: the receiver hands over exactly the transactions that were committed, whole, once, in
order.  Nothing is said of what breaks first when bytes are damaged, only that nothing damaged is ever handed over.
"""

from __future__ import annotations

import itertools
from collections import deque

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.testing.wire_strategies import HandedOver, Store, WireLink, byte_orders, feature_sets, frame_sizes
from ftd.wire.constants import FEATURE_ATOMIC, FEATURE_DIGEST, FEATURES, ID_MODULUS, ByteOrder
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import Acknowledged, CommitRequested, Opened, Refused
from ftd.wire.states import BETWEEN, OPENING, State

#: Bytes of one read: a byte, a part of a header, a lot.
READS = st.one_of(st.integers(1, 12), st.integers(1, 2000), st.just(1 << 20))

#: Steps that a link lives before it may be cut.  Links that never get to a commit would test little.
LIVES = st.integers(0, 30)

#: Whether a new link is brought to where a transaction can begin.
OPENED = st.sampled_from((True, True, True, False))

REASONS = st.sampled_from(sorted(ErrorCode))

#: What a side offers: often all of it, so that it often is agreed.
OFFERS = st.just(FEATURES) | feature_sets()

#: What the two sides' HELLOs say of the window: often the same.
WINDOWS = st.integers(1, 4).map(lambda window: (window, window)) | st.tuples(st.integers(1, 4), st.integers(1, 4))

WITH_DIGEST = OFFERS.map(lambda features: features | {FEATURE_DIGEST})

#: Which byte of those on their way is damaged, and which of its bits.
PLACES = st.integers(0, 1 << 14)
MASKS = st.integers(1, 255)

#: The id with which a receiver starts: most reach the end of 16 bits soon.
FIRST_IDS = st.sampled_from((0, 1, 65533, 65535))


@attrs.frozen
class Outstanding:
    """A transaction whose COMMIT the sender has sent, and whose answer it has not seen."""

    id: int
    state: bytes
    is_heartbeat: bool

    @property
    def handed_over(self) -> list[HandedOver]:
        """What the receiver hands over if it commits this: nothing for a heartbeat."""
        return [] if self.is_heartbeat else [HandedOver(self.id, self.state)]


class LinkedMachines(RuleBasedStateMachine):
    """
    What a primary and its standby do, with nothing going wrong but the link.

    The model is what the sender asked for and what it knows: ``written`` are the bytes of its open transaction,
    ``outstanding`` are those whose answers it awaits, and ``known`` are those that it knows to be committed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.known: list[HandedOver] = []
        self.written = bytearray()
        self.outstanding: deque[Outstanding] = deque()
        self.age = 0
        self.pattern = itertools.count(1)

    @initialize(
        first_id=FIRST_IDS,
        order=byte_orders(),
        offered=st.tuples(OFFERS, OFFERS),
        windows=WINDOWS,
        kemari=st.sampled_from((False, False, False, True)),
        opened=OPENED,
        life=LIVES,
    )
    def start(
        self,
        first_id: int,
        order: ByteOrder,
        offered: tuple[frozenset[str], frozenset[str]],
        windows: tuple[int, int],
        kemari: bool,
        opened: bool,
        life: int,
    ) -> None:
        self.store.next_id = first_id
        self.order = order
        self.offered = offered
        self.windows = windows
        self.kemari = kemari
        self.connect(opened, life)

    def connect(self, opened: bool, life: int) -> None:
        """Two new machines; the sender's open transaction is gone, and what it awaits an answer for is not."""
        sender_features, receiver_features = self.offered
        self.link = WireLink.between(
            self.store,
            sender_features=sender_features,
            receiver_features=receiver_features,
            windows=self.windows,
            kemari=self.kemari,
            byte_order=self.order,
        )
        self.written.clear()
        self.age, self.life = 0, life
        while opened and self.link.sender.state in OPENING and not self.link.is_broken:
            self.receiver_reads(1 << 20)
            self.sender_reads(1 << 20)

    def material(self, size: int) -> bytes:
        """Bytes that were not used before, unless they are too few."""
        return (next(self.pattern).to_bytes(4, "big") * (size // 4 + 1))[:size]

    # The sender

    @property
    def may_begin(self) -> bool:
        """Between transactions, with room in the window."""
        sender = self.link.sender
        is_between = sender.state in BETWEEN or sender.state is State.COMMIT
        return is_between and len(sender.in_flight) < sender.window

    @precondition(lambda self: self.may_begin)
    @rule()
    def begin(self) -> None:
        self.link.send(self.link.sender.begin())

    @precondition(lambda self: self.link.sender.is_inside)
    @rule(sizes=st.lists(frame_sizes(), max_size=3))
    def put(self, sizes: list[int]) -> None:
        """One frame, whose payload lies in several pieces."""
        pieces = [self.material(size) for size in sizes]
        self.link.send(self.link.sender.continue_(*pieces), *pieces)
        self.written += b"".join(pieces)

    @precondition(lambda self: self.link.sender.is_inside)
    @rule()
    def commit(self) -> None:
        self.sent_commit(self.link.sender.commit())

    @precondition(lambda self: self.link.sender.is_inside)
    @rule()
    def cancel(self) -> None:
        self.link.send(self.link.sender.cancel())
        self.written.clear()

    @precondition(lambda self: self.may_begin)
    @rule()
    def heartbeat(self) -> None:
        self.sent_commit(self.link.sender.heartbeat())

    @precondition(lambda self: self.may_begin and FEATURE_ATOMIC in self.link.sender.features)
    @rule(sizes=st.lists(frame_sizes(), max_size=3))
    def atomic(self, sizes: list[int]) -> None:
        pieces = [self.material(size) for size in sizes]
        before, after = self.link.sender.atomic(*pieces)
        self.link.send(before, *pieces)
        self.written += b"".join(pieces)
        self.sent_commit(after)

    @precondition(lambda self: self.may_begin)
    @rule(frames=st.lists(st.lists(frame_sizes(), max_size=2), min_size=1, max_size=4))
    def transaction(self, frames: list[list[int]]) -> None:
        """All of one in a single step, for the steps are few."""
        self.begin()
        for sizes in frames:
            self.put(sizes)
        self.commit()

    def sent_commit(self, data: bytes) -> None:
        self.link.send(data)
        transaction = self.link.sender.in_flight[-1]
        assert transaction.size == len(self.written)
        self.outstanding.append(Outstanding(transaction.id, bytes(self.written), transaction.is_heartbeat))
        self.written.clear()

    # The receiver

    @precondition(lambda self: isinstance(self.link.pending, CommitRequested))
    @rule()
    def acknowledge(self) -> None:
        self.link.answer()

    @precondition(lambda self: self.link.pending is not None and self.link.receiver.can_refuse)
    @rule(code=REASONS)
    def refuse(self, code: ErrorCode) -> None:
        self.link.answer(code)

    # The link

    @precondition(lambda self: bool(self.link.to_receiver) and self.link.pending is None)
    @rule(size=READS)
    def receiver_reads(self, size: int) -> None:
        self.link.deliver_to_receiver(size)

    @precondition(lambda self: bool(self.link.to_sender))
    @rule(size=READS)
    def sender_reads(self, size: int) -> None:
        seen = len(self.link.events)
        self.link.deliver_to_sender(size)
        for event in self.link.events[seen:]:
            if isinstance(event, Opened):
                self.learn(event.next_id)
            elif isinstance(event, Acknowledged):
                self.settle(1, of=1)
            elif isinstance(event, Refused):
                self.settle(0, of=1 + len(event.behind))
                assert not self.outstanding, "what comes after a dropped one is dropped"
                if event.cancel:
                    self.written.clear()

    @rule(sizes=st.lists(READS, min_size=4, max_size=12))
    def both_read(self, sizes: list[int]) -> None:
        for size in sizes:
            if self.link.pending is None:
                self.receiver_reads(size)
            self.sender_reads(size)

    # With a Kemari a commit whose ACK was lost stays in doubt, and there is nothing to compare after that.
    @precondition(lambda self: self.age >= self.life and not (self.kemari and self.outstanding))
    @rule(opened=OPENED, life=LIVES)
    def cut(self, opened: bool, life: int) -> None:
        """The link is gone with whatever was on its way; an end in the middle of something says so."""
        for error in (self.link.sender.end_of_stream(), self.link.receiver.end_of_stream()):
            assert error is None or error.code in (ErrorCode.RECV_HDR, ErrorCode.RECV_PAYLOAD)
        self.connect(opened, life)

    @precondition(lambda self: isinstance(self.link.pending, CommitRequested) and not self.kemari)
    @rule(arrived=st.integers(0, 11), opened=OPENED, life=LIVES)
    def cut_in_ack(self, arrived: int, opened: bool, life: int) -> None:
        """The transaction is in, and the sender does not hear of it."""
        self.acknowledge()
        self.sender_reads(arrived)
        self.cut(opened, life)

    # What the sender knows

    def learn(self, next_id: int) -> None:
        """The opening ACK says what became of the transactions whose answers were lost."""
        if self.outstanding:
            are_in = (next_id - self.outstanding[0].id) % ID_MODULUS
            self.settle(are_in if are_in <= len(self.outstanding) else 0, of=len(self.outstanding))

    def settle(self, are_in: int, of: int) -> None:
        """Of the oldest ``of`` the first ``are_in`` are committed, and the others are not."""
        for at in range(of):
            transaction = self.outstanding.popleft()
            if at < are_in:
                self.known += transaction.handed_over

    # What must hold

    @invariant()
    def another_step(self) -> None:
        self.age += 1

    @invariant()
    def no_error(self) -> None:
        assert not self.link.is_broken, (self.link.sender_error, self.link.receiver_error)

    @invariant()
    def exactly_the_committed_ones(self) -> None:
        """What was handed over is what the sender knows of, and then the oldest whose answers are on their way."""
        may_follow = [state for transaction in self.outstanding for state in transaction.handed_over]
        handed_over = self.store.handed_over
        assert handed_over[: len(self.known)] == self.known
        following = handed_over[len(self.known) :]
        assert following == may_follow[: len(following)]

    def teardown(self) -> None:
        """When everything has arrived and is answered, both sides agree."""
        while self.link.pending is not None or self.link.to_receiver or self.link.to_sender:
            if self.link.pending is not None:
                self.acknowledge()
            elif self.link.to_receiver:
                self.receiver_reads(len(self.link.to_receiver))
            else:
                self.sender_reads(len(self.link.to_sender))
            self.no_error()
        assert not self.outstanding
        assert self.store.handed_over == self.known


class DamagingLink(LinkedMachines):
    """
    The same with bytes that are damaged on their way, and a digest to find that out.

    What the sender knows may be wrong now, for nothing protects an ACK; so what is handed over is compared with what
    the sender sent a COMMIT for: it has to be one of those, unchanged, and none comes twice or before an earlier one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[Outstanding] = []

    @initialize(
        first_id=FIRST_IDS,
        order=byte_orders(),
        offered=st.tuples(WITH_DIGEST, WITH_DIGEST),
        windows=WINDOWS,
        kemari=st.just(False),
        opened=OPENED,
        life=LIVES,
    )
    def start(
        self,
        first_id: int,
        order: ByteOrder,
        offered: tuple[frozenset[str], frozenset[str]],
        windows: tuple[int, int],
        kemari: bool,
        opened: bool,
        life: int,
    ) -> None:
        super().start(first_id, order, offered, windows, kemari, opened, life)

    @precondition(lambda self: bool(self.link.to_receiver) and self.age >= self.life)
    @rule(at=PLACES, mask=MASKS)
    def damage_to_receiver(self, at: int, mask: int) -> None:
        self.link.to_receiver.flip(at % len(self.link.to_receiver), mask)

    @precondition(lambda self: bool(self.link.to_sender) and self.age >= self.life)
    @rule(at=PLACES, mask=MASKS)
    def damage_to_sender(self, at: int, mask: int) -> None:
        self.link.to_sender.flip(at % len(self.link.to_sender), mask)

    @precondition(lambda self: self.may_begin and not self.link.to_receiver)
    @rule(frames=st.lists(st.lists(frame_sizes(), max_size=2), min_size=1, max_size=4), at=PLACES, mask=MASKS)
    def damaged_transaction(self, frames: list[list[int]], at: int, mask: int) -> None:
        self.transaction(frames)
        self.damage_to_receiver(at, mask)

    def sent_commit(self, data: bytes) -> None:
        super().sent_commit(data)
        self.attempts.append(self.outstanding[-1])

    @invariant()
    def no_error(self) -> None:
        """Damage is an error, sooner or later, always one of the wire's own, and whoever found it closes the link."""
        if self.link.is_broken:
            self.connect(opened=True, life=0)

    @invariant()
    def exactly_the_committed_ones(self) -> None:
        attempts = iter(self.attempts)
        for handed_over in self.store.handed_over:
            assert any(attempt.handed_over == [handed_over] for attempt in attempts), "not sent, not whole, or twice"

    def teardown(self) -> None:
        self.link.settle()
        self.exactly_the_committed_ones()


class RandomTests(SynchronousTestCase):
    """Hypothesis at the controls."""

    def test_exactly_what_was_committed(self) -> None:
        run_state_machine_as_test(LinkedMachines, settings=examples(120, steps=60))

    def test_nothing_damaged(self) -> None:
        run_state_machine_as_test(DamagingLink, settings=examples(120, steps=60))


class CutTests(SynchronousTestCase):
    """No commit is in doubt after a reconnect: the link is cut at every byte of what decides it."""

    def reconnected(self, store: Store) -> int:
        """The id that the receiver expects, as the sender hears it on a new link."""
        link = WireLink.between(store)
        link.settle()
        opened = link.events[-1]
        assert isinstance(opened, Opened)
        return opened.next_id

    def committing(self, id: int) -> WireLink:
        """A link on which all but the COMMIT of a transaction has arrived, and the COMMIT is on its way."""
        link = WireLink.between(Store(next_id=id))
        link.settle()
        link.send(link.sender.begin(), link.sender.continue_(b"state"), b"state")
        link.settle()
        link.send(link.sender.commit())
        return link

    def test_at_every_byte_of_commit(self) -> None:
        for id, following in ((0, 1), (65535, 0)):
            length = len(self.committing(id).to_receiver)
            self.assertEqual(length, 20)
            for arrived in range(length + 1):
                link = self.committing(id)
                link.deliver_to_receiver(arrived)
                if arrived == length:
                    link.answer()
                    self.assertEqual(link.store.handed_over, [HandedOver(id, b"state")])
                    self.assertEqual(self.reconnected(link.store), following)
                else:
                    self.assertIsNone(link.pending)
                    self.assertIsNotNone(link.receiver.end_of_stream())
                    self.assertEqual(link.store.handed_over, [])
                    self.assertEqual(self.reconnected(link.store), id)

    def test_at_every_byte_of_its_ack(self) -> None:
        for arrived in range(13):
            link = self.committing(0)
            link.deliver_to_receiver(20)
            link.answer()
            self.assertEqual(len(link.to_sender), 12)
            link.deliver_to_sender(arrived)
            self.assertEqual(isinstance(link.events[-1], Acknowledged), arrived == 12)
            self.assertEqual(self.reconnected(link.store), 1)
            self.assertEqual(len(link.store.handed_over), 1)


class WindowTests(SynchronousTestCase):
    """What is dropped with a refused transaction is dropped on both sides, whatever of it is on its way."""

    def waiting(self, *, is_open: bool, first_id: int = 65534) -> WireLink:
        """A link with four transactions on their way, the last of which is open or in flight."""
        link = WireLink.between(Store(next_id=first_id), windows=(4, 4))
        link.settle()
        for number in range(4):
            data = bytes([number]) * (number + 1)
            link.send(link.sender.begin(), link.sender.continue_(data), data)
            if number < 3 or not is_open:
                link.send(link.sender.commit())
        return link

    def test_the_second_is_refused(self) -> None:
        for is_open in (False, True):
            for read in range(1, 200):
                link = self.waiting(is_open=is_open)
                link.deliver_to_receiver(1000)
                link.answer()
                link.answer(ErrorCode.FLUSH)
                # Some of what is dropped has been read before the sender hears of it, some comes after.
                link.deliver_to_sender(1000)
                refused = link.events[-1]
                assert isinstance(refused, Refused)
                self.assertEqual((len(refused.behind), bool(refused.cancel)), (1, True) if is_open else (2, False))
                for data in (b"again", b"and again"):
                    link.send(link.sender.begin(), link.sender.continue_(data), data, link.sender.commit())
                while link.to_receiver and link.pending is None:
                    link.deliver_to_receiver(read)
                link.settle()
                self.assertEqual((link.sender_error, link.receiver_error), (None, None))
                expected = [HandedOver(65534, b"\0"), HandedOver(65535, b"again"), HandedOver(0, b"and again")]
                self.assertEqual(link.store.handed_over, expected)

    def test_an_atomic_ends_the_dropping_too(self) -> None:
        link = self.waiting(is_open=False)
        link.deliver_to_receiver(1000)
        link.answer(ErrorCode.FLUSH)
        link.deliver_to_sender(1000)
        before, after = link.sender.atomic(b"whole")
        link.send(before, b"whole", after)
        link.settle()
        self.assertEqual(link.store.handed_over, [HandedOver(65534, b"whole")])

    def test_a_second_refusal_of_the_same(self) -> None:
        link = self.waiting(is_open=True)
        for _ in range(3):
            link.deliver_to_receiver(1000)
            link.answer(ErrorCode.FLUSH)
            link.deliver_to_sender(1000)
            for number in range(4):
                link.send(link.sender.begin(), link.sender.continue_(bytes(number)), bytes(number))
                link.send(link.sender.commit())
        link.settle()
        self.assertEqual([kept.id for kept in link.store.handed_over], [65534, 65535, 0, 1])

    def test_all_that_were_in_flight_are_resolved_by_the_next_id(self) -> None:
        """However many of them were committed when the link broke."""
        for committed in range(5):
            link = self.waiting(is_open=False)
            link.deliver_to_receiver(1000)
            for _ in range(committed):
                link.answer()
            self.assertEqual(link.store.next_id, (65534 + committed) % ID_MODULUS)
            self.assertEqual(len(link.store.handed_over), committed)
            self.assertEqual(len(link.sender.in_flight), 4)


class ByteOrderTests(SynchronousTestCase):
    """A session in either byte order, as it goes over the wire."""

    def session(self, order: ByteOrder) -> list[str]:
        """All that both sides send, in its order."""
        link = WireLink.between(Store(), byte_order=order, kemari=True)
        said = [link.to_sender.take(100)]
        list(link.sender.receive(said[0]))
        said += [link.sender.begin(), link.sender.continue_(b"*"), b"*", link.sender.commit()]
        link.send(*said[1:])
        link.deliver_to_receiver(100)
        link.answer()
        return [part.hex(" ", 2) for part in (*said, link.to_sender.take(100))]

    def test_little(self) -> None:
        self.assertEqual(
            self.session("little"),
            [
                "0600 0000 0000 0000 0000 0000",
                "0100 0000 0000 0000 0000 0000",
                "0200 0000 0000 0000 0100 0000",
                "2a",
                "0300 0000 0100 0000 0000 0000",
                "0600 0000 0100 0000 0000 0000",
            ],
        )

    def test_big(self) -> None:
        self.assertEqual(
            self.session("big"),
            [
                "0006 0000 0000 0000 0000 0000",
                "0001 0000 0000 0000 0000 0000",
                "0002 0000 0000 0000 0000 0001",
                "2a",
                "0003 0000 0000 0001 0000 0000",
                "0006 0000 0000 0001 0000 0000",
            ],
        )

    def test_mixed_up(self) -> None:
        """It is found out with the first header, and said what may be wrong."""
        link = WireLink.between(Store(), byte_order="big")
        sender = WireLink.between(Store(), byte_order="little").sender
        hint = "unknown command 0x0700 in state INIT; the peer seems to use the other byte order"
        with self.assertRaises(WireError) as raised:
            list(sender.receive(link.to_sender.take(100)))
        self.assertEqual((raised.exception.code, raised.exception.detail), (ErrorCode.STATE_INVALID, hint))
