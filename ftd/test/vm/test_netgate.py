"""What passes a gate, and when."""

from __future__ import annotations

from ftd.test.vm.netgate_case import FakeEnd, GateCase, framed, numbered
from ftd.vm.netgate import GateState, NetGate, NetGateError

_FRAMES = numbered(0, 10)


class OutputCommitTests(GateCase):
    """The guest's frames leave with their epoch."""

    def setUp(self) -> None:
        super().setUp()
        self.gate = self.started()

    def test_what_is_held_does_not_leave(self) -> None:
        self.says(*_FRAMES)
        self.assertEqual(self.outside.frames(), [])
        self.assertEqual((self.gate.held_frames, self.gate.held_bytes, self.gate.passed_out), (10, 640, 0))

    def test_each_epoch_leaves_when_it_is_released(self) -> None:
        self.says(*_FRAMES[:3])
        first = self.gate.seal()
        self.says(*_FRAMES[3:7])
        second = self.gate.seal()
        self.says(*_FRAMES[7:])
        self.assertEqual(second, first + 1)
        self.gate.release(first)
        self.assertEqual(self.outside.frames(), _FRAMES[:3])
        self.gate.release(second)
        self.assertEqual(self.outside.frames(), _FRAMES[:7])
        self.assertEqual((self.gate.held_frames, self.gate.passed_out), (3, 7))

    def test_a_later_epoch_takes_those_before_it_along(self) -> None:
        sealed = []
        for frame in _FRAMES:
            self.says(frame)
            sealed.append(self.gate.seal())
        self.gate.release(sealed[8])
        self.gate.release(sealed[4])
        self.assertEqual(self.outside.frames(), _FRAMES[:9])

    def test_an_uplink_that_is_slow_gets_all_that_was_ever_released(self) -> None:
        self.outside.window = 10
        sealed = []
        for frame in _FRAMES[:3]:
            self.says(frame)
            sealed.append(self.gate.seal())
        for epoch in reversed(sealed):
            self.gate.release(epoch)
        self.outside.window = 1 << 20
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), _FRAMES[:3])

    def test_sealing_takes_what_is_in_the_socket_at_once(self) -> None:
        self.guest.incoming += framed(*_FRAMES)
        self.gate.release(self.gate.seal())
        self.assertEqual(self.outside.frames(), _FRAMES)

    def test_what_comes_after_the_seal_is_not_released_by_it(self) -> None:
        epoch = self.gate.seal()
        self.says(*_FRAMES)
        self.gate.release(epoch)
        self.assertEqual(self.outside.frames(), [])

    def test_an_epoch_that_is_not_sealed_cannot_be_released(self) -> None:
        self.says(*_FRAMES)
        error = self.assertRaises(ValueError, self.gate.release, self.gate.epoch)
        self.assertIn("is not sealed", str(error))
        self.assertEqual(self.outside.frames(), [])

    def test_all_can_be_released_and_the_gate_goes_on_holding(self) -> None:
        self.says(*_FRAMES[:4])
        self.gate.release_all()
        self.assertEqual(self.outside.frames(), _FRAMES[:4])
        self.says(*_FRAMES[4:])
        self.assertEqual((self.outside.frames(), self.gate.held_frames), (_FRAMES[:4], 6))

    def test_discarded_frames_never_leave(self) -> None:
        self.says(*_FRAMES[:4])
        self.gate.discard()
        self.says(*_FRAMES[4:])
        self.gate.release(self.gate.seal())
        self.assertEqual(self.outside.frames(), _FRAMES[4:])
        self.assertEqual(self.gate.dropped, 4)

    def test_frames_from_outside_pass_at_once(self) -> None:
        self.outside.incoming += framed(*_FRAMES)
        self.reactor.turn()
        self.assertEqual((self.guest.frames(), self.gate.passed_in), (_FRAMES, 10))

    def test_what_a_dead_guest_has_said_is_still_held(self) -> None:
        self.guest.incoming += framed(*_FRAMES) + framed(b"the beginning of a frame")[:9]
        self.guest.has_ended = True
        self.reactor.turn()
        self.assertFalse(self.gate.guest_up)
        self.assertEqual(self.gate.held_frames, 10)
        self.gate.release(self.gate.seal())
        self.assertEqual(self.outside.frames(), _FRAMES)


class StateTests(GateCase):
    """Closed, open, holding, and from one to another."""

    def test_a_new_gate_is_closed_and_throws_all_away(self) -> None:
        gate = self.started(act=lambda _: None)
        self.says(*_FRAMES)
        self.outside.incoming += framed(*_FRAMES)
        self.reactor.turn()
        self.assertIs(gate.state, GateState.CLOSED)
        self.assertEqual((self.outside.outgoing, self.guest.outgoing), (b"", b""))
        self.assertEqual((gate.dropped, gate.held_frames, self.guest.incoming), (20, 0, b""))

    def test_nothing_from_the_time_when_it_was_closed_passes_later(self) -> None:
        gate = self.started(act=lambda _: None)
        self.says(*_FRAMES[:5])
        gate.open()
        self.says(*_FRAMES[5:])
        self.assertEqual(self.outside.frames(), _FRAMES[5:])

    def test_an_open_gate_lets_all_pass(self) -> None:
        gate = self.started(act=NetGate.open)
        self.says(*_FRAMES)
        self.assertEqual((self.outside.frames(), gate.passed_out, gate.held_frames), (_FRAMES, 10, 0))

    def test_opening_lets_go_of_what_is_held_first(self) -> None:
        gate = self.started()
        self.says(*_FRAMES[:5])
        gate.open()
        self.says(*_FRAMES[5:])
        self.assertEqual(self.outside.frames(), _FRAMES)

    def test_holding_begins_with_what_is_not_read_yet(self) -> None:
        gate = self.started(act=NetGate.open)
        self.says(*_FRAMES[:5])
        self.guest.incoming += framed(*_FRAMES[5:])
        gate.hold()
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), _FRAMES[:5])

    def test_holding_again_after_it_was_open_needs_a_release_again(self) -> None:
        gate = self.started()
        for _ in range(3):
            gate.open()
            gate.hold()
            self.says(_FRAMES[0])
            self.assertEqual(gate.held_frames, 1)
        self.assertEqual(len(self.outside.frames()), 2)

    def test_holding_while_it_holds_changes_nothing(self) -> None:
        gate = self.started()
        epoch = gate.epoch
        gate.hold()
        self.assertEqual(gate.epoch, epoch)

    def test_closing_throws_away_what_is_held(self) -> None:
        gate = self.started()
        self.says(*_FRAMES)
        gate.close()
        gate.open()
        self.assertEqual((self.outside.frames(), gate.dropped), ([], 10))

    def test_no_half_frame_when_it_closes_in_the_middle_of_one(self) -> None:
        gate = self.started(act=NetGate.open)
        self.outside.window = self.guest.window = 70
        self.says(*_FRAMES)
        self.outside.incoming += framed(*_FRAMES)
        self.reactor.turn()
        gate.close()
        self.outside.window = self.guest.window = 1 << 20
        self.reactor.turn()
        self.assertEqual((self.outside.frames(), self.guest.frames()), (_FRAMES[:2], _FRAMES[:2]))

    def test_sealing_an_open_gate_lets_pass_what_it_finds(self) -> None:
        gate = self.started(act=NetGate.open)
        self.guest.incoming += framed(*_FRAMES)
        gate.seal()
        self.assertEqual(self.outside.frames(), _FRAMES)


class BoundTests(GateCase):
    """Memory is bounded, and nothing is dropped for it."""

    limit = 640

    def test_at_the_limit_the_guest_waits(self) -> None:
        gate = self.started()
        self.says(*_FRAMES)
        self.says(*numbered(10, 10))
        self.assertEqual((gate.held_frames, len(self.guest.incoming)), (10, 640))
        self.assertEqual(self.reactor.watches(self.guest), "")
        gate.release(gate.seal())
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), _FRAMES)
        gate.release(gate.seal())
        self.assertEqual(self.outside.frames(), numbered(0, 20))
        self.assertEqual(gate.dropped, 0)

    def test_sealing_reads_no_more_than_that(self) -> None:
        gate = self.started()
        self.says(*_FRAMES)
        self.guest.incoming += framed(_FRAMES[0])
        gate.seal()
        self.assertEqual(gate.held_frames, 10)

    def test_an_outside_that_is_slow_makes_the_guest_wait(self) -> None:
        gate = self.started(act=NetGate.open)
        self.outside.window = 100
        self.says(*_FRAMES)
        self.says(*numbered(10, 20))
        self.assertEqual(self.reactor.watches(self.guest), "")
        self.assertEqual(self.reactor.watches(self.outside), "rw")
        self.outside.window = 1 << 20
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), numbered(0, 30))
        self.assertEqual((gate.held_frames, self.reactor.watches(self.outside)), (0, "r"))

    def test_a_guest_that_does_not_read_makes_the_outside_wait(self) -> None:
        gate = self.started()
        self.guest.window = 1000
        many = numbered(0, 300, 1500)
        self.outside.incoming += framed(*many)
        self.reactor.turn()
        self.assertEqual(self.reactor.watches(self.outside), "")
        self.guest.window = 1 << 30
        self.outside.incoming += framed(*many)
        self.reactor.turn()
        self.assertTrue(self.guest.frames() == many + many)
        self.assertEqual((gate.passed_in, gate.dropped), (600, 0))


class ListeningQemuTests(GateCase):
    """A QEMU that listens must not be left standing where it writes."""

    limit = 640

    def connect(self, *peers: bool | OSError) -> NetGate:
        """A gate that has dialled QEMU, and holds."""
        self.sockets.answering = {"/up": [self.outside], "/n0": [self.guest]}
        self.sockets.peers += peers
        gate = self.build(connect=True)
        gate.start()
        gate.hold()
        return gate

    def test_it_waits_once_its_end_does_not_block(self) -> None:
        gate = self.connect(True)
        self.says(*_FRAMES)
        self.says(*_FRAMES)
        self.assertEqual((gate.held_frames, gate.dropped, len(self.guest.incoming)), (10, 0, 640))

    def test_its_end_is_looked_for_until_it_has_accepted(self) -> None:
        gate = self.connect(False, False, True)
        self.reactor.pump([0.01] * 2)
        self.says(*_FRAMES)
        self.says(*_FRAMES)
        self.assertEqual((gate.held_frames, gate.dropped), (10, 0))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_until_then_and_without_the_right_to_it_it_is_read_and_the_newest_are_dropped(self) -> None:
        outcomes: tuple[bool | OSError, ...] = (False, PermissionError(1, "Operation not permitted"))
        for outcome in outcomes:
            gate = self.connect(outcome)
            self.says(*_FRAMES)
            self.says(*numbered(10, 5))
            self.assertEqual((gate.held_frames, gate.dropped, self.guest.incoming), (10, 5, b""))
            gate.release(gate.seal())
            self.says(*numbered(15, 5))
            gate.release(gate.seal())
            self.assertEqual(self.outside.frames(), [*_FRAMES, *numbered(15, 5)])
            gate.stop()
            self.setUp()

    def test_who_never_accepts_is_not_looked_for_for_ever(self) -> None:
        self.connect(*[False] * 1000)
        self.reactor.pump([0.01] * 600)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_that_has_gone_is_not_looked_for(self) -> None:
        gate = self.connect(False)
        self.reactor.hang_up(self.guest)
        gate.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class GuestTests(GateCase):
    """QEMU's end comes and goes."""

    def test_nobody_has_connected(self) -> None:
        self.sockets.answering["/up"] = [self.outside]
        gate = self.build()
        gate.start()
        self.assertFalse(gate.guest_up)
        self.assertIn("nobody has connected to /n0; start QEMU with -netdev stream,server=off", gate.why_down)

    def test_without_a_guest_frames_from_outside_are_thrown_away(self) -> None:
        gate = self.started(act=NetGate.open)
        self.guest.has_ended = True
        self.reactor.turn()
        self.outside.incoming += framed(*_FRAMES)
        self.reactor.turn()
        self.assertEqual((gate.dropped, self.outside.incoming), (10, b""))

    def test_the_next_one_waits_until_the_first_is_gone(self) -> None:
        gate = self.started(act=NetGate.open)
        second = FakeEnd()
        self.sockets.doors["/n0"].callers.append(second)
        second.incoming += framed(_FRAMES[1])
        self.reactor.turn()
        self.assertEqual(self.reactor.watches(self.sockets.doors["/n0"]), "")
        self.assertEqual(self.outside.frames(), [])
        self.guest.incoming += framed(_FRAMES[0]) + b"\0\0\0\x09half"
        self.guest.has_ended = True
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), _FRAMES[:2])
        self.assertTrue(gate.guest_up)

    def test_the_next_one_gets_whole_frames_only(self) -> None:
        self.started(act=NetGate.open)
        self.guest.window = 100
        self.outside.incoming += framed(*_FRAMES)
        self.reactor.turn()
        second = FakeEnd()
        self.sockets.doors["/n0"].callers.append(second)
        self.reactor.hang_up(self.guest)
        self.reactor.turn()
        self.outside.incoming += framed(b"for the second")
        self.reactor.turn()
        self.assertEqual(second.frames(), [b"for the second"])

    def test_a_length_that_no_frame_has_ends_that_connection_and_no_other(self) -> None:
        gate = self.started(act=NetGate.open)
        self.says(b"good")
        self.guest.incoming += b"\0\0\0\0"
        self.reactor.turn()
        self.assertTrue(self.guest.is_closed)
        self.assertEqual((gate.guest_up, gate.uplink_up), (False, True))
        self.assertIn("a frame of 0 bytes", gate.why_down)
        self.assertEqual(self.outside.frames(), [b"good"])

    def test_ftd_dials_again_and_again_for_a_qemu_that_listens(self) -> None:
        self.sockets.answering["/up"] = [self.outside]
        gate = self.build(connect=True)
        gate.start()
        self.assertIn("cannot connect to /n0: No such file or directory", gate.why_down)
        self.reactor.pump([0.1] * 100)
        self.assertTrue(10 < self.sockets.dialled < 30, self.sockets.dialled)
        self.sockets.answering["/n0"] = [self.guest]
        self.reactor.advance(1)
        self.assertTrue(gate.guest_up)
        gate.open()
        self.says(*_FRAMES)
        self.guest.has_ended = True
        self.reactor.turn()
        again = FakeEnd()
        self.sockets.answering["/n0"] = [again]
        self.reactor.advance(0.05)
        again.incoming += framed(_FRAMES[0])
        self.reactor.turn()
        self.assertEqual(self.outside.frames(), [*_FRAMES, _FRAMES[0]])

    def test_who_cannot_be_accepted_is_tried_again_later(self) -> None:
        self.sockets.answering["/up"] = [self.outside]
        gate = self.build()
        gate.start()
        door = self.sockets.doors["/n0"]
        door.callers.append(self.guest)
        door.error = OSError(24, "Too many open files")
        self.reactor.turn()
        self.assertEqual(self.reactor.watches(door), "")
        door.error = None
        self.reactor.advance(1)
        self.assertTrue(gate.guest_up)

    def test_changes_are_told(self) -> None:
        self.started()
        self.reactor.advance(0)
        self.assertEqual(self.changes, 1)
        self.reactor.hang_up(self.guest)
        self.reactor.advance(0)
        self.assertEqual(self.changes, 2)


class LifeTests(GateCase):
    """The beginning and the end."""

    def test_stopping_closes_everything(self) -> None:
        gate = self.started()
        self.says(*_FRAMES)
        self.successResultOf(gate.stop())
        self.assertTrue(self.guest.is_closed and self.outside.is_closed)
        self.assertEqual((self.sockets.doors, self.reactor.readers, self.reactor.writers), ({}, [], []))
        self.assertEqual((gate.guest_up, gate.uplink_up, gate.held_frames), (False, False, 0))
        self.reactor.advance(10)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stopping_while_it_dials_ends_that(self) -> None:
        gate = self.build(connect=True)
        gate.start()
        gate.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_start_that_fails_leaves_nothing_open(self) -> None:
        self.sockets.refusal = NetGateError("somebody listens at /n0")
        gate = self.build("tap:tap0")
        error = self.assertRaises(NetGateError, gate.start)
        self.assertEqual(str(error), "vm qemu-net-n0: somebody listens at /n0")
        self.assertTrue(self.tap.is_closed)
        self.assertEqual(self.reactor.readers, [])
