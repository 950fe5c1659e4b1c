"""What ``ftdctl`` shows a person: the pairs at a glance and live, progress, numbers."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from ftd.cli.progress import progress_bar
from ftd.cli.session import Session, console
from ftd.cli.watch import Picture
from ftd.cli.wording import age, duration, frames, plain, size, timestamp
from ftd.client import DaemonInfo, Event, Unreachable
from ftd.client.transfer import silent
from ftd.status import LastCommitted, LinkState, OpenTransaction, to_json
from ftd.test.api_case import NOW
from ftd.test.cli_case import CliTestCase
from ftd.test.client_case import ClientTestCase
from ftd.testing.fake_pairs import fake_status


class WordingTests(SynchronousTestCase):
    """Numbers and foreign text."""

    def test_size(self) -> None:
        """Never more than three digits before the point."""
        for count, shown in (
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (999 * 1024, "999.0 KiB"),
            (1000 * 1024, "1.0 MiB"),
            (36175872, "34.5 MiB"),
            (5 * 1024**3, "5.0 GiB"),
            (3 * 1024**4, "3.0 TiB"),
            (5000 * 1024**4, "5000.0 TiB"),
        ):
            self.assertEqual(size(count), shown)

    def test_duration(self) -> None:
        """One unit."""
        for seconds, shown in (
            (-1, "0 ms"),
            (0.0124, "12 ms"),
            (3.44, "3.4 s"),
            (12, "12 s"),
            (119, "119 s"),
            (300, "5 min"),
            (7200, "2 h"),
            (345600, "4 d"),
        ):
            self.assertEqual(duration(seconds), shown)

    def test_age(self) -> None:
        """Whole seconds; a clock that is behind makes nothing young."""
        for seconds, shown in ((-5, "now"), (0.9, "now"), (3.4, "3 s ago"), (59.6, "60 s ago"), (7200, "2 h ago")):
            self.assertEqual(age(seconds), shown)

    def test_others(self) -> None:
        """Plural, time, control characters."""
        self.assertEqual((frames(1), frames(0), frames(2)), ("1 frame", "0 frames", "2 frames"))
        self.assertEqual(timestamp(NOW + 0.5), "2023-11-14T22:13:20.500000Z")
        self.assertEqual(plain("ä\x1b[2J\r\n\u202e"), "ä\\x1b[2J\\r\\n\\u202e")


class StatusTests(CliTestCase):
    """status."""

    def test_calm(self) -> None:
        """Two lines a pair, none wider than 80 columns."""
        self.primary.show(
            last_committed=LastCommitted(id=4, number=12, bytes=36175872, at=NOW - 3), transactions_committed=12
        )
        printed = self.ftdctl("status")
        self.assertEqual(printed.code, 0)
        self.assertEqual(
            printed.lines,
            [
                "ftd 1.2.3 on host-a, up for 0 ms",
                "PAIR            LINK        STATE     LAST COMMIT                   COMMITTED",
                "demo            up          ACK       #12  34.5 MiB  3 s ago        12",
                "  primary → 127.0.0.1:8441",
                "demo-standby    up          ACK       none yet                      0",
                "  secondary ← 127.0.0.1:8441",
            ],
        )
        self.assertTrue(all(len(line) <= 80 for line in printed.out.splitlines()))

    def test_trouble(self) -> None:
        """Everything that matters stands underneath, in words."""
        self.primary.show(
            link_state=LinkState.CONNECTING,
            link_peer=None,
            link_detail="connection refused",
            has_error=6,
            has_error_name="FLUSH",
            has_error_detail="No space left\x1b on device",
            transaction=OpenTransaction(id=13, seq=1, bytes=1200),
            freeze_output=True,
            buffered_bytes=2048,
            transactions_cancelled=1,
            transactions_nacked=2,
            transactions_failed=3,
        )
        self.assertEqual(
            self.ftdctl("status").lines[2:10],
            [
                "demo            connecting  ACK       none yet                      0",
                "  primary → tcp:127.0.0.1:8441",
                "  link: connection refused",
                "  open: transaction 13, 1.2 KiB in 1 frame",
                "  frozen, 2.0 KiB wait to be sent",
                "  transactions: 1 cancelled, 2 refused by the standby, 3 failed",
                "  FLUSH: No space left\\x1b on device",
                "demo-standby    up          ACK       none yet                      0",
            ],
        )

    def test_long_name(self) -> None:
        """Is not cut: it has a line of its own."""
        self.result(self.client.create_pair("a-rather-long-name-of-a-pair", {"role": "primary"}))
        self.assertEqual(
            self.ftdctl("status").lines[-3:],
            [
                "a-rather-long-name-of-a-pair",
                "                up          ACK       none yet                      0",
                "  primary → 127.0.0.1:8441",
            ],
        )

    def test_no_pairs(self) -> None:
        """What to do then."""
        self.daemon.all.clear()
        self.assertIn("ftdctl pair create", self.ftdctl("status").out)

    def test_json(self) -> None:
        """As the API has it."""
        pairs = self.ftdctl("status", "--json").json()["pairs"]
        self.assertEqual([pair["name"] for pair in pairs], ["demo", "demo-standby"])


class ColourTests(CliTestCase):
    """On a terminal."""

    is_terminal = True

    def console(self, file: StringIO) -> Console:
        """With colours."""
        return Console(file=file, width=80, markup=False, highlight=False, force_terminal=True, color_system="standard")

    def test_link_states(self) -> None:
        """Each has a word and a colour: green, yellow, red."""
        for state, shown in (
            (LinkState.UP, "\x1b[32mup"),
            (LinkState.HANDSHAKE, "\x1b[33mgreeting"),
            (LinkState.CONNECTING, "\x1b[33mconnecting"),
            (LinkState.DOWN, "\x1b[31mdown"),
        ):
            self.primary.show(link_state=state)
            self.assertIn(shown, self.ftdctl("status").out)

    def test_error(self) -> None:
        """Red and bold."""
        self.primary.show(has_error=6, has_error_name="FLUSH", has_error_detail="disk full")
        self.assertIn("\x1b[1;31m  FLUSH: disk full", self.ftdctl("status").out)


class PictureTests(SynchronousTestCase):
    """What ``--watch`` knows of the pairs: never one that the last whole snapshot did not have."""

    def setUp(self) -> None:
        info = DaemonInfo(name="ftd", version="1", node="n", uptime_seconds=1.0, pairs=())
        self.picture = Picture(info, NOW, {})
        self.snapshot("a", "b")

    def snapshot(self, *names: str) -> None:
        """One arrives."""
        for name in names:
            status = fake_status(name, "primary")
            self.picture.take(Event("pair", "", {"pair": name, "initial": True, **to_json(status)}))
        self.picture.take(Event("sync", "7", {}))

    def names(self) -> list[str]:
        """Of the pairs that are shown."""
        return list(self.picture.pairs)

    def test_change(self) -> None:
        """A pair that is new is added, the others stay."""
        status = to_json(fake_status("c", "primary"))
        self.picture.take(Event("pair", "8", {"pair": "c", **status}))
        self.assertEqual(self.names(), ["a", "b", "c"])

    def test_after_lagging(self) -> None:
        """A new snapshot, in the same stream."""
        self.picture.take(Event("lagged", "7", {"dropped": 5}))
        self.assertEqual(self.names(), ["a", "b"])
        self.snapshot("b")
        self.assertEqual(self.names(), ["b"])

    def test_after_a_break(self) -> None:
        """A new snapshot, in a new stream; until it is there the old picture stays, with the trouble."""
        self.picture.link(Unreachable("unix:x", "it broke"))
        self.assertEqual((self.names(), self.picture.trouble), (["a", "b"], "unix:x: it broke; trying again"))
        self.picture.link(None)
        self.assertEqual((self.names(), self.picture.trouble), (["a", "b"], ""))
        self.snapshot("b", "c")
        self.assertEqual(self.names(), ["b", "c"])


class WatchTests(CliTestCase):
    """status --watch, into a file: what has changed is written below."""

    def look_again(self) -> None:
        """Let what has happened arrive, and the next drawing come."""
        self.pump()
        self.pump(0.5)

    def test_changes(self) -> None:
        """Once at first, and again when something has happened."""
        self.ftdctl("status", "--watch")
        self.assertEqual(len(self.printed()), 6)
        self.pump(0.5)
        self.assertEqual(self.printed(), [])
        self.primary.show(link_state=LinkState.DOWN)
        self.primary.show(link_detail="connection refused")
        self.look_again()
        self.assertEqual(
            self.printed()[2:5],
            [
                "demo            down        ACK       none yet                      0",
                "  primary → 127.0.0.1:8441",
                "  link: connection refused",
            ],
        )
        self.assertEqual(self.interrupt(), 130)
        self.assertEqual(self.err.getvalue(), "")

    def test_signs_of_life(self) -> None:
        """Are no news."""
        self.ftdctl("status", "--watch")
        self.printed()
        self.primary.show(heartbeats=7, bytes_sent=84)
        self.look_again()
        self.assertEqual(self.printed(), [])

    def test_removed_pair(self) -> None:
        """Its last event says so."""
        self.ftdctl("status", "--watch")
        self.printed()
        pair = self.daemon.all.pop("demo")
        self.bus.publish("pair", "demo", {**to_json(pair.status()), "removed": True})
        self.look_again()
        self.assertEqual(self.printed()[2], "demo-standby    up          ACK       none yet                      0")

    def test_daemon_restarts(self) -> None:
        """What it was, that it is gone, and what it is then."""
        self.ftdctl("status", "--watch")
        self.printed()
        self.stop_server()
        self.pump(0.5)
        lines = self.printed()
        self.assertEqual(lines[2], "demo            up          ACK       none yet                      0")
        self.assertRegex(lines[-1], r"^unix:/run/ftd.sock: the connection .*; trying again$")
        self.pump(10)
        self.primary.show(state="INIT")
        self.start_server()
        self.pump(8)
        self.look_again()
        lines = self.printed()
        self.assertIn("demo            up          INIT      none yet                      0", lines)
        self.assertNotIn("trying again", lines[-1])
        self.assertEqual(self.interrupt(), 130)

    def test_snapshot_is_the_whole(self) -> None:
        """A pair that is not in the daemon's snapshot after a break is not shown any longer."""
        self.ftdctl("status", "--watch")
        self.stop_server()
        del self.daemon.all["demo"]
        for _ in range(5000):
            self.secondary.show()
        self.start_server()
        self.pump(0.5)
        self.printed()
        self.look_again()
        lines = self.printed()
        self.assertIn("demo-standby    up          ACK       none yet                      0", lines)
        self.assertFalse(any(line.startswith("demo ") for line in lines))

    def test_no_daemon(self) -> None:
        """At first there has to be one."""
        self.stop_server()
        self.assertEqual(self.ftdctl("status", "--watch").code, 3)

    def test_json(self) -> None:
        """One event a line."""
        self.ftdctl("status", "--watch", "--json")
        kinds = [json.loads(line)["event"] for line in self.printed()]
        self.assertEqual(kinds, ["pair", "pair", "sync"])
        self.primary.show(id=7)
        self.pump()
        (line,) = self.printed()
        self.assertEqual(json.loads(line)["id"], self.primary.shown.id)

    def test_output_that_is_gone(self) -> None:
        """Ends it, as a signal would."""

        class Gone(StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError(32, f"cannot take {len(text)} characters")

        self.ftdctl("status", "--watch")
        self.pump()
        running = self.running
        assert running is not None
        gone = Gone()
        for name in ("write", "flush"):
            setattr(self.out, name, getattr(gone, name))
        self.patch(Console, "on_broken_pipe", _leave)
        self.primary.show(state="INIT")
        self.look_again()
        self.assertEqual(self.successResultOf(running), 141)


def _leave(_: Console) -> None:
    """Without redirecting the standard output of the tests."""
    raise SystemExit(1)


class LiveWatchTests(CliTestCase):
    """status --watch on a terminal: always in the same place."""

    is_terminal = True

    def test_redrawn(self) -> None:
        """Twice a second, so that ages and uptime go on."""
        self.primary.show(last_committed=LastCommitted(id=4, number=12, bytes=9, at=NOW - 3))
        self.ftdctl("status", "--watch")
        self.assertIn("#12  9 B  3 s ago", self.out.getvalue())
        self.pump(4)
        self.assertIn("#12  9 B  7 s ago", self.out.getvalue())
        self.assertIn("up for 4.0 s", self.out.getvalue())
        self.assertEqual(self.interrupt(), 130)


class ProgressTests(ClientTestCase):
    """The bar."""

    def session(self, *, as_json: bool = False, is_terminal: bool = True) -> Session:
        """With a standard error that can be read."""
        self.err = StringIO()
        return Session(
            client=self.client,
            reactor=self.reactor,
            out=console(),
            err=Console(file=self.err, force_terminal=is_terminal, width=100, color_system=None),
            as_json=as_json,
        )

    def test_bar(self) -> None:
        """How much of how much, how fast, how long; drawn ten times a second at most."""
        with progress_bar(self.session(), "sending", then="waiting for the ACK") as progress:
            self.reactor.advance(1)
            progress(10 * 1024**2, 40 * 1024**2)
            shown = self.err.getvalue()
            self.assertIn("sending", shown)
            self.assertIn("10.0/40.0 MiB", shown)
            self.reactor.advance(0.05)
            progress(11 * 1024**2, 40 * 1024**2)
            self.assertEqual(self.err.getvalue(), shown)
            self.reactor.advance(0.95)
            progress(20 * 1024**2, 40 * 1024**2)
            self.assertRegex(self.err.getvalue(), r"20\.0/40\.0 MiB +10\.0 MiB/s 0:00:0[0-9]")
            self.assertNotIn("ACK", self.err.getvalue())
            progress(40 * 1024**2, 40 * 1024**2)
            self.assertIn("waiting for the ACK", self.err.getvalue())

    def test_unknown_length(self) -> None:
        """Has no end to show."""
        with progress_bar(self.session(), "sending") as progress:
            self.reactor.advance(1)
            progress(3 * 1024**2, None)
            self.assertIn("3.0/? MiB", self.err.getvalue())

    def test_nobody_looks(self) -> None:
        """Not a terminal, or a program reads the output: nothing is drawn."""
        for session in (self.session(is_terminal=False), self.session(as_json=True)):
            with progress_bar(session, "sending") as progress:
                self.assertIs(progress, silent)
                progress(1, 2)
            self.assertEqual(self.err.getvalue(), "")


class ProgressOfCommandsTests(CliTestCase):
    """The bar in the commands that move bytes."""

    is_terminal = True

    def test_upload_and_download(self) -> None:
        """put, push and fetch have one, on standard error."""
        path = Path(self.mktemp())
        path.write_bytes(bytes(300_000))
        self.secondary.kept.add(bytes(300_000), NOW)
        printed = self.ftdctl("push", "demo", str(path))
        self.assertIn("waiting for the ACK", printed.err)
        self.ftdctl("begin", "demo")
        self.assertIn("sending", self.ftdctl("put", "demo", str(path)).err)
        printed = self.ftdctl("fetch", "demo-standby", "latest", "-o", str(path))
        self.assertIn("fetching", printed.err)
        self.assertNotIn("fetching", printed.out)
        self.assertEqual(self.ftdctl("fetch", "demo-standby", "latest", "-o", str(path), "--json").err, "")
