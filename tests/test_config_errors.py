"""A configuration that cannot be used: one line that names section and key, exit status 1, and no more."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.case import EndToEndCase, Output, run
from tests.daemon import Section, environment, free_port, ini, primary, secondary
from tests.http_client import HttpClient, NoAnswer
from tests.waiting import until


class ConfigCase(EndToEndCase):
    """A case that starts daemons which may not start."""

    def setUp(self) -> None:
        self.directory = self.scratch()
        self.file = self.directory / "ftd.conf"
        self.port = free_port()

    def write(self, sections: dict[str, Section]) -> None:
        """Write the file; the API has a free port if nothing else is said."""
        api = {"endpoint": f"tcp:{self.port}:interface=127.0.0.1"}
        self.file.write_text(ini({"api": api, **sections}))

    async def twistd(self, *options: str, more: tuple[str, ...] = ()) -> Output:
        """Run twistd to its end; ``more`` are options of the daemon."""
        # Not killed with its parent: some of these are daemons, whose parent is gone by intention.
        program = "from twisted.scripts.twistd import run; run()"
        arguments = ("-c", program, *options, "ftd", "--config", "ftd.conf", *more)
        return await run(sys.executable, *arguments, directory=self.directory, env=environment())

    async def assert_refused(self, where: str, *says: str) -> None:
        """The file is refused at the start and by ``--check``, in one line with all of this in it."""
        checked = self.in_background(self.twistd(more=("--check",)))
        started = self.in_background(self.twistd("-n", "--pidfile="))
        for output in (await checked, await started):
            self.assertEqual((output.status, output.out), (1, b""), output)
            lines = output.err.decode().splitlines()
            self.assertEqual(len(lines), 1, lines)
            self.assertTrue(lines[0].startswith(f"ftd: ftd.conf: {where}"), lines[0])
            for text in says:
                self.assertIn(text, lines[0])


class BadFileTests(ConfigCase):
    """What is wrong with the file itself."""

    async def test_unknown_keys(self) -> None:
        self.write({"pair demo": {**primary(1), "frame-sise": "1MiB"}})
        await self.assert_refused("[pair demo] frame-sise: ", "frame-size")

    async def test_unknown_sections(self) -> None:
        self.write({"pears demo": primary(1)})
        await self.assert_refused("[pears demo]")

    async def test_bad_sizes_and_times(self) -> None:
        self.write({"pair demo": {**primary(1), "buffer-limit": "64MB"}})
        await self.assert_refused("[pair demo] buffer-limit: ", "'64MB'", "MiB")
        self.write({"pair demo": {**primary(1), "heartbeat": "1 fortnight"}})
        await self.assert_refused("[pair demo] heartbeat: ", "'1 fortnight'")

    async def test_two_pairs_on_one_port(self) -> None:
        port = free_port()
        self.write({"pair one": secondary(port), "pair two": secondary(port)})
        await self.assert_refused("[pair two] link: ", "[pair one]")

    async def test_a_pair_on_the_port_of_the_api(self) -> None:
        self.write({"pair one": secondary(self.port)})
        await self.assert_refused("[pair one] link: ", "[api]")

    async def test_an_api_for_everybody(self) -> None:
        self.write({"api": {"endpoint": "tcp:8440"}})
        await self.assert_refused("[api] endpoint: ", "loopback")

    async def test_what_the_kernel_does_not_have(self) -> None:
        self.write({"pair demo": {**primary(1), "congestion-control": "none-such"}})
        await self.assert_refused("[pair demo] congestion-control: ", "'none-such'", "reno")

    async def test_vms_that_lack_or_share_something(self) -> None:
        vm = {**primary(1), "source": "qemu"}
        self.write({"pair vm": vm})
        await self.assert_refused("[pair vm] qemu-qmp: ", "is missing", "source = qemu")
        vm["qemu-qmp"] = "vm.qmp"
        self.write({"pair vm": vm, "pair other": vm})
        await self.assert_refused("[pair other] qemu-qmp: ", "[pair vm]", str(self.directory / "vm.qmp"))
        self.write({"pair vm": {**vm, "source": "feed"}})
        await self.assert_refused("[pair vm] qemu-qmp: ", "source = qemu")

    async def test_a_missing_file(self) -> None:
        await self.assert_refused("cannot be read: No such file or directory")

    async def test_what_is_no_configuration(self) -> None:
        self.file.write_bytes(b"\x00\x01\x02")
        await self.assert_refused("")

    async def test_check_tells_all_there_is(self) -> None:
        self.write({"pair a": {**primary(1), "keep": "2"}, "pair b": {"role": "third"}, "colours": {}})
        output = await self.twistd(more=("--check",))
        self.assertEqual(output.status, 1)
        lines = output.err.decode().splitlines()
        for where in ("[pair a] keep", "[pair b] role", "[pair b] link", "[colours]"):
            self.assertEqual(len([line for line in lines if f" {where}: " in line]), 1, (where, lines))

    async def test_check_starts_nothing(self) -> None:
        self.write({"pair demo": secondary(free_port())})
        output = await self.twistd(more=("--check",))
        self.assertEqual((output.status, output.out, output.err), (0, b"ftd.conf: ok, 1 pair\n", b""))
        self.assertEqual([path.name for path in self.directory.iterdir()], ["ftd.conf"])


class TakenTests(ConfigCase):
    """What is wrong with the machine."""

    async def assert_not_started(self, where: str, *says: str) -> None:
        """As `assert_refused`, but the file is well."""
        self.assertEqual((await self.twistd(more=("--check",))).status, 0)
        output = await self.twistd("-n", "--pidfile=")
        lines = [line for line in output.err.decode().splitlines() if line.startswith("ftd: ")]
        self.assertEqual((output.status, len(lines)), (1, 1), output)
        self.assertNotIn(b"Traceback", output.err + output.out)
        self.assertTrue(lines[0].removeprefix("ftd: ").partition(": ")[2].startswith(where), lines[0])
        for text in says:
            self.assertIn(text, lines[0])

    async def test_the_port_of_the_api_is_taken(self) -> None:
        other = await self.daemon({}).start()
        self.write({"api": {"endpoint": f"tcp:{other.port}:interface=127.0.0.1"}})
        await self.assert_not_started("[api] endpoint: ", "Address already in use")

    async def test_the_port_of_a_link_is_taken(self) -> None:
        other = await self.daemon({}).start()
        self.write({"pair demo": secondary(other.port)})
        await self.assert_not_started("[pair demo] link: ", "Address already in use")

    async def test_the_state_directory_is_in_use(self) -> None:
        other = await self.daemon({}).start()
        self.write({"ftd": {"state-dir": str(other.directory / "var")}})
        await self.assert_not_started("[ftd] state-dir: ", "in use by another ftd")
        # The one that has it does not mind.
        self.assertEqual((await other.http.request("GET", "/healthz")).status, 200)

    async def test_the_state_directory_cannot_be_one(self) -> None:
        self.directory.joinpath("var").write_text("a file")
        self.write({"pair demo": primary(free_port())})
        await self.assert_not_started("[ftd] state-dir: ")

    async def test_a_socket_in_a_directory_that_is_not_there(self) -> None:
        self.write({"api": {"endpoint": "unix:nowhere/api.sock"}})
        await self.assert_not_started("[api] endpoint: ")


class BackgroundTests(ConfigCase):
    """Without ``-n`` it goes into the background, once nothing can be refused any more."""

    async def start(self) -> Output:
        return await self.twistd("--pidfile", "ftd.pid", "--logfile", "ftd.log")

    async def test_it_runs_in_the_background(self) -> None:
        link = free_port()
        self.write({"pair demo": primary(link), "pair standby": secondary(link, name="demo", ack="applied")})
        output = await self.start()
        pid_file = self.directory / "ftd.pid"
        self.assertEqual(output.status, 0, output)
        pid = int(pid_file.read_text())
        self.addCleanup(self.end, pid)
        client = HttpClient(f"http://127.0.0.1:{self.port}")
        await until(lambda: self.is_ready(client), "it is ready")
        self.assertEqual((await client.request("PUT", "/v1/pairs/demo/checkpoint", b"state")).status, 200)
        # Relative paths mean what they meant when it was started.
        (file,) = (self.directory / "var" / "pairs" / "standby" / "checkpoints").iterdir()
        self.assertEqual(file.read_bytes(), b"state")
        self.assertIn("API on", (self.directory / "ftd.log").read_text())
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not pid_file.exists(), "it has ended")

    async def is_ready(self, client: HttpClient) -> bool:
        try:
            return (await client.request("GET", "/readyz")).status == 200
        except NoAnswer:
            return False

    def end(self, pid: int) -> None:
        """Kill the daemon, if it is still there and no other process."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"ftd.conf" in command:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            pass

    async def test_what_is_wrong_is_told_before_it_goes_there(self) -> None:
        self.write({"pair demo": {**primary(1), "frame-size": "64MB"}})
        output = await self.start()
        self.assertEqual(output.status, 1)
        self.assertTrue(output.err.startswith(b"ftd: ftd.conf: [pair demo] frame-size: "), output)
        self.assertEqual(len(output.err.splitlines()), 1)

    async def test_a_port_that_is_taken_is_told_before_it_goes_there(self) -> None:
        other = await self.daemon({}).start()
        self.write({"pair demo": secondary(other.port)})
        output = await self.start()
        self.assertEqual(output.status, 1)
        self.assertIn(b"[pair demo] link: cannot listen there", output.err)
        self.assertFalse((self.directory / "ftd.pid").exists())
