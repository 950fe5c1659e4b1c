"""What a new ftd finds of what the one before was sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ftd.test.vm.records_case import FULL, FakeRam, delta
from ftd.test.vm.store_case import Said, StoreTestCase, after, payload
from ftd.test.wire.profile import examples
from ftd.vm import standby_store
from ftd.vm.standby_store import HeldCheckpoint

_FIRST = (Said(pages=(1, 2, 70)), Said(zeros=((2, 1), (80, 4))), Said(pages=(2, 95), seed=1))


class LoadTests(StoreTestCase):
    """A store is left as it is, and found again."""

    def reload(self) -> None:
        self.store.close()
        self.store = self.loaded()

    def check_lost(self) -> None:
        """Nothing is held, also for the one after, and a full one makes it all good."""
        for _ in range(2):
            self.reload()
            self.check_held(None)
        self.ram = FakeRam()
        self.take(payload(FULL, *_FIRST))
        self.check_ram(after(None, *_FIRST))

    def damage(self, name: str, at: int = 0) -> None:
        """Another byte in a file of the slot that is held."""
        assert self.store.checkpoint is not None
        with (self.directory / f"slot-{self.store.checkpoint.slot}.{name}").open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    def test_nothing(self) -> None:
        self.reload()
        self.check_held(None)

    def test_applied(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.take(payload(delta(2), Said(pages=(3,)), device=b"second"))
        held = self.store.checkpoint
        self.reload()
        self.assertEqual(self.store.checkpoint, held)
        self.check_held(2, b"second")
        self.assertTrue(self.store.is_applied)
        self.ram.calls.clear()
        self.store.apply(self.ram)
        self.assertEqual(self.ram.calls, [])
        self.take(payload(delta(3), Said(pages=(4,))))
        self.check_ram(after(after(None, *_FIRST), Said(pages=(3, 4))))

    def test_staged(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.commit(payload(delta(2), Said(pages=(3,)), Said(zeros=((70, 1),)), device=b"second"))
        for _ in range(2):
            self.reload()
            self.check_held(2, b"second")
            self.assertFalse(self.store.is_applied)
        self.store.apply(self.ram)
        self.check_ram(after(after(None, *_FIRST), Said(pages=(3,)), Said(zeros=((70, 1),))))

    def test_a_staged_full_one(self) -> None:
        self.commit(payload(FULL, *_FIRST))
        self.reload()
        self.store.apply(self.ram)
        self.check_ram(after(None, *_FIRST))

    def test_what_was_coming_in_is_gone(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.write(payload(delta(2), Said(pages=(1,), seed=5)))
        self.reload()
        self.check_held(1)
        self.assertTrue(self.store.is_applied)
        self.assertIsNone(self.store.failure())
        self.take(payload(delta(2)))
        self.check_ram(after(None, *_FIRST))

    def test_no_memory_is_kept_that_nobody_knows_of(self) -> None:
        """Not that of a transaction that was coming in, of pages that are applied, nor of damaged files."""
        every = [Said(pages=tuple(range(96)))] * 3

        def allocated() -> int:
            return sum(path.stat().st_blocks * 512 for path in self.directory.iterdir())

        self.take(payload(FULL, *every))
        self.write(payload(delta(2), *every))
        self.reload()
        self.check_held(1)
        self.assertLess(allocated(), 1 << 18)
        self.commit(payload(FULL, *every))
        self.write(payload(FULL, *every))
        self.damage("index")
        self.reload()
        self.check_held(None)
        self.assertEqual(allocated(), 0)

    def test_meta_is_damaged(self) -> None:
        path = self.directory / "meta"
        self.take(payload(FULL))
        text = path.read_text()
        good = json.loads(text)
        broken = [
            "",
            "{",
            "[]",
            "null",
            "[" * 100000,
            text[:-1],
            *(json.dumps({**good, name: None}) for name in good),
            *(json.dumps({key: good[key] for key in good if key != name}) for name in good),
            json.dumps({**good, "version": 2}),
            json.dumps({**good, "more": 1}),
            json.dumps({**good, "slot": 2}),
            json.dumps({**good, "extents": good["extents"][:2]}),
            json.dumps({**good, "extents": [{**good["extents"][0], "size": -1}, *good["extents"][1:]]}),
            json.dumps({**good, "extents": [{**good["extents"][0], "size": 1e999}, *good["extents"][1:]]}),
        ]
        for one in broken:
            path.write_text(one)
            self.reload()
            self.assertIsNone(self.store.held, one[:500])
            self.assertFalse(path.exists())

    def test_meta_is_not_text(self) -> None:
        (self.directory / "meta").write_bytes(b"\xff\xfe")
        self.check_lost()

    @given(st.data())
    @examples(150)
    def test_any_damage_of_meta(self, data: st.DataObject) -> None:
        self.take(payload(FULL))
        path = self.directory / "meta"
        text = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        path.write_bytes(text)
        self.reload()
        assert self.store.checkpoint is None or isinstance(self.store.checkpoint, HeldCheckpoint)

    def test_the_device_state_is_damaged(self) -> None:
        self.take(payload(FULL))
        self.damage("device", 3)
        self.check_lost()

    def test_staged_pages_are_damaged(self) -> None:
        self.commit(payload(FULL, *_FIRST))
        self.damage("pages", 5000)
        self.check_lost()

    def test_a_staged_index_is_damaged(self) -> None:
        self.commit(payload(FULL, *_FIRST))
        self.damage("index", 9)
        self.check_lost()

    def test_pages_that_are_applied_are_not_needed(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.damage("pages", 5000)
        self.damage("index", 9)
        self.reload()
        self.check_held(1)

    def test_a_file_is_gone(self) -> None:
        for name in ("pages", "index", "device"):
            self.commit(payload(FULL, *_FIRST))
            assert self.store.checkpoint is not None
            (self.directory / f"slot-{self.store.checkpoint.slot}.{name}").unlink()
            self.check_lost()

    def test_a_file_was_cut(self) -> None:
        for name in ("pages", "index", "device"):
            self.commit(payload(FULL, *_FIRST))
            assert self.store.checkpoint is not None
            slot = self.store.checkpoint.slot
            self.store.close()
            os.truncate(self.directory / f"slot-{slot}.{name}", 1)
            self.check_lost()

    def test_another_limit(self) -> None:
        """What is held stays as long as it fits."""
        self.commit(payload(FULL, *_FIRST))
        for limit in (1 << 30, 1 << 20):
            self.store.close()
            self.store = self.loaded(limit=limit)
            self.check_held(1)
        self.store.close()
        self.store = self.loaded(limit=3 * 4096)
        self.check_held(None)

    def test_the_machine_was_restarted(self) -> None:
        """Its memory, and so the guest's RAM, is not what it was."""
        self.take(payload(FULL))
        boot = Path(self.mktemp())
        boot.write_text("another\n")
        self.patch(standby_store, "_BOOT_ID", boot)
        self.check_lost()

    def test_a_system_that_does_not_tell(self) -> None:
        self.patch(standby_store, "_BOOT_ID", Path(self.mktemp()))
        self.reload()
        self.take(payload(FULL))
        self.reload()
        self.check_held(1)

    def test_ram_was_replaced_meanwhile(self) -> None:
        self.take(payload(FULL))
        path = Path(self.backends[0].path)
        path.rename(path.with_suffix(".old"))
        path.touch()
        self.check_lost()
