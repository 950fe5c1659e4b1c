"""What a standby's store takes, what it refuses, and what RAM is afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from ftd.sinks.sink import SinkError
from ftd.test.vm.records_case import FULL, PAGES, THEIRS, FakeRam, Payload, delta
from ftd.test.vm.store_case import LIMIT, Said, StoreTestCase, after, payload
from ftd.vm.discovery import Backend
from ftd.vm.encoding import Encoding
from ftd.vm.record_reader import RecordReader
from ftd.vm.standby_slot import Slot
from ftd.vm.standby_store import StandbyStore
from ftd.wire.errors import ErrorCode

_FIRST = (Said(pages=(1, 2, 70)), Said(zeros=((2, 1), (80, 4))), Said(pages=(2, 95), seed=1))


class TakingTests(StoreTestCase):
    """Checkpoints that are right."""

    def test_a_full_one(self) -> None:
        for encoding in Encoding:
            self.ram = FakeRam()
            self.take(payload(FULL, *_FIRST, encoding=encoding))
            self.check_ram(after(None, *_FIRST))
            self.check_held(1)
            self.assertEqual(self.store.held, FULL)

    def test_a_full_one_that_mentions_no_page_or_all(self) -> None:
        for said in (Said(), Said(pages=tuple(range(PAGES))), Said(zeros=((0, PAGES),)), Said(pages=(0, PAGES - 1))):
            self.ram = FakeRam()
            self.take(payload(FULL, said))
            self.check_ram(after(None, said))

    def test_deltas(self) -> None:
        ram = after(None, *_FIRST)
        self.take(payload(FULL, *_FIRST))
        for number in range(2, 8):
            said = (Said(pages=(number, 70), seed=number), Said(zeros=((number, 2),)), Said(pages=(number + 1,)))
            ram = after(ram, *said)
            device = b"device %d" % number
            self.take(payload(delta(number), *said, device=device, encoding=Encoding(number % 2)))
            self.check_ram(ram)
            self.check_held(number, device)

    def test_a_delta_that_skips_numbers(self) -> None:
        self.take(payload(FULL))
        self.take(payload(delta(9, base=1)))
        self.check_held(9)

    def test_what_is_said_last_counts(self) -> None:
        said = (
            Said(pages=(1, 2, 3)),
            Said(pages=(2,), seed=1),
            Said(zeros=((3, 1), (5, 2))),
            Said(pages=(5,), seed=2),
            Said(zeros=((1, 1),)),
        )
        self.take(payload(FULL, *said))
        self.check_ram(after(None, *said))
        self.take(payload(delta(2), *reversed(said)))
        self.check_ram(after(after(None, *said), *reversed(said)))

    def test_a_new_generation(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.take(payload(attrs.evolve(FULL, generation=THEIRS), Said(pages=(4,))))
        self.check_ram(after(None, Said(pages=(4,))))
        self.take(payload(attrs.evolve(delta(2), generation=THEIRS), Said(pages=(5,))))
        self.check_ram(after(None, Said(pages=(4, 5))))

    def test_what_is_known_of_it(self) -> None:
        data = payload(FULL)
        self.assertEqual((self.store.held, self.store.committed_at, self.store.bytes), (None, 0.0, 0))
        self.write(data)
        self.assertEqual(self.store.commit(7, "0123456789abcdef"), FULL)
        self.assertEqual((self.store.committed_at, self.store.bytes, self.store.is_applied), (1000.0, len(data), False))
        held = self.store.checkpoint
        assert held is not None
        self.assertEqual((held.id, held.xxh3), (7, "0123456789abcdef"))
        self.store.apply(self.ram)
        self.assertTrue(self.store.is_applied)

    def test_byte_by_byte(self) -> None:
        self.write(payload(FULL, *_FIRST), step=1)
        self.store.commit()
        self.store.apply(self.ram)
        self.check_ram(after(None, *_FIRST))


class OpenTests(StoreTestCase):
    """Until it is committed, nothing of a transaction is anywhere."""

    def setUp(self) -> None:
        super().setUp()
        self.take(payload(FULL, *_FIRST, device=b"first"))
        self.meta = (self.directory / "meta").read_bytes()
        self.ram.calls.clear()

    def check_untouched(self) -> None:
        self.check_held(1, b"first")
        self.check_ram(after(None, *_FIRST))
        self.assertEqual(self.ram.calls, [])
        self.assertEqual((self.directory / "meta").read_bytes(), self.meta)
        self.assertTrue(self.store.is_applied)

    def test_written_and_aborted(self) -> None:
        for header in (delta(2), FULL, attrs.evolve(FULL, generation=THEIRS)):
            self.write(payload(header, Said(pages=(1, 2, 3), seed=9), device=b"second"))
            self.check_untouched()
            self.store.abort()
            self.check_untouched()
        self.take(payload(delta(2), Said(pages=(4,))))
        self.check_ram(after(after(None, *_FIRST), Said(pages=(4,))))

    def test_a_new_one_begins_before_the_end_of_the_last(self) -> None:
        whole = payload(delta(2), Said(pages=(1, 2, 3), seed=9))
        self.write(whole[:-5])
        self.check_untouched()
        self.take(whole)
        self.check_ram(after(after(None, *_FIRST), Said(pages=(1, 2, 3), seed=9)))

    def test_cut_anywhere(self) -> None:
        whole = payload(delta(2), Said(pages=(1,), seed=9), device=b"second")
        for size in (0, 1, 15, 16, 400, 1000, 4000, len(whole) - 1):
            self.write(whole[:size])
            failure = self.store.failure()
            assert failure is not None
            self.assertIs(failure.code, ErrorCode.RECV_PAYLOAD)
            self.assertIs(self.assertRaises(SinkError, self.store.commit).code, ErrorCode.RECV_PAYLOAD)
            self.check_untouched()

    def test_a_refused_one(self) -> None:
        self.write(payload(delta(3), device=b"second"))
        self.assertRaises(SinkError, self.store.commit)
        self.check_untouched()
        self.assertIsNone(self.store.failure())

    def test_nothing_is_begun(self) -> None:
        self.store.write(b"stray")
        self.store.abort()
        self.assertIsNone(self.store.failure())
        self.check_untouched()


class RefusalTests(StoreTestCase):
    """What cannot be committed, and that this is known before the acknowledgement."""

    def check_refused(self, data: bytes, part: str, code: ErrorCode = ErrorCode.STATE_INVALID) -> None:
        self.write(data)
        failure = self.store.failure()
        assert failure is not None
        self.assertIs(failure.code, code, failure)
        self.assertIn(part, failure.detail)
        raised = self.assertRaises(SinkError, self.store.commit)
        self.assertEqual((raised.code, raised.detail), (failure.code, failure.detail))

    def test_nothing_is_held(self) -> None:
        self.check_refused(payload(delta(2)), "checkpoint 2 is based on 1, but none is held")

    def test_another_base(self) -> None:
        self.take(payload(FULL))
        self.take(payload(delta(2)))
        self.check_refused(payload(delta(2)), "checkpoint 2 is based on 1")
        self.check_refused(payload(delta(4)), "but 2 of 6f9c4a0e")
        self.take(payload(delta(3)))

    def test_another_generation(self) -> None:
        self.take(payload(FULL))
        self.check_refused(payload(attrs.evolve(delta(2), generation=THEIRS)), f"of generation {THEIRS}")

    def test_not_applied(self) -> None:
        self.commit(payload(FULL))
        self.check_refused(payload(delta(2)), "still being applied")
        self.store.apply(self.ram)
        self.take(payload(delta(2)))

    def test_a_full_one_over_one_that_is_not_applied(self) -> None:
        self.commit(payload(FULL, Said(pages=(1,))))
        self.take(payload(attrs.evolve(FULL, generation=THEIRS), Said(pages=(2,))))
        self.check_ram(after(None, Said(pages=(2,))))

    def test_nothing_is_committed_while_one_is_applied(self) -> None:
        """Its slot is being read, and after it RAM is to be what is held."""
        store = self.store
        failures: list[object] = []

        class SlowRam(FakeRam):
            def put(self, numbers: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
                for header in (FULL, delta(2)):
                    store.begin()
                    store.write(payload(header, Said(pages=(3,), seed=5)))
                    failures.append(store.failure())
                super().put(numbers, pages)

        self.commit(payload(FULL, Said(pages=(1,))))
        ram = SlowRam()
        self.store.apply(ram)
        self.assertEqual([type(failure) for failure in failures], [SinkError, SinkError])
        self.check_ram(after(None, Said(pages=(1,))), ram)
        # The one that is open came whole, and nothing stands against it any more.
        self.assertIsNone(self.store.failure())
        self.store.commit()
        self.store.apply(ram)
        self.check_ram(after(None, Said(pages=(1,)), Said(pages=(3,), seed=5)), ram)

    def test_another_vm(self) -> None:
        self.check_refused(payload(attrs.evolve(FULL, fingerprint="other")), "give both the same command line")
        other = attrs.evolve(FULL, ram=(("ram0", 64 << 20), ("ram1", 2 << 20)))
        self.check_refused(payload(other), "ram0 of 64 MiB, ram1 of 2 MiB, the standby's VM has")

    def test_an_unknown_vm(self) -> None:
        self.store = StandbyStore(self.directory, limit=LIMIT)
        self.addCleanup(self.store.close)
        self.store.load()
        self.check_refused(payload(FULL), "not known yet")
        self.store.expect(FULL.fingerprint, self.backends)
        self.take(payload(FULL))

    def test_it_is_known_as_soon_as_the_header_is_there(self) -> None:
        self.write(Payload(delta(2)).data)
        failure = self.store.failure()
        assert failure is not None
        self.assertIn("none is held", failure.detail)
        self.store.write(bytes(1000))
        self.assertIs(self.store.failure(), failure)

    def test_too_many_pages(self) -> None:
        self.take(payload(FULL))
        every = Said(pages=tuple(range(PAGES)))
        self.take(payload(delta(2), every, every, every, every))
        self.check_refused(
            payload(delta(3), every, every, every, every, Said(pages=(1,))), "limit", ErrorCode.REALLOC_BUF
        )
        self.check_held(2)

    def test_too_much_device_state(self) -> None:
        self.take(payload(FULL, device=bytes(64 * 1024)))
        self.check_refused(payload(delta(2), device=bytes(64 * 1024 + 1)), "qemu-device-limit", ErrorCode.REALLOC_BUF)

    def test_damage(self) -> None:
        self.check_refused(payload(FULL) + b"x", "follow the end", ErrorCode.STATE_INVALID)
        self.check_refused(b"GET / HTTP/1.1\r\n", "is not known", ErrorCode.RECV_PAYLOAD)

    def test_a_full_file_system(self) -> None:
        def full(*_arguments: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "posix_fallocate", full)
        self.check_refused(payload(FULL, Said(pages=(1,))), "No space left on device", ErrorCode.FLUSH)

    def test_no_memory(self) -> None:
        def starve(_reader: RecordReader, _data: bytes) -> None:
            raise MemoryError

        self.patch(RecordReader, "feed", starve)
        self.check_refused(payload(FULL), "no memory left", ErrorCode.FLUSH)

    def test_meta_cannot_be_written(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.write(payload(delta(2), Said(pages=(1,), seed=5)))

        def refuse(_old: object, _new: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        refusing = self.patch(os, "rename", refuse)
        self.assertIs(self.assertRaises(SinkError, self.store.commit).code, ErrorCode.FLUSH)
        refusing.restore()
        self.check_held(1)
        self.check_ram(after(None, *_FIRST))
        self.take(payload(delta(2), Said(pages=(1,), seed=5)))
        self.commit(payload(delta(3)))
        refusing.patch()
        self.assertIs(self.assertRaises(SinkError, self.store.apply, self.ram).code, ErrorCode.FLUSH)
        refusing.restore()
        self.assertFalse(self.store.is_applied)
        self.store.apply(self.ram)
        self.assertTrue(self.store.is_applied)


class ApplyTests(StoreTestCase):
    """Into RAM."""

    def test_nothing_is_held(self) -> None:
        self.assertRaises(SinkError, self.store.apply, self.ram)
        self.assertRaises(SinkError, self.store.device_state)

    def test_twice_is_once(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.ram.calls.clear()
        self.store.apply(self.ram)
        self.assertEqual(self.ram.calls, [])

    def test_a_ram_of_another_size(self) -> None:
        self.commit(payload(FULL))
        self.assertIn("97 pages", str(self.assertRaises(SinkError, self.store.apply, FakeRam(97))))
        self.assertFalse(self.store.is_applied)

    def test_a_failure_of_ram_passes_and_it_can_be_done_again(self) -> None:
        class FailingRam(FakeRam):
            def put(self, numbers: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
                if self.calls.count("put") == 1:
                    raise OSError(errno.EIO, "gone")
                super().put(numbers, pages)

        self.commit(payload(FULL, *_FIRST))
        ram = FailingRam()
        self.assertRaises(OSError, self.store.apply, ram)
        self.assertFalse(self.store.is_applied)
        self.store.apply(self.ram)
        self.check_ram(after(None, *_FIRST))

    def test_a_delta_touches_nothing_else(self) -> None:
        self.take(payload(FULL))
        self.ram.calls.clear()
        self.take(payload(delta(2), Said(pages=(1, 50))))
        self.assertEqual(self.ram.calls, ["put"])

    def test_a_full_one_zeroes_what_it_does_not_mention_and_no_more(self) -> None:
        zeroed: list[list[int]] = []

        class WatchedRam(FakeRam):
            def zero(self, runs: NDArray[np.int64]) -> None:
                zeroed.extend(runs.tolist())
                super().zero(runs)

        self.commit(payload(FULL, Said(pages=(0, 1, 5)), Said(zeros=((6, 2), (8, 2))), Said(pages=(1, 95), seed=1)))
        self.store.apply(WatchedRam())
        self.assertEqual(zeroed, [[2, 3], [10, 85], [6, 2], [8, 2]])


class DeviceTests(StoreTestCase):
    """The device state, which is only held."""

    def test_it_cannot_be_written(self) -> None:
        self.take(payload(FULL))
        self.assertTrue(self.store.device_state().readonly)

    def test_it_stays_while_others_come_in(self) -> None:
        self.take(payload(FULL, device=b"first"))
        state = self.store.device_state()
        self.write(payload(delta(2), device=b"other"))
        self.assertEqual(bytes(state), b"first")
        self.store.commit()
        self.assertEqual(bytes(state), b"first")
        self.assertEqual(bytes(self.store.device_state()), b"other")

    def test_it_stays_after_forgetting_and_closing(self) -> None:
        self.take(payload(FULL, device=b"first"))
        state = self.store.device_state()
        self.store.forget()
        self.store.close()
        self.assertEqual(bytes(state), b"first")


class ForgetTests(StoreTestCase):
    """When RAM is in no state that is known."""

    def test_it_is_gone_for_good(self) -> None:
        self.take(payload(FULL, *_FIRST))
        self.store.forget()
        self.check_held(None)
        self.store.close()
        self.store = self.loaded()
        self.check_held(None)

    def test_deltas_are_refused_and_a_full_one_is_taken(self) -> None:
        self.take(payload(FULL))
        self.store.forget()
        self.write(payload(delta(2)))
        self.assertIn("none is held", str(self.store.failure()))
        self.take(payload(FULL, *_FIRST))
        self.check_ram(after(None, *_FIRST))

    def test_nothing_to_forget(self) -> None:
        self.store.forget()
        self.check_held(None)

    def test_a_full_one_that_is_on_its_way_arrives(self) -> None:
        self.take(payload(FULL))
        self.write(payload(attrs.evolve(FULL, generation=THEIRS), *_FIRST))
        self.store.forget()
        self.assertIsNone(self.store.failure())
        self.store.commit()
        self.store.apply(self.ram)
        self.check_ram(after(None, *_FIRST))

    def test_its_memory_is_given_back_while_the_next_comes_in(self) -> None:
        """In a thread: not where the next one is being written, and not after that was committed."""
        failures: list[object] = []

        def trim(slot: Slot, is_typical: bool) -> None:
            self.assertFalse(is_typical)
            self.write(payload(FULL, *_FIRST))
            self.assertIsNot(self.store._incoming, slot)
            failures.append(self.store.failure())

        self.take(payload(FULL))
        self.patch(Slot, "trim", trim)
        self.store.forget()
        self.assertIsInstance(failures[0], SinkError)
        self.assertIsNone(self.store.failure())
        self.store.commit()
        self.check_held(1)

    def test_a_delta_that_is_on_its_way_does_not(self) -> None:
        self.take(payload(FULL))
        self.write(payload(delta(2)))
        self.store.forget()
        self.assertIn("none is held", str(self.store.failure()))


class VmTests(StoreTestCase):
    """What the standby's VM is, as `expect` is told."""

    def replace_ram(self) -> None:
        """A new file under the old name."""
        path = Path(self.backends[1].path)
        path.rename(path.with_suffix(".old"))
        path.touch()

    def test_the_same_again(self) -> None:
        self.take(payload(FULL))
        self.store.expect(FULL.fingerprint, self.backends)
        self.check_held(1)
        self.assertEqual(self.store.unfit, "")

    def test_another_vm_for_a_while(self) -> None:
        """What is held is not lost because somebody started the wrong VM."""
        self.take(payload(FULL, *_FIRST))
        self.store.expect("other", self.backends)
        self.check_held(1)
        self.assertIn("same command line", self.store.unfit)
        self.store.expect(FULL.fingerprint, self.backends[:1])
        self.assertIn("the standby's VM has ram0", self.store.unfit)
        self.assertRaises(SinkError, self.store.apply, self.ram)
        self.store.expect(FULL.fingerprint, self.backends)
        self.assertEqual(self.store.unfit, "")
        self.take(payload(delta(2)))

    def test_nothing_is_held(self) -> None:
        self.assertEqual(self.store.unfit, "")

    def test_ram_in_a_new_file_is_another_ram(self) -> None:
        self.take(payload(FULL))
        self.replace_ram()
        self.store.expect(FULL.fingerprint, self.backends)
        self.check_held(None)

    def test_also_if_a_delta_is_still_to_be_applied(self) -> None:
        self.take(payload(FULL))
        self.commit(payload(delta(2)))
        self.replace_ram()
        self.store.expect(FULL.fingerprint, self.backends)
        self.check_held(None)

    def test_a_full_one_that_is_still_to_be_applied_is_all_there(self) -> None:
        self.commit(payload(FULL, *_FIRST))
        self.replace_ram()
        self.store.expect(FULL.fingerprint, self.backends)
        self.store.apply(self.ram)
        self.check_ram(after(None, *_FIRST))
        self.store.expect(FULL.fingerprint, self.backends)
        self.check_held(1)

    def test_a_file_that_is_not_there_yet(self) -> None:
        backends = [Backend(name, size, "/nowhere/" + name) for name, size in FULL.ram]
        self.store.expect(FULL.fingerprint, backends)
        self.take(payload(FULL))
        self.store.expect(FULL.fingerprint, backends)
        self.check_held(1)


class DirectoryTests(StoreTestCase):
    """It has the guest's memory in it."""

    def test_it_is_made(self) -> None:
        directory = Path(self.mktemp()) / "ftd" / "pair"
        self.loaded(directory)
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)
        for file in directory.iterdir():
            self.assertEqual(file.stat().st_mode & 0o777, 0o600, file)

    def test_one_that_others_may_read_is_refused(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        directory.chmod(0o755)
        error = self.assertRaises(SinkError, self.loaded, directory)
        self.assertIn("chmod 700", error.detail)

    def test_one_that_leads_elsewhere_is_refused(self) -> None:
        directory = Path(self.mktemp())
        directory.symlink_to(self.directory)
        self.assertRaises(SinkError, self.loaded, directory)

    def test_a_file_is_refused(self) -> None:
        directory = Path(self.mktemp())
        directory.touch()
        self.assertRaises(SinkError, self.loaded, directory)

    def test_files_that_lead_elsewhere_are_refused(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir(mode=0o700)
        (directory / "slot-0.pages").symlink_to((self.directory / "victim").absolute())
        self.assertRaises(SinkError, self.loaded, directory)
        self.assertFalse((self.directory / "victim").exists())

    def test_what_is_in_it(self) -> None:
        self.take(payload(FULL))
        self.assertEqual(
            self.files(),
            ["meta", *sorted(f"slot-{slot}.{kind}" for slot in (0, 1) for kind in ("pages", "index", "device"))],
        )
