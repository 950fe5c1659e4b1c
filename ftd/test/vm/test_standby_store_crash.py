"""
A store whose ftd is killed at every single step of taking and applying a checkpoint.

A step is a system call, a piece of payload or a piece of RAM.  Whichever it is, what is found afterwards is the
checkpoint before or the one after, whole; after `apply` RAM is in its state; and it goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import attrs
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from numpy.typing import NDArray

from ftd.test.vm.records_case import FULL, PAGES, THEIRS, FakeRam, delta
from ftd.test.vm.store_case import Said, StoreTestCase, after, payload
from ftd.test.wire.profile import examples
from ftd.vm import standby_slot
from ftd.vm.encoding import Encoding
from ftd.vm.records import CheckpointHeader

_FIRST = (Said(pages=(1, 2, 70)), Said(zeros=((2, 1), (80, 4))), Said(pages=(2, 95), seed=1))
_SECOND = (Said(pages=(1, 50), seed=2), Said(zeros=((2, 1), (70, 1))), Said(pages=(70,), seed=2))


class Crash(BaseException):
    """The process is killed."""


@attrs.define
class Fate:
    """
    Kills the process at a step.

    :ivar log: the steps that were taken.
    :ivar at: the number of the one before which it dies.
    """

    log: list[str] = attrs.field(factory=list)
    at: int | None = None

    def step(self, name: str) -> None:
        """Something is about to be done that others would see."""
        if self.at is not None and len(self.log) >= self.at:
            raise Crash
        self.log.append(name)


class FatedRam(FakeRam):
    """RAM that is written page by page, so that a crash leaves some of it."""

    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self.fate = fate

    def put(self, numbers: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
        for at in range(len(numbers)):
            self.fate.step("put")
            super().put(numbers[at : at + 1], pages[at : at + 1])

    def zero(self, runs: NDArray[np.int64]) -> None:
        for at in range(len(runs)):
            self.fate.step("zero")
            super().zero(runs[at : at + 1])


class FatedTestCase(StoreTestCase):
    """A store that can be killed."""

    def setUp(self) -> None:
        self.fate = Fate()
        for name in ("open", "ftruncate", "posix_fallocate", "write", "rename", "unlink"):
            self.patch(os, name, self.fated(name, getattr(os, name)))
        # So that memory is given back after every full checkpoint.
        self.patch(standby_slot, "WARM", 0)
        super().setUp()
        self.ram = FatedRam(self.fate)

    def fated(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            # Trial's own files, and those of the interpreter, are not the store's.
            if any(str(self.directory) in str(argument) for argument in arguments) or name in (
                "ftruncate",
                "posix_fallocate",
                "write",
            ):
                self.fate.step(name)
            return call(*arguments, **options)

        return step

    def send(self, data: bytes) -> None:
        """Take it, in pieces of a page."""
        self.store.begin()
        for first in range(0, len(data), 4096):
            self.fate.step("piece")
            self.store.write(data[first : first + 4096])
        self.store.commit()
        self.store.apply(self.ram)

    def die(self, at: int | None, do: Callable[[], None]) -> bool:
        """Do something and be killed before that step; whether it came to that.  Then there is a new ftd."""
        self.fate.log.clear()
        self.fate.at = at
        try:
            do()
            return False
        except Crash:
            return True
        finally:
            self.fate.at = None
            steps = self.fate.log.copy()
            self.store.close()
            self.store = self.loaded()
            self.fate.log[:] = steps


class CrashTests(FatedTestCase):
    """One checkpoint, killed everywhere."""

    def check_every_step(
        self, before: Sequence[bytes], old: NDArray[np.uint64] | None, data: bytes, new: NDArray[np.uint64], number: int
    ) -> None:
        """``data`` comes after the checkpoints ``before``; RAM was ``old`` and becomes ``new``."""
        seen: set[tuple[int | None, bool]] = set()
        at, is_over = 0, False
        held_before: int | None = None
        while not is_over:
            self.store.forget()
            self.ram.content = FakeRam().content
            for one in before:
                self.send(one)
            held_before = None if self.store.held is None else self.store.held.number
            is_over = not self.die(at, lambda: self.send(data))
            held = None if self.store.held is None else self.store.held.number
            seen.add((held, self.store.is_applied))
            self.assertIn(held, (held_before, number), self.fate.log[-1:])
            if held is not None:
                # It may die once more while it makes good.
                self.die(at % 7, lambda: self.store.apply(self.ram))
                self.store.apply(self.ram)
                expected = new if held == number else old
                assert expected is not None
                self.check_ram(expected)
            if held == number:
                self.check_held(number, b"new")
                assert self.store.held is not None
                following = attrs.evolve(self.store.held, number=number + 1, base=number)
                self.send(payload(following, Said(pages=(9,), seed=7)))
                self.check_ram(after(new, Said(pages=(9,), seed=7)))
            at += 1
        before_state = (None, False) if old is None else (held_before, True)
        self.assertEqual(seen, {before_state, (number, False), (number, True)})
        self.assertGreater(at, 9)

    def test_the_first_one(self) -> None:
        self.check_every_step([], None, payload(FULL, *_FIRST, device=b"new"), after(None, *_FIRST), 1)

    def test_a_delta(self) -> None:
        first = after(None, *_FIRST)
        data = payload(delta(2), *_SECOND, device=b"new")
        self.check_every_step([payload(FULL, *_FIRST)], first, data, after(first, *_SECOND), 2)

    def test_a_delta_on_a_delta(self) -> None:
        second = after(after(None, *_FIRST), *_SECOND)
        said = (Said(pages=(2, 3), seed=3),)
        data = payload(delta(3), *said, device=b"new", encoding=Encoding.ZSTD)
        before = [payload(FULL, *_FIRST), payload(delta(2), *_SECOND)]
        self.check_every_step(before, second, data, after(second, *said), 3)

    def test_a_full_one_over_another(self) -> None:
        header = attrs.evolve(FULL, generation=THEIRS, number=5)
        data = payload(header, *_SECOND, device=b"new")
        self.check_every_step([payload(FULL, *_FIRST)], after(None, *_FIRST), data, after(None, *_SECOND), 5)

    def test_while_loading(self) -> None:
        """What is found is not touched."""
        self.take(payload(FULL, *_FIRST))
        self.commit(payload(delta(2), *_SECOND))
        at = 0
        while self.die(at, self.load_another):
            self.check_held(2)
            self.assertFalse(self.store.is_applied)
            at += 1
        self.assertGreater(at, 5)
        self.store.apply(self.ram)
        self.check_ram(after(after(None, *_FIRST), *_SECOND))

    def load_another(self) -> None:
        self.loaded().close()

    def test_while_forgetting(self) -> None:
        at = 0
        self.take(payload(FULL, *_FIRST))
        while self.die(at, self.store.forget):
            self.assertIn(None if self.store.held is None else self.store.held.number, (None, 1))
            self.take(payload(FULL, *_FIRST))
            at += 1
        self.check_held(None)


class LifeTests(FatedTestCase):
    """Any checkpoints, any crashes, in any order."""

    def test_life(self) -> None:
        case = self

        class Life(RuleBasedStateMachine):
            """
            :ivar states: of RAM, by the number of the checkpoint.
            """

            @initialize()
            def start(self) -> None:
                case.store.forget()
                case.ram.content = FakeRam().content
                self.states: dict[int, NDArray[np.uint64]] = {}
                self.number = 0

            said = st.lists(
                st.one_of(
                    st.builds(
                        lambda pages, seed: Said(pages=tuple(sorted(pages)), seed=seed),
                        st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=10),
                        st.integers(1, 100),
                    ),
                    st.builds(
                        lambda first, count: Said(zeros=((first, count),)),
                        st.integers(0, PAGES - 6),
                        st.integers(1, 6),
                    ),
                ),
                max_size=4,
            )

            @rule(
                said=said,
                is_full=st.booleans(),
                encoding=st.sampled_from(Encoding),
                at=st.one_of(st.none(), st.integers(0, 60)),
            )
            def checkpoint(self, said: list[Said], is_full: bool, encoding: Encoding, at: int | None) -> None:
                held = case.store.held
                number = self.number + 1
                base = None if is_full or held is None else held.number
                header: CheckpointHeader = attrs.evolve(FULL, number=number, base=base)
                before = None if base is None else self.states[base]
                self.states[number] = after(before, *said)
                device = b"%d" % number
                is_cut = case.die(at, lambda: case.send(payload(header, *said, device=device, encoding=encoding)))
                now = case.store.held
                if now is not None and now.number == number:
                    self.number = number
                else:
                    case.assertTrue(is_cut)
                    case.assertEqual(now, held)
                self.check(at)

            @rule(data=st.binary(max_size=30), is_aborted=st.booleans())
            def noise(self, data: bytes, is_aborted: bool) -> None:
                case.store.begin()
                case.store.write(data)
                if is_aborted:
                    case.store.abort()
                self.check(None)

            def check(self, at: int | None) -> None:
                held = case.store.held
                if held is None:
                    return
                if at is not None:
                    case.die(at // 2, lambda: case.store.apply(case.ram))
                case.store.apply(case.ram)
                case.check_ram(self.states[held.number])
                case.check_held(held.number, b"%d" % held.number)

        run_state_machine_as_test(Life, settings=examples(25, steps=15))
