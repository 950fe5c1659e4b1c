"""
What a standby does with checkpoints: kept as they come in, committed at once, then brought into the VM's RAM.

While that is under way the receiver is paused, so the next transaction finds RAM in the state that it is based on.
Whatever touches RAM, or drops what is held, does so one after the other.

A checkpoint that is committed and cannot be brought into RAM (no room, the file has become shorter) stays held: what it
says is still there to be written again, over whatever RAM has now, when there is a QEMU that it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.internet.interfaces import IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.interfaces import IStoringSink
from ftd.sinks.sink import SinkError, cannot_store
from ftd.status import Checkpoint
from ftd.vm.discovery import Vm
from ftd.vm.errors import VmError
from ftd.vm.ram import GuestRam
from ftd.vm.standby_store import StandbyStore
from ftd.wire.errors import ErrorCode


@implementer(IStoringSink)
class StandbySink:
    """
    :param waits_for_ram: whether a commit is not done before the checkpoint is in RAM (``ack = applied``).
    :param refusal: why no checkpoint can be taken now; empty if one can.
    :param failed: told why a committed checkpoint could not be brought into RAM.
    """

    log = Logger()

    def __init__(
        self,
        store: StandbyStore,
        *,
        waits_for_ram: bool,
        run_in_thread: Callable[..., Deferred[Any]],
        refusal: Callable[[], str],
        failed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._waits_for_ram = waits_for_ram
        self._run_in_thread = run_in_thread
        self._refusal = refusal
        self._failed = failed
        self._ram: GuestRam | None = None
        self._one_at_a_time = DeferredLock()
        self._applying = 0
        self._refused: SinkError | None = None
        self._producer: IPushProducer | None = None
        self._is_paused = False

    # The sink

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The receiver, which is paused while a checkpoint is applied."""
        assert streaming and IPushProducer.providedBy(producer), "a receiver is a push producer"
        self._producer = producer
        self._is_paused = False
        self._regulate()

    def unregisterProducer(self) -> None:
        """The receiver is gone."""
        self._producer = None

    def begin(self) -> None:
        """See `ISink`."""
        self.abort()
        if refusal := self._refusal():
            self._refused = SinkError(ErrorCode.FLUSH, refusal)
        else:
            self._store.begin()

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        if self._refused is None:
            self._store.write(data)

    def abort(self) -> None:
        """See `ISink`."""
        self._refused = None
        self._store.abort()

    def failure(self) -> SinkError | None:
        """See `ISink`.  Also where QEMU has gone meanwhile: the primary is to know as soon as it asks."""
        if self._refused is None and (refusal := self._refusal()):
            self._refused = SinkError(ErrorCode.FLUSH, refusal)
        return self._refused or self._store.failure()

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`.  The generation is the one that the checkpoint says of itself."""
        del generation
        try:
            if (failure := self.failure()) is not None:
                self.abort()
                return fail(failure)
            self._store.commit(id, xxh3)
        except SinkError as error:
            return fail(error)
        except OSError as error:
            return fail(cannot_store("the checkpoint cannot be kept", error))
        checkpoint = self.checkpoints()[-1]
        applied = self.apply()
        if self._waits_for_ram:
            return applied.addCallbacks(lambda _: checkpoint, _as_sink_error)
        # Whoever `failed` tells makes something of it.
        applied.addErrback(lambda _: None)
        return succeed(checkpoint)

    # The store

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The one that is held; its number and generation are those of the VM's checkpoint."""
        held = self._store.checkpoint
        if held is None:
            return ()
        return (
            Checkpoint(
                number=held.header.number,
                id=held.id,
                bytes=held.bytes,
                xxh3=held.xxh3,
                generation=held.header.generation,
                committed_at=held.committed_at,
            ),
        )

    def open(self, number: int) -> BinaryIO:
        """:raises KeyError: always: it is in the VM's RAM, not in a file."""
        raise KeyError(number)

    # RAM

    def use_ram(self, vm: Vm, ram: GuestRam, is_current: Callable[[], bool]) -> Deferred[None]:
        """
        From now on checkpoints go into ``ram``; what is held is brought into it if it is not there yet.

        :param is_current: whether that is still wanted when everything before is done.
        :return: errbacks with `VmError` if it is not, or that cannot be done.
        """

        def change() -> None:
            if not is_current():
                ram.close()
                raise VmError("QEMU has gone meanwhile")
            self._close_ram()
            self._ram = ram
            self._store.expect(vm.fingerprint, vm.backends)
            if self._store.unfit:
                self.log.warn("the checkpoint that is held does not fit: {why}", why=self._store.unfit)

        changed = self._one_at_a_time.run(change)
        return changed.addCallback(lambda _: None if self._store.held is None or self._store.unfit else self.apply())

    def let_ram_go(self) -> Deferred[None]:
        """Let go of the RAM that there is now, when what is being done with it is done."""
        return self._one_at_a_time.run(self._close_ram)

    def apply(self) -> Deferred[None]:
        """Bring RAM into the state that is held, unless it is; errbacks with `VmError` or `SinkError`."""
        self._applying += 1
        self._regulate()
        applied = self._one_at_a_time.run(self._apply_now)
        return applied.addBoth(self._has_applied)

    def forget(self) -> Deferred[None]:
        """RAM is, or will be, in no state that is known: drop what is held.  Giving back gigabytes takes a moment."""
        return self._one_at_a_time.run(self._forget_now)

    def close(self) -> Deferred[None]:
        """Let go of everything, which stays for the next ftd."""

        def close() -> None:
            self._close_ram()
            self._store.close()

        return self._one_at_a_time.run(close)

    def _apply_now(self) -> Deferred[None]:
        if self._store.is_applied:
            return succeed(None)
        if self._ram is None:
            return fail(VmError("QEMU has gone, and the RAM that the checkpoint belongs into with it"))
        applying: Deferred[None] = self._run_in_thread(self._store.apply, self._ram)
        return applying.addErrback(self._not_applied)

    def _not_applied(self, failure: Failure) -> Failure:
        if failure.check(VmError, SinkError) is None:
            self.log.failure("bringing a checkpoint into RAM", failure)
        self._failed(
            f"a committed checkpoint could not be brought into RAM: {failure.getErrorMessage()}; then end QEMU, so that"
            " it is tried again with the next one"
        )
        return failure

    def _has_applied(self, result: Any) -> Any:
        self._applying -= 1
        self._regulate()
        return result

    def _forget_now(self) -> Deferred[None]:
        forgetting: Deferred[None] = self._run_in_thread(self._store.forget)
        return forgetting

    def _close_ram(self) -> None:
        ram, self._ram = self._ram, None
        if ram is not None:
            ram.close()

    def _regulate(self) -> None:
        must_pause = self._applying > 0
        if self._producer is not None and must_pause != self._is_paused:
            self._is_paused = must_pause
            if must_pause:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()


def _as_sink_error(failure: Failure) -> Failure:
    if failure.check(SinkError):
        return failure
    return Failure(SinkError(ErrorCode.FLUSH, failure.getErrorMessage()))
