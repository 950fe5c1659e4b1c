"""``ftdctl``: transactions, what is said when something cannot be done, options, and wrong arguments."""

from __future__ import annotations

import json
import os
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import ftd
from ftd.cli import commands
from ftd.cli.session import Settings, Task
from ftd.client import DEFAULT_URL
from ftd.errors import LinkDown, PairFailed, TooLarge
from ftd.test.cli_case import CliTestCase
from ftd.wire.errors import ErrorCode


class OptionTests(CliTestCase):
    """The options that all commands have."""

    def test_version(self) -> None:
        """Of this program."""
        self.assertEqual(self.ftdctl("--version").usage, f"ftdctl, version {ftd.__version__}\n")

    def test_help(self) -> None:
        """Tells the commands and the exit codes."""
        usage = self.ftdctl("--help").usage
        for word in ("begin", "cancel", "check", "checkpoints", "commit", "fetch", "pair", "push", "put", "rate-limit"):
            self.assertIn(f"  {word} ", usage)
        self.assertIn("3 daemon unreachable", " ".join(usage.split()))

    def test_no_command(self) -> None:
        """Is wrong usage."""
        self.assertEqual(self.ftdctl().code, 2)

    def test_unknown_command(self) -> None:
        """So is a wrong one."""
        self.assertEqual(self.ftdctl("relegate", "demo").code, 2)

    def test_url(self) -> None:
        """From the environment, before the command, after it; the last of them counts."""
        for arguments, environment, url in (
            (("status",), {}, DEFAULT_URL),
            (("status",), {"FTD_URL": "http://a:1"}, "http://a:1"),
            (("--url", "http://b:1", "status"), {"FTD_URL": "http://a:1"}, "http://b:1"),
            (("--url", "http://b:1", "status", "--url", "unix:c"), {"FTD_URL": "http://a:1"}, "unix:c"),
            (("pair", "--url", "http://d:1", "show", "demo"), {}, "http://d:1"),
            (("status",), {"FTD_URL": ""}, DEFAULT_URL),
        ):
            self.ftdctl(*arguments, **environment)
            self.assertEqual(self.settings.url, url)

    def test_bad_url(self) -> None:
        """Is wrong usage, and not an unreachable daemon."""
        for arguments in (("--url", "ftp://x", "status"), ("status", "--url", "ftp://x")):
            printed = self.ftdctl(*arguments)
            self.assertEqual(printed.code, 2)
            self.assertIn("neither http://host:port nor unix:/path", " ".join(printed.usage.split()))

    def test_json(self) -> None:
        """Before the command and after it."""
        for arguments in (("--json", "begin", "demo"), ("cancel", "demo", "--json"), ("begin", "--json", "demo")):
            self.assertEqual(self.ftdctl(*arguments).json(), {"id": 0})


class TransactionTests(CliTestCase):
    """begin, put, commit, cancel."""

    def file(self, data: bytes) -> str:
        """The path of a file."""
        path = Path(self.mktemp())
        path.write_bytes(data)
        return str(path)

    def test_in_steps(self) -> None:
        """Each says what was done."""
        self.assertEqual(self.ftdctl("begin", "demo").out, "transaction 0 is open\n")
        self.assertEqual(self.ftdctl("put", "demo", self.file(bytes(2048))).out, "accepted 2.0 KiB\n")
        self.assertEqual(
            self.ftdctl("commit", "demo").out,
            "committed: transaction 0, 2.0 KiB in 1 frame, acknowledged after 250 ms\n",
        )
        self.ftdctl("begin", "demo")
        self.assertEqual(self.ftdctl("cancel", "demo").out, "transaction 1 is cancelled\n")

    def test_in_steps_json(self) -> None:
        """Each writes one object."""
        self.assertEqual(self.ftdctl("--json", "begin", "demo").json(), {"id": 0})
        self.assertEqual(
            self.ftdctl("--json", "put", "demo", self.file(b"abc")).json(), {"accepted": 3, "frozen": False}
        )
        self.assertEqual(
            self.ftdctl("--json", "commit", "demo").json(), {"id": 0, "seq": 1, "bytes": 3, "seconds": 0.25}
        )
        self.ftdctl("begin", "demo")
        self.assertEqual(self.ftdctl("--json", "cancel", "demo").json(), {"id": 1})

    def test_put_into_a_frozen_pair(self) -> None:
        """The user learns why it took long."""
        self.ftdctl("begin", "demo")
        self.ftdctl("put", "demo", self.file(b""))
        self.primary.show(freeze_output=True)
        path = self.file(b"abc")
        self.ftdctl("put", "demo", path)
        self.assertIsNotNone(self.running)
        self.primary.uploads[-1].body.resumeProducing()
        self.pump()
        self.assertEqual(self.printed(), ["accepted 3 B; the pair is frozen: its link takes no more just now"])

    def test_push(self) -> None:
        """All in one."""
        data = os.urandom(3000)
        printed = self.ftdctl("push", "demo", self.file(data))
        self.assertEqual(printed.code, 0)
        self.assertEqual(printed.out, "committed: transaction 0, 2.9 KiB in 1 frame, acknowledged after 250 ms\n")
        self.assertEqual(self.primary.uploads[0].data, data)
        self.assertEqual(self.ftdctl("--json", "push", "demo", self.file(b"x")).json()["bytes"], 1)

    def test_push_from_a_pipe(self) -> None:
        """Nothing is said of its length, and it is read when the reactor says so."""
        out, into = os.pipe()
        self.addCleanup(os.close, out)
        os.write(into, b"abc")
        os.close(into)
        printed = self.ftdctl("push", "demo", f"/dev/fd/{out}")
        self.assertEqual((printed.code, self.primary.uploads[0].data), (0, b"abc"))
        self.assertIn(b"Transfer-Encoding: chunked", self.links[0].sent)
        self.assertEqual(self.reads, 2)

    def test_push_from_standard_input(self) -> None:
        """As from a pipe, also where it is a file."""
        standard_input = FileIO(self.file(b"abc"))
        self.addCleanup(standard_input.close)
        standard_input.name = "<stdin>"
        operation = partial(commands.push, pair="demo", file=cast(BinaryIO, standard_input))
        code = self.run_task(Settings(self.run_task), Task(operation=operation, command="push", pair="demo"))
        self.assertEqual((code, self.primary.uploads[0].data, self.reads), (0, b"abc", 2))

    def test_no_such_file(self) -> None:
        """Is wrong usage, and nothing is asked of the daemon."""
        for command in ("push", "put"):
            printed = self.ftdctl(command, "demo", "/nonexistent/file")
            self.assertEqual(printed.code, 2)
            self.assertIn("No such file or directory", printed.usage)
        self.assertEqual(self.links, [])

    def test_commit_without_waiting(self) -> None:
        """Says that it is not committed yet."""
        self.primary.acknowledges = False
        self.ftdctl("begin", "demo")
        self.assertEqual(self.ftdctl("commit", "demo", "--no-wait").out, "COMMIT of transaction 0 is on its way\n")

    def test_commit_timeout(self) -> None:
        """In any unit; out of time is a refusal."""
        self.primary.acknowledges = False
        self.ftdctl("begin", "demo")
        self.ftdctl("commit", "demo", "--timeout", "500ms")
        self.assertEqual(self.primary.timeouts, [0.5])
        self.primary.time_out()
        self.pump()
        assert self.running is not None
        self.assertEqual(self.successResultOf(self.running), 1)
        self.assertIn(
            "it may still be committed; to see whether it was: ftdctl transactions demo\n", self.err.getvalue()
        )

    def test_commit_wrongly(self) -> None:
        """Times that are none, and options that contradict each other."""
        for arguments in (("--timeout", "soon"), ("--timeout", "0"), ("--timeout", "5", "--no-wait")):
            self.assertEqual(self.ftdctl("commit", "demo", *arguments).code, 2, arguments)
        self.assertEqual(self.links, [])


class RefusalTests(CliTestCase):
    """The daemon refuses: exit code 1, its reason and what to do next on standard error."""

    def assert_refused(self, arguments: tuple[str, ...], *lines: str) -> None:
        """That is all that is said."""
        printed = self.ftdctl(*arguments)
        self.assertEqual((printed.code, printed.out), (1, ""))
        self.assertEqual(printed.err.splitlines(), list(lines))

    def test_transaction_open(self) -> None:
        """Both ways out are shown."""
        self.ftdctl("begin", "demo")
        self.assert_refused(
            ("begin", "demo"),
            "ftdctl: demo has transaction 0 open already.",
            "to end the open transaction: ftdctl commit demo, or ftdctl cancel demo",
        )

    def test_no_transaction(self) -> None:
        """The reason says what to do."""
        self.assert_refused(("cancel", "demo"), "ftdctl: demo has no transaction open: begin first, then cancel.")

    def test_link_down(self) -> None:
        """With the time after which to try again."""
        self.primary.failing = LinkDown("No link.", retry_after=2.5)
        self.assert_refused(
            ("begin", "demo"),
            "ftdctl: No link.",
            "to see what the link is doing: ftdctl status; try again in 3.0 s",
        )

    def test_pair_failed(self) -> None:
        """Reset is what there is."""
        self.primary.failing = PairFailed("FLUSH: disk full", ErrorCode.FLUSH)
        self.assert_refused(
            ("begin", "demo"),
            "ftdctl: FLUSH: disk full",
            "to clear the error and re-open the link: ftdctl reset demo",
        )

    def test_unknown(self) -> None:
        """Where the names are."""
        self.assert_refused(
            ("begin", "nope"), "ftdctl: There is no pair 'nope'.", "to see which there are: ftdctl status"
        )
        self.assert_refused(
            ("fetch", "demo-standby", "7", "-o", "x"),
            "ftdctl: demo-standby does not hold a checkpoint 7.",
            "to see which there are: ftdctl status, ftdctl checkpoints demo-standby",
        )
        self.assertFalse(Path("x").exists())

    def test_nothing_to_do(self) -> None:
        """No advice where there is none."""
        self.primary.failing = TooLarge("Over max-transaction.")
        self.assert_refused(("begin", "demo"), "ftdctl: Over max-transaction.")

    def test_json(self) -> None:
        """The whole problem, for programs; the sentence for people all the same."""
        self.ftdctl("begin", "demo")
        printed = self.ftdctl("begin", "demo", "--json")
        self.assertEqual(printed.code, 1)
        error = printed.json()["error"]
        self.assertEqual((error["status"], error["state"]), (409, "BEGIN"))
        self.assertEqual(error["type"], "urn:ftd:problem:not-in-state")
        self.assertIn("open already", printed.err)

    def test_control_characters(self) -> None:
        """What the daemon says cannot take the terminal over."""
        self.primary.failing = TooLarge("a\x1b[31mb\nc")
        self.assert_refused(("begin", "demo"), "ftdctl: a\\x1b[31mb\\nc")


class UnreachableTests(CliTestCase):
    """No daemon: exit code 3."""

    def test_refused(self) -> None:
        """The URL, the reason, and how to start one."""
        self.stop_server()
        printed = self.ftdctl("status")
        self.assertEqual((printed.code, printed.out), (3, ""))
        self.assertEqual(
            printed.err.splitlines(),
            [
                "ftdctl: the daemon at unix:/run/ftd.sock cannot be reached: the connection was refused",
                "is the daemon running? try: make run / twistd -n ftd --config etc/ftd.conf",
            ],
        )

    def test_json(self) -> None:
        """An object for programs."""
        self.stop_server()
        self.assertEqual(self.ftdctl("--json", "status").json()["error"]["url"], "unix:/run/ftd.sock")


class CheckTests(CliTestCase):
    """check, which needs no daemon."""

    def file(self, text: str) -> str:
        """The path of a file."""
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    def test_good(self) -> None:
        """Says so."""
        path = self.file("[pair demo]\nrole = primary\nlink = tcp:127.0.0.1:8441\n")
        printed = self.ftdctl("check", path)
        self.assertEqual((printed.code, printed.usage), (0, f"{path}: no error found\n"))
        self.assertEqual(json.loads(self.ftdctl("check", path, "--json").usage), {"ok": True, "problems": []})
        self.assertEqual(self.links, [])

    def test_bad(self) -> None:
        """Everything that is wrong, one a line, by section and key."""
        path = self.file("[pair demo]\nrole = third\nlink = tcp:127.0.0.1:8441\nkep = 3\n")
        printed = self.ftdctl("check", path)
        self.assertEqual(printed.code, 1)
        lines = printed.usage.splitlines()
        self.assertEqual(len(lines), 2)
        self.assertTrue(all(line.startswith(f"{path}: [pair demo] ") for line in lines), lines)

    def test_bad_json(self) -> None:
        """As data."""
        path = self.file("[pair demo]\nrole = third\nlink = tcp:127.0.0.1:8441\n")
        printed = self.ftdctl("check", path, "--json")
        found = json.loads(printed.usage.splitlines()[0])
        self.assertFalse(found["ok"])
        self.assertEqual([(one["section"], one["key"]) for one in found["problems"]], [("pair demo", "role")])

    def test_missing(self) -> None:
        """A file that is not there is an error of the configuration."""
        self.assertEqual(self.ftdctl("check", "/nonexistent/ftd.conf").code, 1)
