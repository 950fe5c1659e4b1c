"""The 13 trace events: their names and forms, their switches, and what they cost while they are off."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import EventBus
from ftd.trace import TRACE_EVENTS, PairTrace, log_line

#: Every event of the seed's ``trace-events`` file, with arguments, as QEMU's log shows it.
LOG_LINES: dict[str, tuple[dict[str, object], str]] = {
    "ft_trans_realloc": ({"old_size": 10, "new_size": 20}, "increasing buffer from 10 by 20"),
    "ft_trans_append": ({"size": 5}, "buffering 5 bytes"),
    "ft_trans_flush": ({"size": 5, "req": 9}, "flushed 5 of 9 bytes"),
    "ft_trans_send_header": ({"cmd": 2}, "send header 2"),
    "ft_trans_recv_header": ({"cmd": 6}, "recv header 6"),
    "ft_trans_put_buffer": ({"size": 5, "pos": 7}, "putting 5 bytes at 7"),
    "ft_trans_recv_payload": ({"len": 5, "hdr": 9, "total": 30}, "recv 5 of 9 total 30"),
    "ft_trans_close": ({}, "closing"),
    "ft_trans_freeze_output": ({}, "backend not ready, freezing output"),
    "ft_trans_freeze_input": ({}, "backend not ready, freezing input"),
    "ft_trans_put_ready": ({}, "file is ready to put"),
    "ft_trans_get_ready": ({}, "file is ready to get"),
    "ft_trans_cb": ({"cb": "put_ready"}, "callback put_ready"),
}


class FormTests(SynchronousTestCase):
    def test_there_are_these_thirteen(self) -> None:
        self.assertEqual(set(TRACE_EVENTS), set(LOG_LINES))
        self.assertEqual(len(TRACE_EVENTS), 13)

    def test_each_has_its_arguments_in_order(self) -> None:
        for name, (args, _) in LOG_LINES.items():
            self.assertEqual(TRACE_EVENTS[name].arguments, tuple(args), name)

    def test_each_has_the_form_of_qemus_log(self) -> None:
        for name, (args, text) in LOG_LINES.items():
            self.assertEqual(log_line(name, args), f"{name} {text}")


class PairTraceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bus = EventBus(lambda: 0.0)
        self.trace = PairTrace("demo", self.bus)

    def on(self) -> set[str]:
        """The events that are on, as the data path sees it."""
        return {name for name in TRACE_EVENTS if getattr(self.trace, name) is not None}

    def test_all_are_off_until_somebody_asks(self) -> None:
        self.assertEqual(self.on(), set())
        self.assertEqual(self.trace.switches(), dict.fromkeys(TRACE_EVENTS, False))

    def test_one_attribute_is_all_that_an_event_costs_while_it_is_off(self) -> None:
        for name in TRACE_EVENTS:
            self.assertIsNone(getattr(self.trace, name))
            # A slot: neither a property nor a lookup in a dictionary.
            self.assertEqual(type(getattr(PairTrace, name)).__name__, "member_descriptor")
        self.assertFalse(hasattr(self.trace, "__dict__"))

    def test_the_configuration_has_some_on_from_the_start(self) -> None:
        self.trace = PairTrace("demo", self.bus, ["ft_trans_cb", "ft_trans_flush"])
        self.assertEqual(self.on(), {"ft_trans_cb", "ft_trans_flush"})
        self.assertEqual([name for name, on in self.trace.switches().items() if on], ["ft_trans_flush", "ft_trans_cb"])

    def test_an_event_that_is_on_is_published_with_its_arguments(self) -> None:
        self.trace.switch(dict.fromkeys(TRACE_EVENTS, True))
        for name, (args, _) in LOG_LINES.items():
            getattr(self.trace, name)(*args.values())
        _, events = self.bus.since(0)
        self.assertEqual(
            [(event.kind, event.pair, event.name, event.body) for event in events],
            [("trace", "demo", name, {"name": name, "args": args}) for name, (args, _) in LOG_LINES.items()],
        )

    def test_the_wrong_number_of_arguments_is_an_error(self) -> None:
        self.trace.switch({"ft_trans_flush": True})
        assert self.trace.ft_trans_flush is not None
        self.assertRaises(ValueError, self.trace.ft_trans_flush, 1)

    def test_switches_change_what_they_name_and_nothing_else(self) -> None:
        self.trace.switch({"ft_trans_cb": True, "ft_trans_flush": True})
        self.trace.switch({"ft_trans_cb": False, "ft_trans_append": False})
        self.assertEqual(self.on(), {"ft_trans_flush"})

    def test_an_unknown_name_changes_nothing(self) -> None:
        self.assertRaises(KeyError, self.trace.switch, {"ft_trans_cb": True, "ft_trans_nope": True})
        self.assertRaises(KeyError, self.trace.watch, ["ft_trans_cb", "ft_trans_nope"])
        self.assertEqual(self.on(), set())
        self.trace.switch({"ft_trans_cb": False})
        self.assertEqual(self.on(), set())

    def test_a_watcher_has_events_on_for_as_long_as_it_stays(self) -> None:
        stop = self.trace.watch(["ft_trans_cb", "ft_trans_flush"])
        self.assertEqual(self.on(), {"ft_trans_cb", "ft_trans_flush"})
        self.assertEqual(self.trace.switches(), dict.fromkeys(TRACE_EVENTS, False))
        stop()
        self.assertEqual(self.on(), set())

    def test_watchers_do_not_disturb_each_other(self) -> None:
        first, second = self.trace.watch(["ft_trans_cb"]), self.trace.watch(["ft_trans_cb", "ft_trans_flush"])
        first()
        self.assertEqual(self.on(), {"ft_trans_cb", "ft_trans_flush"})
        second()
        self.assertEqual(self.on(), set())

    def test_a_watcher_that_names_an_event_twice_has_it_off_in_the_end(self) -> None:
        self.trace.watch(["ft_trans_cb", "ft_trans_cb"])()
        self.assertEqual(self.on(), set())

    def test_switches_and_watchers_do_not_disturb_each_other(self) -> None:
        self.trace.switch({"ft_trans_cb": True})
        stop = self.trace.watch(["ft_trans_cb", "ft_trans_flush"])
        self.trace.switch({"ft_trans_cb": False, "ft_trans_flush": True})
        self.assertEqual(self.on(), {"ft_trans_cb", "ft_trans_flush"})
        stop()
        self.assertEqual(self.on(), {"ft_trans_flush"})

    def test_another_change_leaves_the_function_that_somebody_may_hold(self) -> None:
        self.trace.switch({"ft_trans_cb": True})
        emit = self.trace.ft_trans_cb
        self.trace.watch(["ft_trans_cb"])
        self.assertIs(self.trace.ft_trans_cb, emit)
