"""``ftdctl``: pairs, their switches, their trace events and their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import xxhash

from ftd.status import OpenTransaction, PairStatus
from ftd.test.api_case import NOW
from ftd.test.cli_case import CliTestCase
from ftd.trace import TRACE_EVENTS


class PairTests(CliTestCase):
    """pair, reset, rate-limit, transactions."""

    def test_show(self) -> None:
        """Every field by its name."""
        self.primary.show(transaction=OpenTransaction(id=3, seq=1, bytes=9))
        lines = self.ftdctl("pair", "show", "demo").lines
        self.assertEqual(len(lines), len(attrs.fields(PairStatus)))
        for line in (
            "name                    demo",
            "link_state              up",
            "transaction             id 3, seq 1, bytes 9",
            "rate_limit              yes",
            "generation              -",
        ):
            self.assertIn(line, lines)

    def test_show_json(self) -> None:
        """As the API has it."""
        self.assertEqual(self.ftdctl("pair", "show", "demo", "--json").json()["ft_mode"], self.primary.shown.ft_mode)

    def test_create(self) -> None:
        """With any key of a section."""
        printed = self.ftdctl(
            "pair", "create", "new", "--role", "primary", "--link", "unix:x", "-o", "peer=kemari", "-o", "trace = a=b"
        )
        self.assertEqual(printed.out, "pair new is created\n")
        self.assertEqual(self.daemon.created, [{"role": "primary", "link": "unix:x", "peer": "kemari", "trace": "a=b"}])

    def test_create_wrongly(self) -> None:
        """What is missing or cannot be is told before anything is asked."""
        good = ("pair", "create", "new", "--role", "primary", "--link", "unix:x")
        for arguments in (good[:5], (*good[:4], "third", *good[5:]), (*good, "-o", "peer"), (*good, "-o", "=x")):
            self.assertEqual(self.ftdctl(*arguments).code, 2, arguments)
        self.assertEqual(self.links, [])

    def test_delete(self) -> None:
        """It is gone."""
        self.assertEqual(self.ftdctl("pair", "delete", "demo").out, "pair demo is removed\n")
        self.assertNotIn("demo", self.daemon.all)

    def test_delete_configured(self) -> None:
        """Refused with the daemon's advice."""
        self.daemon.configured.add("demo")
        printed = self.ftdctl("pair", "delete", "demo")
        self.assertEqual((printed.code, "configuration file" in printed.err), (1, True))

    def test_reset(self) -> None:
        """Done, not finished."""
        printed = self.ftdctl("reset", "demo")
        self.assertEqual(printed.out, "the error of demo is cleared, and its link is being opened anew\n")
        self.assertEqual(self.primary.resets, 1)

    def test_rate_limit(self) -> None:
        """Shown, switched, and set in any unit."""
        for arguments, shown in (
            ((), "rate limit on, bandwidth unlimited\n"),
            (("off",), "rate limit off, bandwidth unlimited\n"),
            (("10MiB",), "rate limit on, bandwidth 10.0 MiB/s\n"),
            (("off",), "rate limit off, bandwidth 10.0 MiB/s\n"),
            (("0",), "rate limit off, bandwidth unlimited\n"),
            (("on",), "rate limit on, bandwidth unlimited\n"),
            (("5000",), "rate limit on, bandwidth 4.9 KiB/s\n"),
        ):
            self.assertEqual(self.ftdctl("rate-limit", "demo", *arguments).out, shown, arguments)
        self.assertEqual(self.ftdctl("rate-limit", "demo", "--json").json(), {"enabled": True, "bandwidth": 5000})

    def test_rate_limit_wrongly(self) -> None:
        """Says what is right."""
        printed = self.ftdctl("rate-limit", "demo", "fast")
        self.assertEqual(printed.code, 2)
        self.assertIn("or on, or off", " ".join(printed.usage.split()))

    def test_transactions(self) -> None:
        """One a line."""
        self.assertEqual(self.ftdctl("transactions", "demo").out, "no transaction yet\n")
        self.result(self.client.push("demo", b"state"))
        title, row = self.ftdctl("transactions", "demo").lines
        self.assertEqual(title.split(), ["BEGUN", "ID", "NUMBER", "SIZE", "TOOK", "FROZEN", "OUTCOME"])
        self.assertEqual(row.split()[2:], ["0", "1", "5", "B", "0", "ms", "0", "ms", "committed"])
        self.assertEqual(self.ftdctl("--json", "transactions", "demo").json()["transactions"][0]["bytes"], 5)


class TraceTests(CliTestCase):
    """trace."""

    def test_show(self) -> None:
        """All events, and whether they are on."""
        self.primary.trace.switch({"ft_trans_cb": True})
        lines = self.ftdctl("trace", "demo").lines
        self.assertEqual(len(lines), len(TRACE_EVENTS))
        self.assertIn("on   ft_trans_cb", lines)
        self.assertIn("off  ft_trans_flush", lines)

    def test_switch(self) -> None:
        """By whole names and short ones; the others stay."""
        self.primary.trace.switch({"ft_trans_cb": True, "ft_trans_close": True})
        self.ftdctl("trace", "demo", "--on", "flush,ft_trans_append", "--off", "cb")
        on = {name for name, is_on in self.primary.trace.switches().items() if is_on}
        self.assertEqual(on, {"ft_trans_flush", "ft_trans_append", "ft_trans_close"})
        self.assertTrue(all(self.ftdctl("trace", "demo", "--on", "all", "--json").json()["events"].values()))

    def test_wrongly(self) -> None:
        """Names that are none, and options that do not go together."""
        for arguments in (
            ("--on", "flash"),
            ("flush",),
            ("--timestamps",),
            ("--follow", "--on", "flush"),
            ("--follow", "flash"),
        ):
            self.assertEqual(self.ftdctl("trace", "demo", *arguments).code, 2, arguments)
        self.assertEqual(self.links, [])

    def emit(self) -> None:
        """Some events that are on."""
        trace = self.primary.trace
        if trace.ft_trans_send_header is not None:
            trace.ft_trans_send_header(2)
        if trace.ft_trans_freeze_output is not None:
            trace.ft_trans_freeze_output()
        self.pump()

    def test_follow(self) -> None:
        """In the form of QEMU's log, until interrupted, which turns them off again."""
        self.ftdctl("trace", "demo", "--follow")
        self.emit()
        self.assertEqual(
            self.printed(),
            ["ft_trans_send_header send header 2", "ft_trans_freeze_output backend not ready, freezing output"],
        )
        self.assertEqual(self.interrupt(), 130)
        self.assertIsNone(self.primary.trace.ft_trans_send_header)
        self.assertEqual((self.printed(), self.err.getvalue()), ([], ""))

    def test_follow_some(self) -> None:
        """Nothing else is turned on."""
        self.ftdctl("trace", "demo", "cb,send_header", "close", "--follow")
        self.assertIsNone(self.primary.trace.ft_trans_freeze_output)
        self.assertIsNotNone(self.primary.trace.ft_trans_close)
        self.emit()
        self.assertEqual(self.printed(), ["ft_trans_send_header send header 2"])

    def test_timestamps(self) -> None:
        """To the microsecond, in UTC."""
        self.ftdctl("trace", "demo", "send_header", "--follow", "--timestamps")
        self.clock.advance(0.25)
        self.emit()
        self.assertEqual(self.printed(), ["2023-11-14T22:13:20.250000Z ft_trans_send_header send header 2"])

    def test_json(self) -> None:
        """One object a line, ``sync`` among them."""
        self.ftdctl("trace", "demo", "send_header", "--follow", "--json")
        self.emit()
        sync, event = (json.loads(line) for line in self.printed())
        self.assertEqual(sync["event"], "sync")
        del event["id"]
        self.assertEqual(
            event, {"event": "trace", "pair": "demo", "time": NOW, "name": "ft_trans_send_header", "args": {"cmd": 2}}
        )

    def test_newer_event(self) -> None:
        """One that this program does not know is shown as it is."""
        self.ftdctl("trace", "demo", "--follow")
        self.bus.publish("trace", "demo", {"name": "ft_trans_cb", "args": {"other": 1}}, "ft_trans_cb")
        self.pump()
        self.assertEqual(self.printed(), ["ft_trans_cb {'other': 1}"])

    def test_control_characters(self) -> None:
        """What a daemon sends cannot take the terminal over."""
        self.ftdctl("trace", "demo", "--follow")
        self.bus.publish("trace", "demo", {"name": "ft_trans_cb", "args": {"cb": "\x1b[2J"}}, "ft_trans_cb")
        self.pump()
        self.assertEqual(self.printed(), ["ft_trans_cb callback \\x1b[2J"])

    def test_daemon_restarts(self) -> None:
        """Is told once on standard error, and followed by what comes then."""
        self.ftdctl("trace", "demo", "--follow")
        self.stop_server()
        for _ in range(3):
            self.pump(4)
        self.start_server()
        self.pump(8)
        self.emit()
        self.assertEqual(len(self.printed()), 2)
        self.assertEqual(
            self.err.getvalue().splitlines(),
            ["ftdctl: unix:/run/ftd.sock: the connection broke; trying again", "ftdctl: connected again"],
        )

    def test_lagging(self) -> None:
        """How much was missed is told."""
        self.ftdctl("trace", "demo", "--follow")
        self.stop_server()
        for _ in range(5000):
            self.bus.publish("trace", "demo", {"name": "ft_trans_cb", "args": {"cb": 1}}, "ft_trans_cb")
        self.start_server()
        self.pump(0.5)
        self.assertIn("ftdctl: 5000 events were missed: this reader is too slow\n", self.err.getvalue())


class CheckpointTests(CliTestCase):
    """checkpoints, fetch."""

    def test_list(self) -> None:
        """One a line."""
        self.assertEqual(self.ftdctl("checkpoints", "demo-standby").out, "no checkpoint yet\n")
        held = self.secondary.kept.add(b"state", NOW)
        title, row = self.ftdctl("checkpoints", "demo-standby").lines
        self.assertEqual(title.split(), ["NUMBER", "ID", "BYTES", "XXH3", "COMMITTED"])
        self.assertEqual(row.split()[:4], ["1", "0", "5", held.xxh3])
        rows = self.ftdctl("--json", "checkpoints", "demo-standby").json()["checkpoints"]
        self.assertEqual(rows[0]["xxh3"], held.xxh3)

    def test_fetch(self) -> None:
        """Into a file; the digest is shown."""
        self.secondary.kept.add(b"older", NOW)
        self.secondary.kept.add(b"state", NOW)
        path = self.mktemp()
        for which, number, data in (("latest", 2, b"state"), ("1", 1, b"older")):
            digest = xxhash.xxh3_64_hexdigest(data)
            printed = self.ftdctl("fetch", "demo-standby", which, "-o", path)
            self.assertEqual(printed.out, f"checkpoint {number} is in {path}: 5 B, xxh3 {digest}\n")
            self.assertEqual(Path(path).read_bytes(), data)
        printed = self.ftdctl("fetch", "demo-standby", "latest", "--output", path, "--json")
        self.assertEqual(printed.json()["number"], 2)

    def test_fetch_to_standard_output(self) -> None:
        """The bytes and nothing else; what there is to say goes to standard error."""
        self.secondary.kept.add(b"state", NOW)
        printed = self.ftdctl("fetch", "demo-standby", "latest", "-o", "-")
        self.assertEqual((printed.code, printed.usage, printed.out), (0, "state", ""))
        self.assertIn("checkpoint 1: 5 B, xxh3 ", printed.err)

    def test_fetch_wrongly(self) -> None:
        """No file, no number."""
        for arguments in (("latest",), ("first", "-o", "x"), ("-1", "-o", "x")):
            self.assertEqual(self.ftdctl("fetch", "demo-standby", *arguments).code, 2, arguments)

    def test_fetch_where_nothing_can_be(self) -> None:
        """The operating system's reason, without a traceback."""
        self.secondary.kept.add(b"state", NOW)
        printed = self.ftdctl("fetch", "demo-standby", "latest", "-o", "/nonexistent/state")
        self.assertEqual(printed.code, 1)
        self.assertRegex(printed.err, r"^ftdctl: /nonexistent/state.*: No such file or directory\n$")

    def test_fetch_damaged(self) -> None:
        """Nothing is left of what came."""
        servers = self.script()
        path = Path(self.mktemp())
        self.ftdctl("fetch", "demo-standby", "latest", "-o", str(path), "--json")
        servers.connections[0].answer('200 OK\r\nX-Ftd-Checkpoint: 4\r\nETag: "0123456789abcdef"', b"state")
        self.pump()
        assert self.running is not None
        self.assertEqual(self.successResultOf(self.running), 1)
        self.assertIn("arrived damaged", json.loads(self.out.getvalue())["error"]["detail"])
        self.assertFalse(path.exists())
