"""A standby that cannot store what it gets says so, keeps what it has, and goes on as soon as it can."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.case import EndToEndCase
from tests.daemon import Daemon, Json, free_port, primary, problem, secondary, start_all
from tests.state import MIB, state_of

# A file that would grow beyond 4 MiB is a file too large, and no reason to end the process.
_SMALL_FILES = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1024 * 1024, 4 * 1024 * 1024))
"""


class StorageCase(EndToEndCase):
    """A sender, and a standby in trouble."""

    async def start(self, standby: Daemon, link: int) -> None:
        """Start both, and commit a first checkpoint."""
        self.standby = standby
        self.sender = self.daemon({"demo": primary(link)})
        await start_all(self.standby, self.sender)
        await self.sender.until_up()
        await self.sender.push("demo", b"the first")
        self.first = (await self.sender.pair("demo"))["last_committed"]
        self.committed = [b"the first"]

    async def push(self, state: bytes) -> None:
        """Push a checkpoint, which has to be committed."""
        await self.sender.push("demo", state)
        self.committed.append(state)

    async def assert_refused(self, state: bytes, *says: str) -> Json:
        """The sender is told that its transaction was refused, the standby shows why, in these words."""
        nacked = (await self.sender.pair("demo"))["transactions_nacked"]
        refused = problem(await self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state), 409)
        self.assertEqual((refused["has_error"], refused["has_error_name"]), (6, "FLUSH"))
        self.assertEqual(refused["type"], "urn:ftd:problem:pair-failed")
        pair = await self.standby.pair("demo")
        self.assertEqual((pair["has_error_name"], pair["transaction"]), ("FLUSH", None))
        for text in says:
            self.assertIn(text, pair["has_error_detail"])
        newest = (await self.sender.transactions("demo"))[-1]
        self.assertEqual((newest["outcome"], newest["bytes"]), ("nacked", len(state)))
        sender = await self.sender.pair("demo")
        self.assertEqual((sender["transactions_nacked"], sender["link_state"]), (nacked + 1, "up"))
        self.assertEqual((await self.standby.http.request("GET", "/readyz")).status, 503)
        return pair

    async def assert_serves_what_it_has(self) -> None:
        """What was committed is listed, whole, and nothing else is on the disk."""
        listed = await self.standby.checkpoints("demo")
        self.assertEqual([entry["number"] for entry in listed], list(range(1, len(self.committed) + 1)))
        for entry, state in zip(listed, self.committed, strict=True):
            self.assertEqual(await self.standby.checkpoint("demo", entry["number"]), state)
        self.assertEqual([file.read_bytes() for file in self.standby.stored_files("demo")], self.committed)

    async def assert_goes_on(self, state: bytes) -> None:
        """The next one is committed, and the error is gone, without anybody's help."""
        await self.push(state)
        await self.assert_serves_what_it_has()
        self.assertEqual((await self.standby.pair("demo"))["has_error"], 0)
        self.assertEqual((await self.standby.http.request("GET", "/readyz")).status, 200)


class FullTests(StorageCase):
    """Nothing more fits."""

    async def test_a_disk_that_is_full(self) -> None:
        port = free_port()
        standby = self.daemon({"demo": secondary(port, ack="applied")})
        disk = standby.directory / "var"
        disk.mkdir()
        self.mount(disk)
        await self.start(standby, port)
        await self.push(state_of(4 * MIB))
        filler = disk / "filler"
        filler.write_bytes(b"x" * 8 * MIB)
        for _ in range(2):
            await self.assert_refused(state_of(10 * MIB), "No space left on device", str(disk))
            await self.assert_serves_what_it_has()
        # What does fit is taken although the disk is all but full.
        await self.assert_goes_on(state_of(MIB))
        await self.assert_refused(state_of(10 * MIB), "No space left on device")
        filler.unlink()
        await self.assert_goes_on(state_of(10 * MIB))
        await self.standby.stop()
        await self.standby.start()
        await self.assert_serves_what_it_has()

    def mount(self, directory: Path) -> None:
        """Mount a small disk there."""
        if os.geteuid() != 0:
            self.skipTest("only root can mount a disk that is small enough to be filled")
        mounting = ["mount", "-t", "tmpfs", "-o", "size=20m", "ftd-tests", str(directory)]
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
        if done.returncode:
            self.skipTest(f"this root cannot mount a disk: {done.stderr.strip()}")
        # Its daemon is killed first: cleaning up goes backwards.
        self.addCleanup(self.unmount, directory)

    def unmount(self, directory: Path) -> None:
        self.standby.kill()
        subprocess.run(["umount", str(directory)], check=True)

    async def test_a_file_that_is_too_large(self) -> None:
        port = free_port()
        await self.start(self.daemon({"demo": secondary(port, ack="applied")}, before=_SMALL_FILES), port)
        await self.assert_refused(state_of(6 * MIB), "File too large")
        await self.assert_serves_what_it_has()
        await self.assert_goes_on(state_of(3 * MIB))

    async def test_a_standby_that_has_confirmed_already(self) -> None:
        port = free_port()
        daemon = self.daemon({"demo": secondary(port, ack="received")}, before=_SMALL_FILES)
        await self.start(daemon, port)
        # What it knows at COMMIT that it cannot store it refuses.  Otherwise it says that it has received it, finds out
        # then, and breaks the link, so that the next session tells the sender; the word that it was received may or may
        # not have come through before that.
        answer = await self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state_of(6 * MIB))
        self.assertIn(answer.status, (200, 409, 503))
        if answer.status == 409:
            self.assertEqual(problem(answer, 409)["has_error_name"], "FLUSH")
        reconnects = 0 if answer.status == 409 else 1
        await self.sender.until_pair("demo", link_state="up", has_error=0, reconnects=reconnects)
        self.assertIn((await self.sender.pair("demo"))["last_committed"] or {"bytes": 0}, ({"bytes": 0}, self.first))
        await self.assert_serves_what_it_has()
        await self.assert_goes_on(state_of(MIB))


class VanishedTests(StorageCase):
    """The directory is not what it was."""

    async def start_with_directory(self) -> None:
        port = free_port()
        await self.start(self.daemon({"demo": secondary(port, ack="applied")}), port)
        self.checkpoints = self.standby.directory / "var" / "pairs" / "demo" / "checkpoints"

    async def test_a_directory_that_is_gone(self) -> None:
        await self.start_with_directory()
        aside = self.checkpoints.with_name("aside")
        self.checkpoints.rename(aside)
        await self.assert_refused(state_of(3 * MIB), "No such file or directory", str(self.checkpoints))
        problem(await self.standby.http.request("GET", "/v1/pairs/demo/checkpoints/1"), 404)
        self.assertEqual([file.read_bytes() for file in aside.iterdir()], self.committed)
        aside.rename(self.checkpoints)
        await self.assert_goes_on(state_of(3 * MIB))

    async def test_a_directory_that_goes_in_the_middle_of_a_transaction(self) -> None:
        await self.start_with_directory()
        aside = self.checkpoints.with_name("aside")
        await self.sender.http.request("POST", "/v1/pairs/demo/begin")
        await self.sender.http.request("POST", "/v1/pairs/demo/data", state_of(3 * MIB))
        await self.standby.until_pair("demo", state="CONTINUE")
        shutil.move(self.checkpoints, aside)
        refused = problem(await self.sender.http.request("POST", "/v1/pairs/demo/commit"), 409)
        self.assertEqual(refused["has_error_name"], "FLUSH")
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        aside.rename(self.checkpoints)
        listed = await self.standby.checkpoints("demo")
        self.assertEqual(len(listed), 1)
        await self.sender.push("demo", b"goes on")
        self.assertEqual(await self.standby.checkpoint("demo"), b"goes on")
        await self.standby.stop()
        await self.standby.start()
        self.assertEqual(await self.standby.checkpoint("demo", 1), b"the first")
        self.assertEqual(len(self.standby.stored_files("demo")), 2)

    async def test_a_file_in_its_place(self) -> None:
        await self.start_with_directory()
        aside = self.checkpoints.with_name("aside")
        self.checkpoints.rename(aside)
        self.checkpoints.write_text("not a directory")
        await self.assert_refused(b"state", "Not a directory")
        self.checkpoints.unlink()
        aside.rename(self.checkpoints)
        await self.assert_goes_on(b"state")
