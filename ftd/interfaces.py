"""The seams of ftd: what the API, the service, sources and sinks may ask of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import Attribute, Interface

from ftd.status import Checkpoint, Commit, PairStatus, TransactionStatus


class IPair(Interface):
    """One half-pair, as the API and the service see it."""

    name: str = Attribute("The name in the configuration and in URLs.")

    def status() -> PairStatus:
        """What the pair is doing now."""

    def transactions() -> Sequence[TransactionStatus]:
        """The last 256 transactions, oldest first, without heartbeats."""

    def trace_events() -> Mapping[str, bool]:
        """The 13 trace events by name, and whether each is on."""

    def set_trace_events(switches: Mapping[str, bool]) -> None:
        """Turn events on and off; names that are not mentioned stay.  :raises KeyError: for an unknown name."""

    def watch_trace(names: Sequence[str]) -> Callable[[], None]:
        """
        Have trace events on, whatever their switches say, until the returned function is called.

        :raises KeyError: for an unknown name.
        """

    def reset() -> Deferred[None]:
        """Clear ``has_error``, close the link and open it anew.  Fires when that is under way."""

    def promote(force: bool) -> Deferred[None]:
        """
        The standby's VM takes over; fires when the guest runs.  On a fenced primary: with ``force`` its VM goes on.

        :param force: although the other half is up.
        :return: errbacks with :class:`ftd.errors.NotInState` on a pair without a VM, or where it may not be done.
        """

    def demote() -> Deferred[None]:
        """
        The primary commits what it has and stops its VM for good; a promoted standby ends its VM and stands by anew.

        :return: errbacks with :class:`ftd.errors.NotInState` on a pair without a VM.
        """


class IPrimaryPair(IPair):
    """The sending half.  Every method raises, or errbacks with, an :class:`ftd.errors.FtdError`."""

    def begin() -> Deferred[int]:
        """
        Open a transaction; fires with its id, as soon as the window has room if it is a heartbeat that takes it.
        Errbacks with :class:`ftd.errors.NotInState` if one is open, or as many as the window says await their ACK.
        """

    def append(body: IPushProducer) -> IUpload:
        """
        An upload into the open transaction; ``body`` is paused while the pair is frozen.  ``done`` fires with the
        number of bytes accepted.
        """

    def checkpoint(body: IPushProducer) -> IUpload:
        """
        A whole transaction as one upload: begins it now, commits it at ``finish``.  ``done`` fires with a `Commit`.
        """

    def commit(timeout: float | None = None) -> Deferred[Commit]:
        """
        Send COMMIT; fires on the ACK.

        :param timeout: seconds to wait for it, ``None`` for the pair's ``ack-time``.
        """

    def cancel() -> None:
        """Drop the open transaction."""

    def set_rate_limit(enabled: bool | None, bandwidth: int | None) -> None:
        """Change either; bytes per second, 0 for no limit.  ``None`` leaves it."""

    def set_protection(enabled: bool | None, interval: float | None) -> Deferred[None]:
        """
        Turn the protection of the pair's VM on or off, and say how often a checkpoint is taken.

        :param interval: seconds from one checkpoint to the next; 0: `begin` and `commit` say when.  ``None`` leaves it.
        :return: errbacks with :class:`ftd.errors.NotInState` on a pair without a VM.
        """


class ISecondaryPair(IPair):
    """The receiving half."""

    def store() -> ICheckpointStore:
        """Where its checkpoints are."""

    def settled() -> Deferred[None]:
        """
        Fires when no acknowledged checkpoint is still on its way into the store (at once where ``ack = applied``).
        """


class IUpload(Interface):
    """
    State bytes on their way into a transaction.  The writer calls ``write`` any number of times, then ``finish`` or
    ``cut``, exactly once; it honours the pauses that its producer gets.
    """

    done: Deferred[object] = Attribute(
        "Fires once with the result, or errbacks with an FtdError, possibly long before ``finish``; what is written "
        "after that is discarded."
    )

    unsent: int = Attribute(
        "How many of the last bytes that were written are not with the kernel yet, or more; those before them may "
        "change again."
    )

    def write(data: bytes | memoryview) -> None:
        """State bytes, which must not change until ``unsent`` says that they have gone."""

    def finish() -> None:
        """That was all of it."""

    def cut(reason: str) -> None:
        """The rest will not come: the transaction is cancelled."""


class ISink(IConsumer):
    """
    Where a receiver puts state.  Between ``begin`` and ``commit`` or ``abort`` it consumes the payload; as an
    `IConsumer` it pauses the receiver when it cannot keep up, and it never refuses a ``write``.  What has not been
    committed is not visible.
    """

    def begin() -> None:
        """A transaction opens; ``write`` follows."""

    def write(data: bytes | memoryview) -> None:
        """Payload bytes, valid only during the call."""

    def commit(id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """
        Make the open transaction the newest checkpoint.  Fires when the sink has it for good; errbacks with a
        :class:`ftd.sinks.SinkError` when it cannot, and then no trace of the transaction is left.
        """

    def abort() -> None:
        """Drop the open transaction, if there is one."""

    def failure() -> Exception | None:
        """Why the open transaction cannot be kept any more, as far as is known; it must not be acknowledged then."""


class IInPlaceSink(ISink):
    """
    A sink whose memory payload is read into straight from the socket, which spares the copy that ``write`` makes.

    Bytes of one transaction may come by ``write`` and in this way in turns; their order is that of the calls.
    """

    def room(size: int) -> Sequence[memoryview]:
        """
        Writable memory, of bytes and contiguous, for the next up to ``size`` payload bytes of the open transaction, in
        order.  It may be less than that, and is empty where the sink has none, or keeps nothing of this transaction:
        ``write`` is used then.  Asked without a ``filled`` or ``write`` in between it gives the same places; they stay
        until the next of these two, or the end of the transaction.

        What is in the room may be anything, and may be overwritten by what turns out not to be payload.
        """

    def filled(size: int) -> None:
        """
        The first ``size`` bytes of the room that was given last are payload now.  Like ``write`` it is never refused,
        and may pause the producer.
        """


class ICheckpointStore(Interface):
    """The committed checkpoints of a sink."""

    def checkpoints() -> Sequence[Checkpoint]:
        """Those that are held, oldest first."""

    def open(number: int) -> BinaryIO:
        """
        The bytes of one, seekable; stays readable while open even if the checkpoint is pruned meanwhile.

        :raises KeyError: if it is not held.
        """


class IStoringSink(ISink, ICheckpointStore):
    """A sink that keeps what it takes: what a secondary needs."""


class IDaemon(Interface):
    """All pairs of a daemon, as the API sees them."""

    node: str = Attribute("The name of this daemon, for people.")
    version: str = Attribute("Of ftd.")
    started: float = Attribute("When it started, Unix seconds.")

    def pairs() -> Mapping[str, IPair]:
        """The pairs that there are now, by the name in the configuration."""

    def create_pair(section: str, values: Mapping[str, object]) -> Deferred[IPair]:
        """
        Create a pair that is there after a restart too.

        :param section: the name in URLs.
        :param values: by the keys of a ``[pair …]`` section, as in the file or as JSON numbers and booleans.
        :return: the pair; errbacks with :class:`ftd.errors.AlreadyExists` or :class:`ftd.errors.ConfigError`.
        """

    def delete_pair(name: str) -> Deferred[None]:
        """
        Stop a pair and remove it for good; an open transaction is cancelled.

        :return: fires when it is gone; errbacks with :class:`ftd.errors.Unknown`, or with
            :class:`ftd.errors.NotInState` for a pair that stands in the configuration file.
        """
