"""The QMP client: what it makes of a stream, who gets which answer, and how a connection ends."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.testing.fake_qmp import FakeQemu
from ftd.testing.transport import Link
from ftd.vm.errors import QmpClosed, QmpError, QmpRefused, QmpTimeout
from ftd.vm.qmp import COMMANDS_LIMIT, MESSAGE_LIMIT, NESTING_LIMIT, MessageReader, Qmp, QmpEvent

LIMIT = 5.0

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_MESSAGES = st.lists(st.dictionaries(st.text(), _VALUES, max_size=4), max_size=5)


class MessageReaderTests(SynchronousTestCase):
    def refused(self, *pieces: bytes) -> str:
        """What is wrong with a stream."""
        reader = MessageReader()
        error = self.assertRaises(QmpError, lambda: [list(reader.feed(piece)) for piece in pieces])
        return str(error)

    @examples(50)
    @given(_MESSAGES, st.sampled_from([None, 4]), st.sampled_from([b"", b"\r\n", b" \n\t"]), st.data())
    def test_messages_come_out_as_they_went_in_however_they_are_cut(
        self, messages: list[dict[str, Any]], indent: int | None, between: bytes, data: st.DataObject
    ) -> None:
        ascii_only = data.draw(st.booleans())
        stream = between.join(
            json.dumps(message, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            for message in messages
            if ascii_only or not _has_surrogates(message)
        )
        expected = [message for message in messages if ascii_only or not _has_surrogates(message)]
        reader = MessageReader()
        got = []
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            got += list(reader.feed(stream[:size]))
            stream = stream[size:]
        self.assertEqual(got, expected)

    @examples(100)
    @given(
        st.lists(st.binary(max_size=20) | st.sampled_from([b'{"', b'"}', b"\\", b"}", b"[", b'{"a":1}']), max_size=8)
    )
    def test_whatever_comes_is_messages_or_an_error(self, pieces: list[bytes]) -> None:
        reader = MessageReader()
        try:
            for piece in pieces:
                for message in reader.feed(piece):
                    self.assertIsInstance(message, dict)
        except QmpError:
            pass

    def test_a_brace_in_a_string_is_no_brace(self) -> None:
        reader = MessageReader()
        self.assertEqual(list(reader.feed(rb'{"a": "}\"}\\"}')), [{"a": '}"}\\'}])

    def test_what_follows_a_backslash_may_come_later(self) -> None:
        reader = MessageReader()
        self.assertEqual(list(reader.feed(b'{"a": "\\')), [])
        self.assertEqual(list(reader.feed(b'"}"}')), [{"a": '"}'}])

    def test_what_does_not_start_like_qmp_is_named(self) -> None:
        self.assertIn("'QEMU 7.2.22 monitor '", self.refused(b"QEMU 7.2.22 monitor - type 'help'"))

    def test_a_message_without_an_end_is_not_kept(self) -> None:
        self.assertIn(str(MESSAGE_LIMIT), self.refused(b'{"a": "', b"x" * MESSAGE_LIMIT))

    def test_a_message_over_the_limit_is_refused_also_when_it_comes_in_one_piece(self) -> None:
        self.assertIn(str(MESSAGE_LIMIT), self.refused(b'{"a": "' + b"x" * MESSAGE_LIMIT + b'"}'))

    def test_many_messages_may_be_longer_than_one(self) -> None:
        message = b'{"a": "' + b"x" * (MESSAGE_LIMIT // 2) + b'"}\n'
        self.assertEqual(len(list(MessageReader().feed(message * 4))), 4)

    def test_a_message_that_is_too_deep_is_refused(self) -> None:
        self.assertIn(str(NESTING_LIMIT), self.refused(b'{"a": ' + b"[" * NESTING_LIMIT))

    def test_what_is_no_json_is_refused(self) -> None:
        self.assertIn("not JSON", self.refused(b"{nonsense}"))
        self.assertIn("not JSON", self.refused(b'{"a": "\xff"}'))


def _has_surrogates(message: object) -> bool:
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


class QmpTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.qemu = FakeQemu(self.clock, limit=LIMIT)
        self.qmp = self.qemu.connect()
        self.closed: list[str] = []
        self.events: list[QmpEvent] = []
        self.qmp.when_closed(self.closed.append)


class CommandTests(QmpTestCase):
    def test_the_greeting_tells_who_it_is(self) -> None:
        self.assertTrue(self.qmp.is_open)
        self.assertEqual(self.qmp.version, "7.2.22")
        self.assertEqual(self.qmp.greeting["capabilities"], ["oob"])
        self.assertEqual(self.qmp.peer_pid, 4242)

    def test_a_command_is_answered(self) -> None:
        stopped = self.qmp.execute("stop")
        self.assertNoResult(stopped)
        self.qemu.pump()
        self.assertEqual(self.successResultOf(stopped), {})
        self.assertEqual(self.qemu.commands, [("stop", {})])

    def test_arguments_arrive(self) -> None:
        found = self.qmp.execute("qom-get", {"path": "/machine", "property": "type"})
        self.qemu.pump()
        self.assertEqual(self.successResultOf(found), "pc-i440fx-7.2-machine")

    def test_a_command_is_one_line(self) -> None:
        self.qemu.replies["a"] = None
        self.qmp.execute("a", {"text": "two\nlines ⛵"})
        self.qemu.pump()
        said = bytes(self.qemu.links[0].to_server.delivered)
        self.assertEqual(said.count(b"\n"), 2)
        self.assertTrue(said.isascii())
        self.assertEqual(self.qemu.named("a"), [{"text": "two\nlines ⛵"}])

    def test_a_refusal_names_the_command_and_the_class(self) -> None:
        refused = self.qmp.execute("dance")
        self.qemu.pump()
        error = self.failureResultOf(refused, QmpRefused).value
        self.assertEqual(str(error), "QEMU refused dance: The command dance has not been found")
        self.assertEqual((error.command, error.error_class), ("dance", "CommandNotFound"))
        self.assertTrue(self.qmp.is_open)

    def test_answers_may_come_in_any_order(self) -> None:
        self.qemu.hold("query-uuid")
        uuid, status = self.qmp.execute("query-uuid"), self.qmp.execute("query-status")
        self.qemu.pump()
        self.assertEqual(self.successResultOf(status)["status"], "running")
        self.assertNoResult(uuid)
        self.qemu.release()
        self.qemu.pump()
        self.assertIn("UUID", self.successResultOf(uuid))

    def test_a_command_in_time_stops_the_clock(self) -> None:
        self.qmp.execute("stop")
        self.qemu.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_command_that_is_too_slow_ends_the_connection(self) -> None:
        self.qemu.hold("stop", "cont")
        stopped, resumed = self.qmp.execute("stop", limit=1.0), self.qmp.execute("cont")
        self.qemu.pump()
        self.clock.advance(1.0)
        self.assertIn("stop within 1 s", str(self.failureResultOf(stopped, QmpTimeout).value))
        self.assertIn("stop within 1 s", str(self.failureResultOf(resumed, QmpClosed).value))
        self.assertEqual(len(self.closed), 1)
        self.assertTrue(self.qemu.links[0].client.is_aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.qemu.pump()
        self.assertEqual(len(self.closed), 1)

    def test_a_command_has_the_connections_limit_where_none_is_given(self) -> None:
        self.qemu.is_silent = True
        stopped = self.qmp.execute("stop")
        self.clock.advance(LIMIT - 0.01)
        self.assertNoResult(stopped)
        self.clock.advance(0.01)
        self.failureResultOf(stopped, QmpTimeout)

    def test_an_answer_to_who_has_turned_away_hurts_nobody(self) -> None:
        stopped = self.qmp.execute("stop")
        stopped.cancel()
        self.failureResultOf(stopped, CancelledError)
        self.qemu.pump()
        self.assertTrue(self.qmp.is_open)

    def test_no_more_commands_wait_than_may(self) -> None:
        self.qemu.is_silent = True
        waiting = [self.qmp.execute("stop") for _ in range(COMMANDS_LIMIT)]
        self.assertIn(str(COMMANDS_LIMIT), str(self.failureResultOf(self.qmp.execute("stop"), QmpError).value))
        self.qmp.hang_up()
        for each in waiting:
            self.failureResultOf(each, QmpClosed)

    def test_before_the_negotiation_there_are_no_commands(self) -> None:
        qmp = Qmp(self.clock, limit=LIMIT)
        self.assertIn("negotiated", str(self.failureResultOf(qmp.execute("stop"), QmpClosed).value))


class EndTests(QmpTestCase):
    def test_everybody_hears_that_qemu_has_died(self) -> None:
        self.qemu.is_silent = True
        stopped = self.qmp.execute("stop")
        event = self.qmp.wait_for(lambda _: True, 10.0)
        self.qemu.die()
        self.qemu.pump()
        self.failureResultOf(stopped, QmpClosed)
        self.failureResultOf(event, QmpClosed)
        self.assertIn("has ended", self.closed[0])
        self.assertFalse(self.qmp.is_open)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_the_end_nothing_is_done_and_the_reason_is_told(self) -> None:
        self.qmp.hang_up("enough")
        self.assertIn("enough", str(self.failureResultOf(self.qmp.execute("stop"), QmpClosed).value))
        self.assertIn("enough", str(self.failureResultOf(self.qmp.wait_for(lambda _: True, 1.0), QmpClosed).value))
        late: list[str] = []
        self.qmp.when_closed(late.append)
        self.assertEqual(self.closed + late, ["enough", "enough"])

    def test_what_waits_for_commands_hears_before_the_owner_does(self) -> None:
        self.qemu.is_silent = True
        self.qmp.execute("stop").addErrback(lambda _: self.closed.append("the command"))
        self.qmp.hang_up("enough")
        self.assertEqual(self.closed, ["the command", "enough"])

    def test_quit_is_answered_before_the_end(self) -> None:
        quitting = self.qmp.execute("quit")
        self.qemu.pump()
        self.assertEqual(self.successResultOf(quitting), {})
        self.assertEqual(len(self.closed), 1)

    def test_nothing_is_heard_after_the_end(self) -> None:
        self.qmp.listen(self.events.append)
        self.qmp.hang_up()
        self.qmp.dataReceived(b'{"event": "STOP"}')
        self.assertEqual(self.events, [])

    def test_of_one_read_nothing_is_heard_after_the_end(self) -> None:
        self.qmp.listen(self.events.append)
        self.qmp.listen(lambda _: self.qmp.hang_up())
        self.qmp.dataReceived(b'{"event": "STOP"}{"event": "RESUME"}')
        self.assertEqual([event.name for event in self.events], ["STOP"])


class EventTests(QmpTestCase):
    def test_events_are_told_until_nobody_listens(self) -> None:
        stop = self.qmp.listen(self.events.append)
        self.qemu.emit("MIGRATION", {"status": "active"})
        self.qemu.pump()
        stop()
        stop()
        self.qemu.emit("RESUME")
        self.qemu.pump()
        self.assertEqual(self.events, [QmpEvent("MIGRATION", {"status": "active"}, 0.0)])

    def test_an_event_comes_with_its_time(self) -> None:
        self.qmp.listen(self.events.append)
        self.qmp.dataReceived(b'{"timestamp": {"seconds": 12, "microseconds": 500000}, "event": "STOP"}')
        self.assertEqual(self.events, [QmpEvent("STOP", {}, 12.5)])

    def test_a_listener_that_fails_takes_nothing_from_the_others(self) -> None:
        def fail(_: QmpEvent) -> None:
            raise ValueError("on purpose")

        self.qmp.listen(fail)
        self.qmp.listen(self.events.append)
        self.qemu.emit("STOP")
        self.qemu.pump()
        self.assertEqual(len(self.events), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_the_event_that_is_waited_for(self) -> None:
        resumed = self.qmp.wait_for(lambda event: event.name == "RESUME", 1.0)
        self.qemu.emit("STOP")
        self.qemu.pump()
        self.assertNoResult(resumed)
        self.qemu.emit("RESUME")
        self.qemu.emit("RESUME")
        self.qemu.pump()
        self.assertEqual(self.successResultOf(resumed).name, "RESUME")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_event_that_does_not_come_leaves_the_connection(self) -> None:
        resumed = self.qmp.wait_for(lambda _: True, 1.0)
        self.clock.advance(1.0)
        self.failureResultOf(resumed, QmpTimeout)
        self.assertTrue(self.qmp.is_open)
        self.qemu.emit("RESUME")
        self.qemu.pump()

    def test_who_waits_for_an_event_may_turn_away(self) -> None:
        for _ in range(200):
            resumed = self.qmp.wait_for(lambda _: True, 1.0)
            resumed.cancel()
            self.failureResultOf(resumed, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StrangePeerTests(SynchronousTestCase):
    """Peers that do not speak QMP, or not now."""

    GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}}, "capabilities": []}}\r\n'

    def setUp(self) -> None:
        self.clock = Clock()
        self.closed: list[str] = []
        self.ready: list[Qmp] = []
        self.qmp = Qmp(self.clock, limit=LIMIT, ready=self.ready.append)
        self.qmp.when_closed(self.closed.append)
        self.link = Link(self.qmp, Protocol())

    def say(self, data: bytes) -> None:
        """Let the peer say something."""
        self.link.server.write(data)
        self.link.pump()

    def negotiate(self) -> None:
        """As a QEMU does."""
        self.say(self.GREETING)
        self.say(b'{"return": {}, "id": 1}')

    def test_it_is_ready_when_the_negotiation_is_done(self) -> None:
        self.say(self.GREETING)
        self.assertEqual(json.loads(self.link.to_server.delivered), {"execute": "qmp_capabilities", "id": 1})
        self.assertEqual((self.ready, self.qmp.is_open), ([], False))
        self.say(b'{"return": {}, "id": 1}')
        self.assertEqual((self.ready, self.qmp.version), ([self.qmp], "10.0.0"))

    def test_a_transport_that_does_not_tell_of_its_peer(self) -> None:
        self.negotiate()
        self.assertIsNone(self.qmp.peer_pid)

    def test_a_negotiation_that_fails_ends_it(self) -> None:
        self.say(self.GREETING)
        self.say(b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}')
        self.assertEqual(self.closed, ["QEMU refused qmp_capabilities: no"])
        self.assertEqual(self.ready, [])

    def test_a_negotiation_that_hangs_ends_it(self) -> None:
        self.say(self.GREETING)
        self.clock.advance(LIMIT)
        self.assertIn("qmp_capabilities within 5 s", self.closed[0])

    def test_what_is_no_qmp_ends_it(self) -> None:
        for nonsense, why in (
            (b"HTTP/1.1 400 Bad Request", "not QMP"),
            (b'{"a": 1}', "no QMP"),
            (b'{"QMP": {}}', "no version"),
            (b'{"event": 5}', "no QMP"),
            (b'{"event": "A", "data": 5}', "no QMP"),
            (b'{"event": "A", "timestamp": 5}', "no QMP"),
            (b'{"return": {}}', "not asked"),
            (b'{"return": {}, "id": 77}', "not asked"),
            (b'{"return": {}, "id": [1]}', "not asked"),
            (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}', "not asked"),
        ):
            self.setUp()
            self.say(nonsense)
            self.assertEqual(len(self.closed), 1, nonsense)
            self.assertIn(why, self.closed[0])
            self.assertTrue(self.link.client.is_aborted)

    def test_a_greeting_that_comes_too_late_is_not_answered(self) -> None:
        self.qmp.hang_up()
        self.qmp.dataReceived(self.GREETING)
        self.assertEqual((self.qmp.greeting, self.clock.getDelayedCalls()), ({}, []))

    def test_a_second_greeting_is_no_qmp(self) -> None:
        self.negotiate()
        self.say(self.GREETING)
        self.assertEqual(len(self.closed), 1)

    def test_an_error_that_says_nothing_is_an_error_all_the_same(self) -> None:
        self.negotiate()
        refused = self.qmp.execute("stop")
        self.say(b'{"error": null, "id": 2}')
        self.assertEqual(self.failureResultOf(refused, QmpRefused).value.error_class, "GenericError")
