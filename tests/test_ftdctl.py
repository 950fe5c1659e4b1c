"""``ftdctl`` against a real daemon: what people type, what they see, and what programs get."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.case import Output, SharedDaemonCase, run
from tests.daemon import Section, environment, free_port, primary, secondary
from tests.program import Program
from tests.state import MIB, state_of
from tests.waiting import until

_LINK = free_port()

_FTDCTL = (sys.executable, "-m", "ftd.cli")


class FtdctlTests(SharedDaemonCase):
    """Every command, once or more."""

    pairs: ClassVar[Mapping[str, Section]] = {
        "demo": primary(_LINK, frame_size="64KiB"),
        "demo-standby": secondary(_LINK, name="demo", ack="applied"),
        "lonely": primary(free_port(), reconnect_max="1h"),
    }
    up: ClassVar[tuple[str, ...]] = ("demo",)

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.directory = self.scratch()
        await super().setUp()

    def environment(self, url: str | None = None) -> dict[str, str]:
        return {**environment(), "FTD_URL": url or self.shared.url}

    async def ftdctl(self, *arguments: str, url: str | None = None) -> Output:
        """Run it to its end."""
        program, *fixed = _FTDCTL
        return await run(program, *fixed, *arguments, directory=self.directory, env=self.environment(url))

    async def done(self, *arguments: str) -> str:
        """Run it, which has to go well; what it wrote."""
        output = await self.ftdctl(*arguments)
        self.assertEqual((output.status, output.err), (0, b""), output)
        return output.out.decode()

    async def done_json(self, *arguments: str) -> Any:
        """The same with ``--json``."""
        return json.loads(await self.done(*arguments, "--json"))

    def program(self, *arguments: str, on_terminal: bool = False) -> Program:
        """Let it run."""
        program = Program(
            *_FTDCTL, *arguments, directory=self.directory, env=self.environment(), on_terminal=on_terminal
        )
        self.addCleanup(program.end)
        return program

    def file(self, state: bytes) -> str:
        path = self.directory / "state"
        path.write_bytes(state)
        return str(path)

    async def until_lonely(self) -> None:
        """Wait until the pair that nobody answers has found that out."""
        await self.shared.until_pair("lonely", link_state="down")

    # A checkpoint

    async def test_push_and_fetch(self) -> None:
        state = state_of(3 * MIB + 1)
        self.assertTrue((await self.done("push", "demo", self.file(state))).startswith("committed: transaction "))
        await self.done("fetch", "demo-standby", "latest", "-o", "copy")
        self.assertEqual((self.directory / "copy").read_bytes(), state)
        commit = await self.done_json("push", "demo", self.file(b"second"))
        self.assertEqual((commit["bytes"], commit["seq"]), (6, 1))
        (*_, previous, newest) = (await self.done_json("checkpoints", "demo-standby"))["checkpoints"]
        self.assertEqual(newest["id"], commit["id"])
        fetched = self.in_background(self.done("fetch", "demo-standby", str(previous["number"]), "-o", "again"))
        to_stdout = await self.ftdctl("fetch", "demo-standby", "latest", "-o", "-")
        self.assertEqual((to_stdout.status, to_stdout.out), (0, b"second"))
        self.assertIn(previous["xxh3"], await fetched)
        self.assertEqual((self.directory / "again").read_bytes(), state)

    async def test_push_from_a_pipe(self) -> None:
        ftdctl = " ".join((*_FTDCTL, "push", "demo", "-"))
        command = f"yes 'all work and no play' | head -c 5000000 | {ftdctl}"
        output = await run("/bin/sh", "-c", command, directory=self.directory, env=self.environment())
        self.assertEqual(output.status, 0, output)
        self.assertEqual(len(await self.shared.checkpoint("demo-standby")), 5_000_000)

    async def test_a_progress_bar_on_a_terminal(self) -> None:
        program = self.program("push", "demo", self.file(state_of(20 * MIB)), on_terminal=True)
        self.assertEqual(await program.ended(), 0)
        self.assertIn("20", program.out())
        self.assertIn("MiB", program.out())
        self.assertIn("committed: transaction", program.out())

    async def test_an_upload_that_is_interrupted_is_cancelled(self) -> None:
        before = (await self.shared.pair("demo-standby"))["transactions_cancelled"]
        await self.shared.http.send_json("PUT", "/v1/pairs/demo/rate-limit", {"bandwidth": MIB})
        program = self.program("push", "demo", self.file(state_of(64 * MIB)))
        await self.shared.until_pair("demo-standby", state="CONTINUE")
        program.send(signal.SIGINT)
        self.assertEqual(await program.ended(), 130)
        await self.shared.http.request("POST", "/v1/pairs/demo/cancel")
        await self.shared.http.send_json("PUT", "/v1/pairs/demo/rate-limit", {"bandwidth": 0})
        await self.shared.until_pair("demo-standby", transactions_cancelled=before + 1, transaction=None)
        await self.shared.until_pair("demo", transaction=None, buffered_bytes=0)

    # A transaction in steps

    async def test_begin_put_commit_cancel(self) -> None:
        begun = await self.done("begin", "demo")
        self.assertRegex(begun, r"^transaction \d+ is open\n$")
        await self.done("put", "demo", self.file(b"one "))
        beginning_again = self.in_background(self.ftdctl("begin", "demo"))
        self.assertEqual((await self.done_json("put", "demo", self.file(b"two")))["accepted"], 3)
        twice = await beginning_again
        self.assertEqual((twice.status, twice.out), (1, b""))
        self.assertIn(b"is open on demo; commit or cancel it first", twice.err)
        self.assertIn("committed", await self.done("commit", "demo", "--timeout", "20s"))
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"one two")
        await self.shared.http.request("POST", "/v1/pairs/demo/begin")
        self.assertRegex(await self.done("cancel", "demo"), r"^transaction \d+ is cancelled\n$")
        await self.shared.http.request("POST", "/v1/pairs/demo/begin")
        await self.shared.http.request("POST", "/v1/pairs/demo/data", b"three")
        self.assertIn("is on its way", await self.done("commit", "demo", "--no-wait"))
        await until(self.third_is_in, "the commit that nobody waited for")
        shown = self.in_background(self.done("transactions", "demo"))
        rows = (await self.done_json("transactions", "demo"))["transactions"]
        self.assertEqual([row["outcome"] for row in rows[-3:]], ["committed", "cancelled", "committed"])
        self.assertIn("cancelled", await shown)

    async def third_is_in(self) -> bool:
        return await self.shared.checkpoint("demo-standby") == b"three"

    # Seeing

    async def test_status(self) -> None:
        await self.until_lonely()
        listing = self.in_background(self.done_json("status"))
        showing = self.in_background(self.done("pair", "show", "demo"))
        shown = await self.done("status")
        for name in self.pairs:
            self.assertIn(name, shown)
        self.assertIn("Connection was refused", shown)
        listed = await listing
        self.assertEqual([pair["name"] for pair in listed["pairs"]], list(self.pairs))
        one = await self.done_json("pair", "show", "demo")
        self.assertEqual((one["name"], one["link_state"]), ("demo", "up"))
        self.assertIn("link_state", await showing)

    async def test_status_is_watched_on_a_terminal(self) -> None:
        program = self.program("status", "--watch", on_terminal=True)
        await program.until_out("demo-standby")
        number = (await self.shared.push("demo", b"seen")).json()
        self.assertTrue(number)
        (*_, newest) = await self.shared.checkpoints("demo-standby")
        await program.until_out(f"#{newest['number']}")
        program.send(signal.SIGINT)
        self.assertEqual(await program.ended(), 130)

    async def test_status_is_watched_by_a_program(self) -> None:
        program = self.program("status", "--watch", "--json")
        await until(lambda: len(program.out().splitlines()) >= len(self.pairs), "the first states")
        commit = (await self.shared.push("demo", b"seen")).json()
        await until(lambda: self.last_id(program, "demo") == commit["id"], "the commit is seen")
        program.send(signal.SIGINT)
        self.assertEqual(await program.ended(), 130)

    def last_id(self, program: Program, pair: str) -> int | None:
        """The id of the commit that the newest state of a pair tells of."""
        found = None
        for line in program.out().splitlines(keepends=True):
            event = json.loads(line) if line.endswith("\n") else {}
            if event.get("pair") == pair and event.get("last_committed"):
                found = event["last_committed"]["id"]
        return found

    async def test_trace_is_followed(self) -> None:
        program = self.program("trace", "demo", "send_header", "--follow")
        # It is on as soon as a heartbeat shows.
        await program.until_out("ft_trans_send_header send header 3\n")
        await self.shared.push("demo", b"seen")
        await program.until_out("ft_trans_send_header send header 1\nft_trans_send_header send header 2\n")
        program.send(signal.SIGTERM)
        self.assertEqual(await program.ended(), 143)
        self.assertEqual({line.split()[0] for line in program.out().splitlines()}, {"ft_trans_send_header"})

    # Switches

    async def test_trace_switches(self) -> None:
        shown = await self.done("trace", "demo", "--on", "flush,ft_trans_cb")
        on = [line.split()[1] for line in shown.splitlines() if line.startswith("on ")]
        self.assertEqual(on, ["ft_trans_flush", "ft_trans_cb"])
        off = await self.done_json("trace", "demo", "--off", "all")
        self.assertEqual(set(off["events"].values()), {False})

    async def test_rate_limit(self) -> None:
        async def now() -> Any:
            return await self.shared.http.json("/v1/pairs/demo/rate-limit")

        self.assertEqual(await self.done_json("rate-limit", "demo"), {"enabled": True, "bandwidth": 0})
        self.assertIn("off", await self.done("rate-limit", "demo", "off"))
        self.assertEqual(await now(), {"enabled": False, "bandwidth": 0})
        self.assertEqual(await self.done_json("rate-limit", "demo", "10MiB"), await now())
        self.assertEqual(await now(), {"enabled": True, "bandwidth": 10 * MIB})
        await self.done("rate-limit", "demo", "0")
        self.assertEqual(await now(), {"enabled": True, "bandwidth": 0})

    # Pairs

    async def test_pairs_are_created_and_deleted(self) -> None:
        link = f"tcp:127.0.0.1:{free_port()}"
        await self.done("pair", "create", "spare", "--role", "primary", "--link", link, "-o", "frame-size=1MiB")
        self.assertEqual((await self.shared.pair("spare"))["link_address"], link)
        again = await self.ftdctl("pair", "create", "spare", "--role", "primary", "--link", link)
        self.assertEqual(again.status, 1)
        await self.done("pair", "delete", "spare")
        self.assertEqual((await self.ftdctl("pair", "show", "spare")).status, 1)
        bad = await self.ftdctl("pair", "create", "x", "--role", "primary", "--link", link, "-o", "frame-sise=1")
        self.assertEqual(bad.status, 1)
        self.assertIn(b"frame-sise", bad.err)

    async def test_reset(self) -> None:
        before = (await self.shared.pair("demo"))["reconnects"]
        self.assertIn("opened anew", await self.done("reset", "demo"))
        await self.shared.until_pair("demo", reconnects=before + 1, link_state="up")

    async def test_check(self) -> None:
        file = Path(self.shared.configuration)
        self.assertIn("no error found", await self.done("check", str(file)))
        bad = self.directory / "bad.conf"
        bad.write_text("[pair a]\nrole = third\n[colours]\n")
        checking = self.in_background(self.ftdctl("check", str(bad)))
        as_json = await self.ftdctl("check", str(bad), "--json")
        output = await checking
        self.assertEqual((output.status, len(output.err.splitlines())), (1, 3), output)
        self.assertEqual(as_json.status, 1)
        problems = json.loads(as_json.out)["problems"]
        self.assertEqual(
            {(entry["section"], entry["key"]) for entry in problems},
            {("pair a", "role"), ("pair a", "link"), ("colours", "")},
        )

    # What goes wrong

    async def test_exit_codes(self) -> None:
        cases = (
            (("pair", "show", "nobody"), 1, b"nobody"),
            (("commit", "demo"), 1, b"no transaction is open"),
            (("fetch", "demo-standby", "99999", "-o", "copy"), 1, b"99999"),
            (("push", "demo"), 2, b"FILE"),
            (("dance",), 2, b"dance"),
            (("rate-limit", "demo", "fast"), 2, b"fast"),
            (("status", "--url", f"http://127.0.0.1:{free_port()}"), 3, b"cannot be reached"),
            (("status", "--url", "unix:/nowhere/api.sock"), 3, b"cannot be reached"),
        )
        running = [self.in_background(self.ftdctl(*arguments)) for arguments, _, _ in cases]
        for (_, status, says), done in zip(cases, running, strict=True):
            output = await done
            self.assertEqual((output.status, output.out), (status, b""), output)
            self.assertIn(says, output.err)
            self.assertNotIn(b"Traceback", output.err)
        self.assertFalse((self.directory / "copy").exists())

    async def test_a_refusal_for_programs(self) -> None:
        output = await self.ftdctl("commit", "demo", "--json")
        self.assertEqual(output.status, 1)
        error = json.loads(output.out)["error"]
        self.assertEqual((error["status"], error["type"]), (409, "urn:ftd:problem:not-in-state"))

    async def test_a_pair_without_a_link(self) -> None:
        await self.until_lonely()
        output = await self.ftdctl("push", "lonely", self.file(b"x"))
        self.assertEqual(output.status, 1)
        self.assertIn(b"link of lonely", output.err)
