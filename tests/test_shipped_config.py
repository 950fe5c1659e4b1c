"""``etc/ftd.conf`` as shipped: one command runs it, ``curl`` pushes a file, the standby has the same bytes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import xxhash

from tests.case import EndToEndCase, run
from tests.daemon import environment, twistd
from tests.shipped import ShippedDaemon


class ShippedConfigTests(EndToEndCase):
    """What somebody does who has just cloned ftd."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.shipped = ShippedDaemon(Path(self.mktemp()).absolute())
        self.addCleanup(self.shipped.remove)
        await self.shipped.start()
        await self.shipped.until_up()

    async def test_a_pushed_file_comes_back_from_the_standby(self) -> None:
        file = Path(sys.executable).resolve()
        state = file.read_bytes()
        api = f"{self.shipped.url}/v1/pairs"
        commit = await self.curl_json("-T", str(file), f"{api}/demo/checkpoint")
        self.assertEqual((commit["id"], commit["bytes"]), (0, len(state)))
        self.assertEqual(commit["seq"], -(-len(state) // (256 * 1024)))
        latest = await self.curl("--fail", f"{api}/demo-standby/checkpoints/latest")
        self.assertEqual(hashlib.sha256(latest.out).hexdigest(), hashlib.sha256(state).hexdigest())
        listed = (await self.curl_json(f"{api}/demo-standby/checkpoints"))["checkpoints"]
        self.assertEqual([(c["number"], c["id"], c["bytes"]) for c in listed], [(1, 0, len(state))])
        self.assertEqual(listed[0]["xxh3"], xxhash.xxh3_64_hexdigest(state))
        by_number = await self.curl("--fail", "--range", "1000-1999", f"{api}/demo-standby/checkpoints/1")
        self.assertEqual(by_number.out, state[1000:2000])

    async def test_it_is_ready_and_both_halves_are_up(self) -> None:
        self.assertEqual(await self.curl_json(f"{self.shipped.url}/readyz"), {"ready": True})
        entrance = await self.curl_json(f"{self.shipped.url}/v1")
        self.assertEqual((entrance["name"], entrance["pairs"]), ("ftd", ["demo", "demo-standby"]))
        pairs = (await self.curl_json(f"{self.shipped.url}/v1/pairs"))["pairs"]
        self.assertEqual(
            [(pair["name"], pair["role"], pair["link_state"]) for pair in pairs],
            [("demo", "primary", "up"), ("demo-standby", "secondary", "up")],
        )

    async def test_it_needs_and_makes_nothing_outside_of_var(self) -> None:
        await self.shipped.push("demo", b"a state")
        made = {path.name for path in self.shipped.configuration.parent.iterdir()}
        self.assertEqual(made, {"ftd.conf", "var"})
        checkpoints = self.shipped.configuration.parent / "var" / "pairs" / "demo-standby" / "checkpoints"
        self.assertEqual([path.read_bytes() for path in checkpoints.iterdir()], [b"a state"])

    async def test_it_is_found_without_being_named(self) -> None:
        _python, *arguments = twistd("ftd", "--check")
        done = await run(sys.executable, *arguments, directory=self.shipped.directory, env=environment())
        self.assertEqual((done.status, done.out, done.err), (0, b"etc/ftd.conf: ok, 2 pairs\n", b""))
