"""A VM's pair from its first checkpoint to a take-over and back, with the link broken at every point on the way."""

from __future__ import annotations

from ftd.errors import NotInState
from ftd.status import LinkState, VmState, to_json
from ftd.test.vm.linked_case import LinkedCase
from ftd.test.vm.primary_case import DEAD_TIME
from ftd.test.vm.primary_world import ModelGates
from ftd.vm.errors import VmError


class LifeTests(LinkedCase):
    """Nothing goes wrong but hosts."""

    def test_the_standby_follows(self) -> None:
        self.protect()
        for page in (3, 5, 40):
            self.write(page)
            self.assert_protects()
            self.assertEqual(self.ram_b()[page, 0], self.guest.ram[page, 0])

    def test_one_checkpoint_is_on_its_way_whatever_the_window_is(self) -> None:
        self.protect(window=8)
        assert self.pair is not None
        self.assertEqual(self.pair.hello().window, 1)

    def test_what_the_api_shows(self) -> None:
        self.protect()
        self.next_checkpoint()
        assert self.pair is not None and self.secondary is not None
        primary, standby = to_json(self.pair.status()), to_json(self.secondary.status())
        self.assertEqual((primary["vm"]["status"], standby["vm"]["status"]), ("protected", "protected"))
        self.assertEqual(primary["vm"]["generation"], standby["vm"]["generation"])
        self.assertEqual(primary["vm"]["checkpoint"], standby["vm"]["checkpoint"])
        self.assertEqual((primary["link_state"], standby["link_state"]), ("up", "up"))
        self.assertGreater(primary["vm"]["checkpoint_bytes"], 0)
        self.assertEqual(primary["last_committed"]["number"], primary["vm"]["checkpoint"])

    def test_every_change_of_status_is_an_event(self) -> None:
        self.protect()
        _, events = self.bus.since(0)
        states: list[str] = []
        for event in events:
            body = event.body() if callable(event.body) else event.body
            if event.kind == "pair" and (not states or states[-1] != body["vm"]["status"]):
                states.append(body["vm"]["status"])
        self.assertEqual(states, ["unprotected", "syncing", "protected"])

    def test_host_a_dies_and_host_b_takes_over(self) -> None:
        self.protect()
        for _ in range(5):
            self.write(9)
            self.assert_protects()
        self.say()
        self.kill_host_a()
        self.promote()
        self.assert_taken_over()
        assert self.secondary is not None
        self.assertIs(self.secondary.status().vm.status, VmState.PROMOTED)  # type: ignore[union-attr]

    def test_promote_is_refused_while_the_primary_is_up(self) -> None:
        self.protect()
        assert self.secondary is not None
        self.assertIn("the primary is up", self.refusal(NotInState, self.secondary.promote(False)))
        self.assert_protects()

    def test_promote_with_force_fences_the_primary(self) -> None:
        self.protect()
        self.next_checkpoint()
        frame = self.say()
        self.promote(force=True)
        self.until(lambda: self.told[-1][0] is VmState.FENCED)
        self.assert_state(VmState.FENCED, "host-b has taken over")
        self.assertNotEqual(self.qemu.run_state, "running")
        self.assertFalse(self.was_seen(frame) and not self.standby.covers(frame))
        self.assert_taken_over()
        self.guest_stands_still = True
        assert self.pair is not None
        self.assertIs(self.pair.link_state, LinkState.DOWN)
        self.assertIn("is fenced and does not dial", self.refusal(NotInState, self.pair.reset))

    def test_host_a_comes_back_and_is_fenced(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.kill_host_a()
        self.promote()
        self.host_a_is_back()
        self.until(lambda: self.told[-1][0] is VmState.FENCED)
        self.assertEqual(self.qemu.run_state, "paused")
        self.assertEqual([frame for frame in self.gates.seen if frame.pid == self.guest.pid], [])
        self.guest_stands_still = True

    def test_the_primary_stands_down_and_the_standby_takes_over(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.write(9)
        frame = self.say()
        assert self.pair is not None
        demoting = self.pair.demote()
        self.pass_time(0.2)
        self.successResultOf(demoting)
        self.assertTrue(self.was_seen(frame))
        self.guest_stands_still = True
        self.promote()
        self.assert_taken_over()
        self.assertTrue((self.ram_b() == self.guest.ram).all(), "nothing is lost")

    def test_there_and_back_again(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.promote(force=True)
        self.until(lambda: self.told[-1][0] is VmState.FENCED)
        assert self.secondary is not None and self.pair is not None
        demoting = self.secondary.demote()
        self.pass_time(0.2)
        self.successResultOf(demoting)
        self.assertTrue(self.qemu_b.is_dead)
        self.new_qemu_b()
        self.pass_time(1.0)
        going_on = self.pair.promote(True)
        self.pass_time(0.2)
        self.successResultOf(going_on)
        self.until_protected()
        self.assert_protects()

    def test_the_primarys_qemu_dies(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.say()
        self.kill_qemu()
        self.pass_time(0.5)
        assert self.pair is not None
        self.assert_state(VmState.UNPROTECTED, "can be promoted")
        self.promote()
        self.assert_taken_over()

    def test_the_primarys_qemu_is_started_again(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.say()
        self.kill_qemu()
        self.pass_time(0.5)
        self.new_qemu(4343)
        self.pass_time(1.0)
        self.until_protected()
        self.assert_protects()
        self.assertEqual(self.ram_b()[0, 1], 4343)

    def test_manual_checkpoints(self) -> None:
        self.protect(qemu_interval=0.0)
        assert self.pair is not None
        frame = self.say()
        id = self.successResultOf(self.pair.begin())
        committing = self.pair.commit()
        self.deliver()
        self.assertEqual(self.successResultOf(committing).id, id)
        self.assertTrue(self.was_seen(frame))
        self.successResultOf(self.pair.begin())
        self.pair.cancel()
        self.deliver()
        self.assertEqual(self.held()[1], 2)

    def test_heartbeats_between_checkpoints_do_not_get_in_their_way(self) -> None:
        self.protect(qemu_interval=0.7)
        for _ in range(5):
            self.assert_protects()
        assert self.pair is not None
        self.assertGreater(self.pair.heartbeats, 0)


class RestartTests(LinkedCase):
    """ftd is killed on either side, or the standby's QEMU."""

    def test_of_the_primary(self) -> None:
        self.protect()
        self.next_checkpoint()
        generation = self.held()[0]
        frame = self.say()
        self.crash()
        self.start()
        self.until_protected()
        self.assertNotEqual(self.held()[0], generation)
        self.assert_protects()
        self.assertEqual(self.gates.seen[0].number, frame.number + 1)

    def test_of_the_standby(self) -> None:
        self.protect()
        self.next_checkpoint()
        generation, number = self.held()
        frame = self.say()
        self.crash_b()
        self.pass_time(0.2)
        self.start_b()
        self.until_protected()
        self.until(lambda: self.was_seen(frame))
        self.assertEqual(self.held()[0], generation, "it has kept what it had")
        self.assertGreater(self.held()[1], number)
        self.assert_protects()

    def test_of_the_standby_after_dead_time(self) -> None:
        self.protect()
        self.next_checkpoint()
        generation = self.held()[0]
        frame = self.say()
        self.crash_b()
        self.pass_time(DEAD_TIME + 0.5)
        self.assert_state(VmState.UNPROTECTED, "refused")
        self.assertTrue(self.was_seen(frame))
        self.start_b()
        self.until_protected()
        self.assertEqual(self.held()[0], generation)
        self.assert_protects()

    def test_of_a_promoted_standby(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.kill_host_a()
        self.promote()
        self.crash_b()
        self.start_b()
        assert self.secondary is not None
        self.pass_time(0.5)
        self.assertEqual(self.qemu_b.run_state, "running")
        self.host_a_is_back()
        self.until(lambda: self.told[-1][0] is VmState.FENCED)
        self.guest_stands_still = True

    def test_of_the_standbys_qemu(self) -> None:
        self.protect()
        self.next_checkpoint()
        frame = self.say()
        self.kill_qemu_b()
        self.pass_time(0.3)
        assert self.pair is not None
        self.assertIsNot(self.pair.link_state, LinkState.UP, "it could not take over")
        self.new_qemu_b()
        self.until_protected()
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()

    def test_of_the_standbys_host(self) -> None:
        self.protect()
        self.next_checkpoint()
        frame = self.say()
        generation = self.held()[0]
        self.kill_qemu_b()
        self.crash_b()
        (self.root / "ram-b").unlink()
        for file in (self.root / "staging").iterdir():
            file.unlink()
        self.new_qemu_b()
        self.start_b()
        self.until_protected()
        self.assertNotEqual(self.held()[0], generation)
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()


class RefusedTests(LinkedCase):
    """The standby does not have what the primary thinks it has."""

    def test_a_wrong_base_is_answered_with_a_full_checkpoint(self) -> None:
        self.protect()
        self.next_checkpoint()
        assert self.secondary is not None and self.pair is not None
        generation = self.held()[0]
        frame = self.say()
        self.secondary._standby._store.forget()
        self.until(lambda: self.held()[0] not in ("", generation))
        self.assertEqual(self.pair.status().transactions_nacked, 1)
        self.until_protected()
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()

    def test_a_gate_that_cannot_be_set_up_leaves_nothing(self) -> None:
        def refuse(_: object) -> None:
            raise VmError("the tap is busy")

        patched = self.patch(ModelGates, "start", refuse)
        self.assertRaises(self.failureException, self.start_b)
        patched.restore()
        # Its address is free again.
        self.start_b()

    def test_another_vm(self) -> None:
        self.qemu_b._uuid = "22222222-2222-3333-4444-555555555555"
        self.start_b()
        vm = self.start()
        self.pass_time(3.0, 0.05)
        self.assertIs(vm.state, VmState.UNPROTECTED)
        self.assertEqual(self.held(), ("", 0))
        self.assertEqual(self.qemu.run_state, "running")
        self.assertTrue(self.was_seen(self.say()))


class LossTests(LinkedCase):
    """The link breaks at every point of a transaction."""

    def test_everywhere(self) -> None:
        """The VM is protected again with the next session, and each page and frame comes through."""
        self.protect()
        self.next_checkpoint()
        for turn, (of_ack, at) in enumerate(self._points()):
            self._lose(of_ack, at, clean=bool(turn % 2))
            frame = self.say() if self.qemu.run_state == "running" else None
            self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
            self.assert_protects()
            self.assertEqual(self.ram_b()[9, 0], self.guest.ram[9, 0], (of_ack, at))
            self.assertTrue(frame is None or self.was_seen(frame))

    def test_everywhere_and_the_host_dies(self) -> None:
        """Whatever was seen, the VM on host B knows of it."""
        for number, (of_ack, at) in enumerate(self._points(coarse=True)):
            self.protect()
            self.next_checkpoint()
            self._lose(of_ack, at, clean=bool(number % 2))
            self.kill_host_a()
            self.promote()
            self.assert_taken_over()
            self._anew()

    def _anew(self) -> None:
        """Two hosts that know nothing."""
        self.end_b()
        self.kill_qemu_b()
        for path in (self.root / "ram-b", *(self.root / "staging").iterdir(), *self.state_b.iterdir()):
            if path.is_file():
                path.unlink()
        self.loaded.clear()
        self.gates.seen.clear()
        self._pids += 1
        self.new_qemu(self._pids)
        self.new_qemu_b()

    def _points(self, *, coarse: bool = False) -> list[tuple[bool, int]]:
        """In the ACK or not, and after how many bytes from the next one on: headers, records, pages, COMMIT, ACK."""
        sizes = (0, 40, 300, 4000, 8000, 9500) if coarse else (*range(0, 120, 17), *range(200, 14000, 977))
        acks = (0, 5, 40) if coarse else range(0, 44, 4)
        return [(False, at) for at in sizes] + [(True, at) for at in acks]

    def _lose(self, of_ack: bool, at: int, *, clean: bool) -> None:
        self.write(9)
        self.say()
        flow = self.link.to_client if of_ack else self.link.to_server
        flow.cut(len(flow.delivered) + at, clean=clean)
        link = self.link
        self.until(lambda: link.is_over)


class HangingTests(LinkedCase):
    """The standby says nothing any more, or the network swallows everything."""

    def test_the_network_is_stuck(self) -> None:
        self.protect()
        self.next_checkpoint()
        frame = self.say()
        self.link.to_server.is_stalled = self.link.to_client.is_stalled = True
        self.network.is_silent = True
        self.pass_time(DEAD_TIME - 0.3)
        self.assertFalse(self.was_seen(frame))
        self.pass_time(1.5)
        self.assertTrue(self.was_seen(frame))
        self.assert_state(VmState.UNPROTECTED, "the standby is lost")
        self.assertEqual(self.qemu.run_state, "running")
        self.link.to_server.is_stalled = self.link.to_client.is_stalled = False
        self.network.is_silent = False
        self.pass_time(5.0, 0.05)
        self.until_protected()
        self.assert_protects()

    def test_it_does_not_take_what_it_is_sent(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.link.to_server.is_stalled = True
        self.write(*range(20, 60))
        self.pass_time(DEAD_TIME / 2)
        self.assertEqual(self.qemu.run_state, "running", "the guest does not wait for the network")
        self.link.to_server.is_stalled = False
        self.assert_protects()

    def test_stop_while_it_is_stuck(self) -> None:
        self.protect()
        self.next_checkpoint()
        self.link.to_client.is_stalled = True
        self.pass_time(0.3)
        assert self.pair is not None
        stopping = self.pair.stop()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assert_stopped(stopping)
        self.network.links[-1].to_client.is_stalled = False
