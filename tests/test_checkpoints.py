"""Whole checkpoints: what is pushed at a primary is what its standby has, for as long as it keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import xxhash

from tests.case import EndToEndCase, SharedDaemonCase
from tests.daemon import Json, Section, free_port, primary, problem, secondary
from tests.state import state_of

_FRAME = 4096


def _pair(name: str, **keys: str) -> Mapping[str, Section]:
    """Both halves of a pair in one daemon, the second one named ``NAME-standby``."""
    port = free_port()
    return {
        name: primary(port, frame_size="4KiB", **{key: keys[key] for key in keys if key == "byte_order"}),
        f"{name}-standby": secondary(port, name=name, **keys),
    }


class CheckpointTests(SharedDaemonCase):
    """In one daemon: sinks, sizes, downloads."""

    pairs: ClassVar[Mapping[str, Section]] = {
        **_pair("disk", ack="applied", keep="3"),
        **_pair("early", ack="received", keep="3"),
        **_pair("memory", sink="memory", keep="3"),
        **_pair("big-endian", byte_order="big", keep="3"),
    }

    async def push_and_compare(self, name: str, state: bytes) -> Json:
        """Push a checkpoint; the standby's entry for it, once all about it has been compared."""
        before = await self.shared.checkpoints(f"{name}-standby")
        commit = (await self.shared.push(name, state)).json()
        self.assertEqual(commit["bytes"], len(state))
        newest = (await self.shared.checkpoints(f"{name}-standby"))[-1]
        self.assertEqual(newest["number"], before[-1]["number"] + 1 if before else 1)
        self.assertEqual((newest["id"], newest["bytes"]), (commit["id"], len(state)))
        self.assertEqual(newest["xxh3"], xxhash.xxh3_64_hexdigest(state))
        self.assertEqual(newest["generation"], (await self.shared.pair(name))["generation"])
        self.assertEqual(await self.shared.checkpoint(f"{name}-standby"), state)
        return newest

    async def test_every_kind_of_standby_has_what_was_pushed(self) -> None:
        for name in ("disk", "early", "memory", "big-endian"):
            await self.push_and_compare(name, state_of(3 * 1024 * 1024 + 17, seed=name))

    async def test_sizes_around_a_frame(self) -> None:
        for size in (0, 1, _FRAME - 1, _FRAME, _FRAME + 1, 10 * _FRAME):
            for name in ("disk", "memory"):
                await self.push_and_compare(name, state_of(size, seed=str(size)))

    async def test_ids_grow_from_commit_to_commit(self) -> None:
        first = (await self.shared.push("disk", b"one")).json()["id"]
        second = (await self.shared.push("disk", b"two")).json()["id"]
        # A heartbeat in between takes an id too.
        self.assertIn(second - first, range(1, 100))

    async def test_both_halves_count_the_same(self) -> None:
        commit = (await self.shared.push("disk", state_of(100_000))).json()
        sender, standby = await self.shared.pair("disk"), await self.shared.pair("disk-standby")
        for half in (sender, standby):
            self.assertEqual(half["last_committed"]["id"], commit["id"])
            self.assertEqual(half["last_committed"]["bytes"], 100_000)
            self.assertEqual((half["has_error"], half["transaction"]), (0, None))
        self.assertEqual(sender["last_committed"]["number"], standby["last_committed"]["number"])
        self.assertEqual(sender["transactions_committed"], standby["transactions_committed"])
        self.assertEqual(sender["generation"], standby["generation"])

    async def test_only_as_many_as_it_keeps_are_there(self) -> None:
        for name in ("disk-standby", "memory-standby"):
            pushed = [state_of(1000, seed=f"kept {number}") for number in range(5)]
            for state in pushed:
                await self.shared.push(name.removesuffix("-standby"), state)
            listed = await self.shared.checkpoints(name)
            self.assertEqual(len(listed), 3)
            numbers = [entry["number"] for entry in listed]
            self.assertEqual(numbers, list(range(numbers[-1] - 2, numbers[-1] + 1)))
            for number, state in zip(numbers, pushed[2:], strict=True):
                self.assertEqual(await self.shared.checkpoint(name, number), state)
            gone = await self.shared.http.request("GET", f"/v1/pairs/{name}/checkpoints/{numbers[0] - 1}")
            problem(gone, 404)

    async def test_parts_of_one(self) -> None:
        state = state_of(50_000, seed="parts")
        await self.shared.push("disk", state)
        path = "/v1/pairs/disk-standby/checkpoints/latest"
        for asked, first, end in (("0-0", 0, 1), ("40000-", 40_000, 50_000), ("-10", 49_990, 50_000)):
            answer = await self.shared.http.request("GET", path, headers={"Range": f"bytes={asked}"})
            self.assertEqual((answer.status, answer.body), (206, state[first:end]))
            self.assertEqual(answer.header("Content-Range"), f"bytes {first}-{end - 1}/50000")
        beyond = await self.shared.http.request("GET", path, headers={"Range": "bytes=50000-"})
        problem(beyond, 416)
        self.assertEqual(beyond.header("Content-Range"), "bytes */50000")

    async def test_a_download_can_be_resumed_and_cached(self) -> None:
        state = state_of(20_000, seed="etag")
        await self.shared.push("memory", state)
        path = "/v1/pairs/memory-standby/checkpoints/latest"
        whole = await self.shared.http.request("GET", path)
        tag = whole.header("ETag")
        self.assertEqual(tag, f'"{xxhash.xxh3_64_hexdigest(state)}"')
        assert tag is not None
        rest = await self.shared.http.request("GET", path, headers={"Range": "bytes=5000-", "If-Range": tag})
        self.assertEqual((rest.status, rest.body), (206, state[5000:]))
        again = await self.shared.http.request("GET", path, headers={"If-None-Match": tag})
        self.assertEqual((again.status, again.body), (304, b""))

    async def test_a_primary_has_no_checkpoints(self) -> None:
        answer = await self.shared.http.request("GET", "/v1/pairs/disk/checkpoints")
        self.assertIn("secondaries", problem(answer, 409)["detail"])

    async def test_a_standby_takes_none(self) -> None:
        answer = await self.shared.http.request("PUT", "/v1/pairs/disk-standby/checkpoint", b"state")
        self.assertIn("primaries", problem(answer, 409)["detail"])


class FilesTests(EndToEndCase):
    """What the directory sink leaves on the disk."""

    async def test_files_hold_the_state_and_nothing_else(self) -> None:
        daemon = await self.daemon({**_pair("demo", ack="applied", keep="2")}).start()
        await daemon.until_up()
        states = [state_of(300_000, seed=str(number)) for number in range(3)]
        for state in states:
            await daemon.push("demo", state)
        listed = await daemon.checkpoints("demo-standby")
        files = daemon.stored_files("demo-standby")
        self.assertEqual([file.read_bytes() for file in files], states[1:])
        for file, checkpoint in zip(files, listed, strict=True):
            self.assertIn(checkpoint["xxh3"], file.name)
            self.assertIn(checkpoint["generation"], file.name)
            self.assertEqual(file.stat().st_mode & 0o077, 0, "nobody else may read a state")

    async def test_they_are_there_after_a_restart(self) -> None:
        daemon = await self.daemon({**_pair("demo", ack="applied")}).start()
        await daemon.until_up()
        states = [state_of(100_000, seed=str(number)) for number in range(3)]
        for state in states:
            await daemon.push("demo", state)
        before = await daemon.checkpoints("demo-standby")
        await daemon.stop()
        await daemon.start()
        self.assertEqual(await daemon.checkpoints("demo-standby"), before)
        for checkpoint, state in zip(before, states, strict=True):
            self.assertEqual(await daemon.checkpoint("demo-standby", checkpoint["number"]), state)
        await daemon.until_up()
        await daemon.push("demo", b"after it")
        after = await daemon.checkpoints("demo-standby")
        self.assertEqual((after[:-1], after[-1]["number"]), (before, 4))
        self.assertEqual(after[-1]["generation"], before[-1]["generation"])

    async def test_nothing_of_a_transaction_is_visible_before_its_commit(self) -> None:
        daemon = await self.daemon({**_pair("demo", ack="applied")}).start()
        await daemon.until_up()
        await daemon.push("demo", b"committed")
        await daemon.http.request("POST", "/v1/pairs/demo/begin")
        state = state_of(5 * 1024 * 1024)
        await daemon.http.request("POST", "/v1/pairs/demo/data", state)
        await daemon.until_pair("demo-standby", state="CONTINUE")
        self.assertEqual(len(await daemon.checkpoints("demo-standby")), 1)
        self.assertEqual(await daemon.checkpoint("demo-standby"), b"committed")
        checkpoints = [file for file in daemon.stored_files("demo-standby") if file.suffix == ".checkpoint"]
        self.assertEqual([file.read_bytes() for file in checkpoints], [b"committed"])
        answer = await daemon.http.request("POST", "/v1/pairs/demo/commit")
        self.assertEqual(answer.status, 200)
        self.assertEqual(await daemon.checkpoint("demo-standby"), state)
