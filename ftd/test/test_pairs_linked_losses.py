"""
A link that breaks at every byte of a COMMIT and of its ACK.

Whatever becomes of the receiver meanwhile, the caller of ``commit`` learns the truth from the next session, nothing is
handed over twice, and both halves agree on what comes next.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from twisted.internet.defer import Deferred

from ftd.config import Ack
from ftd.errors import FtdError, LinkDown
from ftd.status import Commit, LinkState, Outcome
from ftd.test.pair_case import PairTestCase
from ftd.testing.threads import SteppedThread
from ftd.testing.transport import Flow
from ftd.wire.constants import DIGEST_SIZE, HEADER_SIZE

COMMIT_SIZE = HEADER_SIZE + DIGEST_SIZE
ACK_SIZE = HEADER_SIZE

#: So that the transaction whose fate is in question has the last id before they wrap.
FIRST_ID = 65534


@attrs.frozen
class Loss:
    """
    Where the link breaks.

    :ivar of_ack: in the ACK, otherwise in the COMMIT.
    :ivar at: after so many bytes of it.
    :ivar clean: both ends see an end of the stream, otherwise a reset.
    """

    of_ack: bool
    at: int
    clean: bool

    @property
    def is_committed(self) -> bool:
        """Whether the receiver has read the whole COMMIT."""
        return self.of_ack or self.at == COMMIT_SIZE

    @property
    def is_acknowledged(self) -> bool:
        """Whether the sender has read the whole ACK."""
        return self.of_ack and self.at == ACK_SIZE


def losses() -> Iterator[Loss]:
    """All of them."""
    for clean in (True, False):
        for at in range(COMMIT_SIZE + 1):
            yield Loss(False, at, clean)
        for at in range(ACK_SIZE + 1):
            yield Loss(True, at, clean)


class LossCase(PairTestCase):
    """One checkpoint is committed; the link breaks while the second one is."""

    def lose(self, loss: Loss) -> Deferred[Commit]:
        """Commit, with that loss."""
        self.secondary.next_id = FIRST_ID
        self.start_primary()
        self.network.pump()
        self.assertEqual(self.committed(b"first").id, FIRST_ID)
        self.begin()
        self.append(b"second")
        self.network.pump()
        flow: Flow = self.link.to_client if loss.of_ack else self.link.to_server
        flow.cut(len(flow.delivered) + loss.at, clean=loss.clean)
        committing = self.primary.commit()
        self.network.pump()
        self.assertTrue(self.link.is_over, loss)
        if not loss.is_acknowledged:
            self.assertNoResult(committing)
        return committing

    def check_truth(self, loss: Loss, committing: Deferred[Commit], is_held: bool) -> None:
        """Make sure that the caller knows whether the standby has it, and that the history says the same."""
        row = self.primary.transactions()[-1]
        if is_held or loss.is_acknowledged:
            self.assertEqual(
                attrs.evolve(self.successResultOf(committing), seconds=0.0),
                Commit(id=65535, seq=1, bytes=6, seconds=0.0),
            )
            self.assertEqual((row.outcome, row.number), (Outcome.COMMITTED, 2), loss)
        else:
            self.assertIn("is not committed", str(self.refusal(LinkDown, lambda: committing)), loss)
            self.assertEqual((row.outcome, row.number), (Outcome.FAILED, 2), loss)

    def check_agreed(self, loss: Loss, id: int, numbers: list[int], states: list[bytes]) -> None:
        """Make sure that both halves agree: the next transaction has this id, and then these checkpoints are there."""
        self.assertEqual((self.primary.status().id, self.secondary.status().id), (id, id), loss)
        self.assertEqual(self.committed(b"third").id, id, loss)
        self.assertEqual([held.number for held in self.store().checkpoints()], numbers, loss)
        self.assertEqual(self.held(), states, loss)
        self.assertEqual(self.primary.transactions()[-1].number, numbers[-1], loss)
        last = self.primary.status().last_committed
        assert last is not None
        self.assertEqual((last.id, last.number, last.bytes), (id, numbers[-1], 5), loss)
        self.assertIs(self.primary.error, None)
        self.assertIs(self.secondary.error, None)

    def stop_all(self) -> None:
        """Make room for another pair of halves."""
        self.kill_secondary()
        self.primary.stop()
        self.network.pump()
        self.network.links.clear()
        self.bus = type(self.bus)(self.now)


class EveryByteTests(LossCase):
    """Every loss, with each of what may become of the receiver."""

    def check_every_loss(self, ack: Ack) -> Iterator[Loss]:
        """Each loss, with a new secondary that has its own directory."""
        for number, loss in enumerate(losses()):
            self.directory = self.directory.parent / f"{ack}-{number}"
            self.start_secondary(self.directory_sink(), ack=ack)
            yield loss
            self.stop_all()

    def check_kept(self, loss: Loss, committing: Deferred[Commit]) -> None:
        """The receiver holds what it had committed."""
        self.check_truth(loss, committing, loss.is_committed)
        if loss.is_committed:
            self.check_agreed(loss, 0, [1, 2, 3], [b"first", b"second", b"third"])
        else:
            self.check_agreed(loss, 65535, [1, 2], [b"first", b"third"])

    def test_the_receiver_lives_on(self) -> None:
        for ack in Ack:
            for loss in self.check_every_loss(ack):
                committing = self.lose(loss)
                self.reconnect()
                self.check_kept(loss, committing)

    def test_the_receiver_is_restarted_and_finds_its_directory(self) -> None:
        for ack in Ack:
            for loss in self.check_every_loss(ack):
                committing = self.lose(loss)
                self.restart_secondary(self.directory_sink(), ack=ack)
                self.reconnect()
                self.check_kept(loss, committing)

    def test_the_receiver_is_restarted_and_has_lost_everything(self) -> None:
        for ack in Ack:
            for loss in self.check_every_loss(ack):
                committing = self.lose(loss)
                self.restart_secondary(self.memory_sink(), ack=ack)
                self.reconnect()
                self.check_truth(loss, committing, is_held=False)
                self.check_agreed(loss, 0, [1], [b"third"])

    def test_the_receiver_comes_back_with_the_state_from_before(self) -> None:
        # A disk that was restored from a backup, say: it has the first checkpoint and not the second.
        for ack in Ack:
            for loss in self.check_every_loss(ack):
                committing = self.lose(loss)
                self.kill_secondary()
                for path in (self.directory / "checkpoints").glob("0000000002.*"):
                    path.unlink()
                self.start_secondary(self.directory_sink(), ack=ack)
                self.reconnect()
                self.check_truth(loss, committing, is_held=False)
                self.check_agreed(loss, 65535, [1, 2], [b"first", b"third"])


class WrappedIdTests(PairTestCase):
    """Heartbeats have used up so many ids that an old one looks like the next."""

    def setUp(self) -> None:
        super().setUp()
        self.start(self.directory_sink())

    def lose_with_used_id(self) -> Deferred[Commit]:
        """
        Lose a commit on its way to the receiver, with the id of the checkpoint before it: 65,535 heartbeats have come
        between them.
        """
        self.assertEqual(self.committed(b"first").id, 0)
        self.link.cut(clean=True)
        self.network.pump()
        self.secondary.next_id = 0
        self.reconnect()
        self.assertEqual(self.begin(), 0)
        self.append(b"second")
        self.network.pump()
        self.link.to_server.is_stalled = True
        committing = self.primary.commit()
        self.link.cut(clean=False)
        self.network.pump()
        return committing

    def test_a_restarted_receiver_expects_the_next_id_and_has_it_not(self) -> None:
        committing = self.lose_with_used_id()
        self.restart_secondary(self.directory_sink())
        self.assertEqual(self.secondary.next_id, 1)
        self.reconnect()
        self.assertIn("is not committed", str(self.refusal(LinkDown, lambda: committing)))
        self.assertEqual(self.held(), [b"first"])
        self.assertEqual(self.committed(b"third").id, 1)
        self.assertEqual(self.held(), [b"first", b"third"])
        self.assertEqual(self.primary.transactions()[-1].number, 2)

    def test_a_receiver_that_lives_on_knows_too(self) -> None:
        committing = self.lose_with_used_id()
        self.reconnect()
        self.refusal(LinkDown, lambda: committing)
        self.assertEqual(self.committed(b"third").id, 0)
        self.assertEqual(self.held(), [b"first", b"third"])

    def test_every_id_is_used_by_real_heartbeats(self) -> None:
        self.secondary.next_id = 65530
        self.link.cut(clean=True)
        self.network.pump()
        self.reconnect()
        self.pass_time(10.5)
        self.assertEqual(self.primary.status().id, (65530 + 10) % 65536)
        self.assertEqual(self.secondary.status().id, self.primary.status().id)
        self.assertEqual(self.committed(b"first").id, 4)

    def test_a_heartbeat_whose_ack_is_lost(self) -> None:
        self.link.to_client.cut(len(self.link.to_client.delivered) + 5, clean=False)
        self.pass_time(1.0)
        self.reconnect()
        self.assertEqual((self.primary.status().id, self.secondary.status().id), (1, 1))
        self.assertEqual(self.committed(b"first").id, 1)
        self.assertEqual(self.primary.transactions()[0].id, 1)


class SlowDiskTests(PairTestCase):
    """The link breaks while the receiver's disk is still busy with the commit."""

    def begin_commit(self, ack: Ack) -> Deferred[Commit]:
        """A commit that has reached the receiver and not its disk."""
        self.thread = SteppedThread()
        self.start(self.directory_sink(run_in_thread=self.thread), ack=ack)
        self.begin()
        self.append(b"first")
        committing = self.primary.commit()
        self.network.pump()
        return committing

    def reconnect_while_busy(self) -> None:
        """A new link, on which the receiver says nothing until it knows what it holds."""
        self.pass_time(1.0)
        self.assertEqual(len(self.network.links), 2)
        self.assertIs(self.primary.link_state, LinkState.HANDSHAKE)
        self.assertEqual(bytes(self.link.to_client.delivered), b"")

    def test_it_gets_there(self) -> None:
        committing = self.begin_commit(Ack.APPLIED)
        self.link.cut(clean=False)
        # A receiver that is busy does not read, so it does not notice either, until it has something to say.
        self.network.pump()
        self.assertNoResult(committing)
        self.thread.run()
        self.reconnect()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [b"first"])

    def test_it_gets_there_after_the_next_link_is_made(self) -> None:
        committing = self.begin_commit(Ack.APPLIED)
        self.link.cut(clean=False)
        self.network.pump()
        self.reconnect_while_busy()
        self.assertNoResult(committing)
        self.thread.run()
        self.reconnect()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [b"first"])
        self.assertEqual(self.committed_slowly(b"second"), 1)
        self.assertEqual(self.held(), [b"first", b"second"])

    def committed_slowly(self, data: bytes) -> int:
        upload = self.push(data)
        self.network.pump()
        self.thread.run()
        self.network.pump()
        commit = self.successResultOf(upload.done)
        assert isinstance(commit, Commit)
        return commit.id

    def test_it_does_not_get_there(self) -> None:
        committing = self.begin_commit(Ack.APPLIED)
        self.link.cut(clean=False)
        self.network.pump()
        self.reconnect_while_busy()
        (self.directory / "checkpoints").rename(self.directory / "away")
        self.thread.run()
        (self.directory / "away").rename(self.directory / "checkpoints")
        self.reconnect()
        self.refusal(LinkDown, lambda: committing)
        self.assertEqual(self.held(), [])
        self.assertEqual(self.committed_slowly(b"second"), 0)

    def test_an_ack_before_the_disk_does_not_wait_for_it(self) -> None:
        committing = self.begin_commit(Ack.RECEIVED)
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [])
        settled = self.secondary.settled()
        self.assertNoResult(settled)
        self.thread.run()
        self.successResultOf(settled)
        self.successResultOf(self.secondary.settled())
        self.assertEqual(self.held(), [b"first"])

    def test_a_disk_that_fails_after_the_ack(self) -> None:
        committing = self.begin_commit(Ack.RECEIVED)
        self.successResultOf(committing)
        first = self.primary.status().last_committed
        assert first is not None
        (self.directory / "checkpoints").rename(self.directory / "away")
        self.thread.run()
        self.network.pump()
        # The link is closed, as the sender has to ask what is there; both say why.
        error = self.secondary.error
        assert error is not None
        self.assertIn("cannot store a checkpoint in", error.detail)
        self.assertEqual(self.secondary.transactions()[-1].outcome, Outcome.NACKED)
        self.assertIsNot(self.primary.link_state, LinkState.UP)
        (self.directory / "away").rename(self.directory / "checkpoints")
        self.reconnect()
        self.assertIs(self.primary.status().last_committed, None)
        self.assertEqual(self.held(), [])
        self.assertEqual((self.primary.status().id, self.secondary.status().id), (1, 1))
        self.assertEqual(self.committed_slowly(b"second"), 1)
        self.assertEqual([held.number for held in self.store().checkpoints()], [1])
        last = self.primary.status().last_committed
        assert last is not None
        self.assertEqual((last.id, last.number), (1, 1))

    def test_who_waits_for_the_store_is_told_of_a_failure_too(self) -> None:
        self.begin_commit(Ack.RECEIVED)
        settled = self.secondary.settled()
        (self.directory / "checkpoints").rename(self.directory / "away")
        self.thread.run()
        self.successResultOf(settled)


class RecoveryErrorTests(PairTestCase):
    """What is asked while there is no session."""

    def test_the_error_goes_with_the_next_session(self) -> None:
        self.start()
        self.begin()
        self.network.pump()
        self.link.cut(clean=False)
        self.network.pump()
        for half in (self.primary, self.secondary):
            self.assertEqual(half.status().has_error_name, "RECV_HDR")
        self.refusal(FtdError, self.primary.begin)
        self.reconnect()
        for half in (self.primary, self.secondary):
            self.assertEqual((half.status().has_error, half.status().reconnects), (0, 1))
        self.assertEqual(self.committed(b"abc").id, 0)
