"""
Both halves of a pair through whatever hypothesis thinks of: transactions, broken links, a receiver that is killed and
started again on its directory, a disk that fails, a network that is stuck, time that passes, with any window.

However it goes, once everything works again each caller of ``commit`` has been told the truth, and the receiver holds
exactly the transactions that were committed, whole, once, in order.
"""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ftd.bus import EventBus
from ftd.errors import FtdError, NoAck
from ftd.feed import Upload
from ftd.sinks.sink import SinkError
from ftd.status import Commit, LinkState
from ftd.test.disk_case import Disk
from ftd.test.pair_case import Body, PairTestCase
from ftd.test.wire.profile import examples
from ftd.testing.threads import SteppedThread
from ftd.testing.transport import Network

MANY = 1_000_000


@attrs.define(eq=False)
class Attempt:
    """
    A commit that was asked for.

    :ivar result: what the caller was told, ``None`` before that.
    """

    data: bytes
    result: object = None

    def wait(self, done: Deferred[Commit] | Deferred[object]) -> None:
        """Note the result."""
        done.addCallbacks(self._told, self._told)

    def _told(self, result: object) -> None:
        assert self.result is None, "told twice"
        self.result = result.value if isinstance(result, Failure) else result


class PairMachine(RuleBasedStateMachine):
    """What may happen."""

    def __init__(self, case: PairTestCase) -> None:
        super().__init__()
        self.case = case
        case.clock = Clock()
        case.network = Network(capacity=2000)
        case.bus = EventBus(case.now)
        case.directory = Path(case.mktemp())
        self.patches: list[Any] = []
        self.disk = Disk(case.directory / "checkpoints", lambda *what: self.patches.append(case.patch(*what)))
        self.attempts: list[Attempt] = []
        self.open = b""
        self.upload: Upload | None = None
        self.is_down = True

    @initialize(window=st.integers(1, 5), of_secondary=st.integers(1, 5), ack_time=st.sampled_from([20.0, 1000.0]))
    def start(self, window: int, of_secondary: int, ack_time: float) -> None:
        """The smaller of the two windows counts.  With the longer time everybody is told what happened."""
        self.of_secondary = of_secondary
        self.start_secondary()
        self.case.start_primary(ack_time=ack_time, heartbeat=1.0, window=window)
        self.pump()

    # Transactions.  What is asked for in the wrong state has its own tests.

    @property
    def is_between(self) -> bool:
        """Whether a transaction may begin, or soon."""
        sender = self.case.primary._sender
        if sender is None or self.case.primary._open is not None or not sender.is_open:
            return False
        in_flight = [sent for sent in sender.machine.in_flight if not sent.is_heartbeat]
        return len(in_flight) < sender.machine.window

    @precondition(lambda self: self.is_between)
    @rule()
    def begin(self) -> None:
        beginning = self.case.primary.begin()
        beginning.addCallbacks(self.begun, lambda failure: failure.trap(FtdError))

    def begun(self, _id: int) -> None:
        self.open = b""

    @precondition(lambda self: self.case.primary._open is not None)
    @rule(size=st.sampled_from([0, 1, 1023, 1024, 5000]))
    def append(self, size: int) -> None:
        data = self.token() + bytes(size)
        try:
            upload = self.case.primary.append(Body())
        except FtdError:
            return
        upload.done.addErrback(lambda failure: failure.trap(FtdError))
        self.open += data
        upload.write(data)
        upload.finish()

    @precondition(lambda self: self.open and self.case.primary._open is not None)
    @rule()
    def commit(self) -> None:
        data = self.open
        try:
            committing = self.case.primary.commit()
        except FtdError:
            return
        self.attempts.append(attempt := Attempt(data))
        attempt.wait(committing)

    @precondition(lambda self: self.case.primary._open is not None)
    @rule()
    def cancel(self) -> None:
        try:
            self.case.primary.cancel()
        except FtdError:
            return
        self.upload = None

    @precondition(lambda self: self.is_between)
    @rule(size=st.sampled_from([0, 1, 1024, 6000]), is_whole=st.booleans())
    def checkpoint(self, size: int, is_whole: bool) -> None:
        data = self.token() + bytes(size)
        attempt = Attempt(data)
        try:
            upload = self.case.primary.checkpoint(Body())
        except FtdError:
            return
        attempt.wait(upload.done)
        upload.write(data)
        self.open = data
        self.attempts.append(attempt)
        if is_whole:
            upload.finish()
        else:
            self.upload = upload

    @precondition(lambda self: self.upload is not None)
    @rule(is_cut=st.booleans())
    def end_checkpoint(self, is_cut: bool) -> None:
        assert self.upload is not None
        upload, self.upload = self.upload, None
        upload.cut("no more") if is_cut else upload.finish()

    def token(self) -> bytes:
        """What no other transaction has."""
        return b"%06d" % len(self.attempts) + b"-%06d;" % len(self.open)

    # The network

    def pump(self) -> None:
        self.case.network.pump()

    @rule(steps=st.sampled_from([1, 2, 3, 1000]), chunk=st.sampled_from([1, 5, 12, 20, 1000]))
    def deliver(self, steps: int, chunk: int) -> None:
        for _ in range(steps):
            for link in self.case.network.links[-2:]:
                link.step(chunk)

    @precondition(lambda self: not self.case.link.is_cut)
    @rule(clean=st.booleans())
    def cut(self, clean: bool) -> None:
        self.case.link.cut(clean=clean)

    @precondition(lambda self: not self.case.link.is_cut)
    @rule(to_client=st.booleans())
    def stall(self, to_client: bool) -> None:
        flow = self.case.link.to_client if to_client else self.case.link.to_server
        flow.is_stalled = not flow.is_stalled

    # The halves

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.case.pass_time(seconds, step=0.05 if seconds < 1 else 0.5)

    @rule()
    def kill_or_start(self) -> None:
        if self.is_down:
            self.start_secondary()
        else:
            self.is_down = True
            self.disk.bury()
            self.case.kill_secondary()

    def start_secondary(self) -> None:
        self.is_down = False
        # What the old process had not done yet is not done any more.
        self.thread = SteppedThread()
        self.mend_disk()
        self.case.start_secondary(self.case.directory_sink(MANY, self.thread), keep=MANY, window=self.of_secondary)

    @rule()
    def write_to_disk(self) -> None:
        self.thread.run()

    @rule(at=st.integers(0, 9))
    def break_disk(self, at: int) -> None:
        """One of the next system calls will fail."""
        self.mend_disk()
        self.disk.fail_at, self.disk.error = at, errno.ENOSPC

    def mend_disk(self) -> None:
        self.disk.restart()

    @rule(of_primary=st.booleans())
    def reset(self, of_primary: bool) -> None:
        (self.case.primary if of_primary or self.is_down else self.case.secondary).reset()

    @rule()
    def heal(self) -> None:
        """Have everything work, and all that goes on come to its end."""
        self.mend_disk()
        if self.is_down:
            self.start_secondary()
        for link in self.case.network.links:
            link.to_client.is_stalled = link.to_server.is_stalled = False
        if self.upload is not None:
            self.end_checkpoint(is_cut=False)
        for _ in range(1000):
            self.thread.run()
            is_up = self.case.primary.link_state is LinkState.UP
            if is_up and all(attempt.result is not None for attempt in self.attempts):
                return
            self.case.pass_time(0.1)
        raise AssertionError(f"it does not recover: {self.case.primary.status()}")

    @precondition(lambda self: self.is_between)
    @rule(size=st.sampled_from([0, 1024, 6000]))
    def succeed(self, size: int) -> None:
        """What ought to be the usual thing."""
        self.checkpoint(size, is_whole=True)
        self.heal()

    def begin_one(self) -> None:
        if self.is_between:
            self.begin()
            self.append(0)

    def send(self, count: int) -> None:
        """As many transactions as the window takes, up to ``count``, as far as their COMMIT."""
        for _ in range(count):
            self.begin_one()
            if self.case.primary._open is not None:
                self.commit()

    @precondition(lambda self: self.is_between)
    @rule(
        count=st.integers(2, 5),
        fail_at=st.integers(0, 20),
        is_one_open=st.booleans(),
        steps=st.sampled_from([0, 5, 1000]),
    )
    def refuse_one_of_several(self, count: int, fail_at: int, is_one_open: bool, steps: int) -> None:
        """The disk fails under one of those in flight."""
        self.heal()
        self.send(count)
        if is_one_open:
            self.begin_one()
        self.break_disk(fail_at)
        for _ in range(10):
            self.deliver(steps, 1000)
            self.thread.run()

    @precondition(lambda self: self.is_between)
    @rule(
        before=st.integers(0, 4),
        of_ack=st.booleans(),
        behind=st.sampled_from([0, 0, 12, 24, 58, 116]),
        at=st.integers(0, 20),
        clean=st.booleans(),
        then=st.sampled_from(["write", "write, restart", "restart", "reconnect", "reconnect, write"]),
    )
    def commit_into_a_break(self, before: int, of_ack: bool, behind: int, at: int, clean: bool, then: str) -> None:
        """What matters most: the link breaks inside a COMMIT or its ACK, and then there is a race."""
        self.heal()
        self.send(before)
        self.begin_one()
        if not before:
            self.pump()
        flow = self.case.link.to_client if of_ack else self.case.link.to_server
        flow.cut(len(flow.delivered) + behind + at, clean=clean)
        self.commit()
        self.pump()
        for step in then.split(", "):
            self.after_a_break(step)

    @precondition(lambda self: self.is_between)
    @rule(
        count=st.integers(2, 5),
        written=st.integers(0, 4),
        clean=st.booleans(),
        then=st.sampled_from(["write", "restart", "reconnect"]),
    )
    def lose_acks(self, count: int, written: int, clean: bool, then: str) -> None:
        """Some of those in flight are committed, and the sender hears of none."""
        self.heal()
        self.case.link.to_client.is_stalled = True
        self.send(count)
        for _ in range(written):
            self.pump()
            self.thread.run()
        self.case.link.cut(clean=clean)
        self.after_a_break(then)

    def after_a_break(self, step: str) -> None:
        if step == "write":
            self.thread.run()
            self.pump()
        elif step == "reconnect":
            self.case.pass_time(0.3)
        else:
            self.kill_or_start()
            self.kill_or_start()

    # The end

    def teardown(self) -> None:
        try:
            self.heal()
            self.check()
        finally:
            self.disk.wipe()
            for patch in self.patches:
                patch.restore()

    def check(self) -> None:
        case = self.case
        case.assertIs(case.primary.link_state, LinkState.UP)
        numbers = [held.number for held in case.store().checkpoints()]
        held = case.held()
        case.assertEqual(numbers, list(range(1, len(held) + 1)))
        case.assertEqual(held, [attempt.data for attempt in self.attempts if attempt.data in held])
        for attempt in self.attempts:
            case.assertIsNotNone(attempt.result, "somebody waits for ever")
            if isinstance(attempt.result, Commit):
                case.assertIn(attempt.data, held)
                case.assertEqual(attempt.result.bytes, len(attempt.data))
            elif isinstance(attempt.result, NoAck):
                continue
            else:
                case.assertIsInstance(attempt.result, FtdError)
                case.assertNotIn(attempt.data, held, attempt.result)
        case.flushLoggedErrors(SinkError, OSError)


class PairMachineTests(PairTestCase):
    """See above."""

    def test_whatever_happens(self) -> None:
        # Any factory will do, although the annotation asks for a class.
        machine: Any = partial(PairMachine, self)
        run_state_machine_as_test(machine, settings=examples(100, steps=40))
