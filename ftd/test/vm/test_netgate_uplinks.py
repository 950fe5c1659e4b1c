"""The outside of a gate: a tap, or a peer at a unix socket; up, slow, down and up again."""

from __future__ import annotations

import errno

from ftd.test.vm.netgate_case import FakeEnd, FakeTap, GateCase, framed, numbered
from ftd.vm.netgate import NetGate, NetGateError
from ftd.vm.netgate_lines import LONGEST_WAIT
from ftd.vm.netgate_uplinks import BURST, TapEnd

_FRAMES = numbered(0, 10)


class TapTests(GateCase):
    """A frame is a write, and a read."""

    def setUp(self) -> None:
        super().setUp()
        self.gate = self.started("tap:tap0")

    def test_out(self) -> None:
        self.says(*_FRAMES)
        self.assertEqual(self.tap.written, [])
        self.gate.release(self.gate.seal())
        self.assertEqual(self.tap.written, _FRAMES)

    def test_in(self) -> None:
        self.tap.incoming += _FRAMES
        self.reactor.turn()
        self.assertEqual((self.guest.frames(), self.gate.passed_in), (_FRAMES, 10))

    def test_more_than_fits_in_one_go_either_way(self) -> None:
        many = numbered(0, 3 * BURST + 7)
        self.tap.incoming += many
        self.says(*many)
        self.gate.release(self.gate.seal())
        self.assertLessEqual(len(self.tap.written), BURST)
        self.reactor.turn()
        self.assertEqual((self.tap.written, self.guest.frames()), (many, many))

    def test_one_that_is_full_gets_the_rest_in_order(self) -> None:
        self.tap.window = 3
        self.says(*_FRAMES)
        self.gate.open()
        self.assertEqual((len(self.tap.written), self.gate.held_frames), (3, 7))
        self.tap.window = 100
        self.reactor.turn()
        self.assertEqual(self.tap.written, _FRAMES)

    def test_what_is_no_ethernet_frame_holds_nothing_up(self) -> None:
        self.says(_FRAMES[0], b"short", _FRAMES[1])
        self.gate.open()
        self.assertEqual((self.tap.written, self.gate.held_frames), (_FRAMES[:2], 0))

    def test_frames_are_kept_while_the_interface_is_down(self) -> None:
        self.says(*_FRAMES)
        self.tap.enabled = False
        self.gate.open()
        self.assertEqual((self.gate.uplink_up, self.gate.held_frames), (False, 10))
        self.assertEqual(self.gate.why_down, "tap tap0 is down; enable it: ip link set tap0 up")
        self.reactor.advance(LONGEST_WAIT)
        self.tap.enabled = True
        self.reactor.advance(LONGEST_WAIT)
        self.assertEqual((self.gate.uplink_up, self.tap.written, len(self.taps)), (True, _FRAMES, 1))

    def test_one_that_vanishes_is_opened_again(self) -> None:
        self.says(*_FRAMES)
        self.tap.error = OSError(errno.EBADFD, "File descriptor in bad state")
        self.tap_refusal = NetGateError("there is no tap tap0; make it")
        self.gate.open()
        self.assertTrue(self.tap.is_closed)
        self.assertIn("File descriptor in bad state", self.gate.why_down)
        self.reactor.advance(LONGEST_WAIT)
        self.assertEqual(self.gate.why_down, "there is no tap tap0; make it")
        self.tap, self.tap_refusal = FakeTap(), None
        self.reactor.advance(LONGEST_WAIT)
        self.assertEqual((self.gate.uplink_up, self.tap.written), (True, _FRAMES))
        self.tap.incoming += _FRAMES
        self.reactor.turn()
        self.assertEqual(self.guest.frames(), _FRAMES)


class TapStartTests(GateCase):
    """A tap at the start."""

    def test_one_that_cannot_be_opened(self) -> None:
        self.tap_refusal = NetGateError("cannot use tap tap0: another program has it")
        error = self.assertRaises(NetGateError, self.build("tap:tap0").start)
        self.assertEqual(str(error), "vm qemu-net-n0: cannot use tap tap0: another program has it")

    def test_one_that_is_down_is_waited_for(self) -> None:
        self.tap.enabled = False
        gate = self.build("tap:tap0")
        gate.start()
        self.assertFalse(gate.uplink_up)
        self.tap.enabled = True
        self.reactor.advance(LONGEST_WAIT)
        self.assertTrue(gate.uplink_up)

    def test_one_that_does_not_exist_is_not_made(self) -> None:
        error = self.assertRaises(NetGateError, TapEnd, "ftd-no-such-tap")
        self.assertIn("ip tuntap add dev ftd-no-such-tap mode tap", str(error))

    def test_a_name_that_is_too_long(self) -> None:
        self.assertIn("more than 15 bytes", str(self.assertRaises(NetGateError, TapEnd, "x" * 16)))


class PeerTests(GateCase):
    """A peer at a unix socket."""

    def test_one_that_comes_back_gets_whole_frames_from_where_it_left(self) -> None:
        gate = self.started(act=NetGate.open)
        self.outside.window = 64 + 30
        self.says(*_FRAMES)
        second = FakeEnd()
        self.reactor.hang_up(self.outside)
        self.assertFalse(gate.uplink_up)
        self.says(*numbered(10, 2))
        self.sockets.answering["/up"] = [second]
        self.reactor.advance(LONGEST_WAIT)
        self.assertEqual(second.frames(), numbered(1, 11))
        self.assertEqual((gate.passed_out, gate.dropped), (12, 0))

    def test_half_a_frame_from_one_that_went_is_forgotten(self) -> None:
        self.started(act=NetGate.open)
        self.outside.incoming += framed(*_FRAMES)[:-5]
        self.outside.has_ended = True
        second = FakeEnd()
        self.sockets.answering["/up"] = [second]
        self.reactor.turn()
        self.reactor.advance(LONGEST_WAIT)
        second.incoming += framed(b"next")
        self.reactor.turn()
        self.assertEqual(self.guest.frames(), [*_FRAMES[:-1], b"next"])

    def test_an_error_while_sending_is_a_loss_too(self) -> None:
        gate = self.started()
        self.says(*_FRAMES)
        self.outside.error = BrokenPipeError(errno.EPIPE, "Broken pipe")
        gate.release(gate.seal())
        self.assertIn("the connection at /up has ended: Broken pipe", gate.why_down)
        self.assertEqual(gate.held_frames, 10)

    def test_one_that_is_not_there_yet_is_no_error(self) -> None:
        gate = self.build()
        gate.start()
        self.assertIn("cannot connect to /up", gate.why_down)
        self.sockets.answering["/up"] = [self.outside]
        self.reactor.advance(LONGEST_WAIT)
        self.assertTrue(gate.uplink_up)
