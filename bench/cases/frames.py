"""Bulk: frames of several sizes in large transactions, beside bare sockets and beside Twisted's own transports."""

from __future__ import annotations

from bench.child import Child, ChildError
from bench.figures import Figure, of_ratios, of_samples
from bench.setting import KIB, MIB, Bench, Halves, Rate, column, halves, pump, rivals, size_text, stream

CASE = "frames"

_SIZES = (KIB, 32 * KIB, 256 * KIB, MIB, 4 * MIB)

#: What is handed over at a time, as a program that has much would.
_PIECE = MIB

#: Ratio to the pump, for frames of `_LARGE` and more.
_OF_PUMP = 0.85
_LARGE = 32 * KIB

#: Ratio to the stock transport, for smaller ones.
_OF_STOCK = 5.0

#: CPU seconds per GB of a side, at `_LARGE`.
_CPU = 0.45

#: Bytes that a half may take on top of the transaction that it holds.
_MEMORY = 64 * MIB


def measure(bench: Bench) -> None:
    """All sizes."""
    with rivals() as (sender, receiver):
        for size in bench.pick(_SIZES, (KIB, 256 * KIB)):
            bench.say(f"{CASE}: {size_text(size)}")
            try:
                bench.add(*_one_size(bench, sender, receiver, size))
            except ChildError as error:
                bench.lacks(CASE, size_text(size), error)


def _one_size(bench: Bench, sender: Child, receiver: Child, size: int) -> list[Figure]:
    group = f"{size_text(size)} frames"
    keys = {"frame_size": str(size)}
    transaction = bench.pick(256 * MIB, 16 * MIB)
    count = bench.pick(2 if size < _LARGE else 4, 1)
    bare: list[Rate] = []
    keeping: list[Rate] = []
    own: list[Rate] = []
    stock: list[Rate] = []
    with halves(keys=keys) as new, halves(keys=keys, is_stock=True) as old:
        # Memory is there, and the code has run, before it is measured.
        stream(new, max(_PIECE, size), transaction, 2)
        stream(old, size, transaction, 1)
        memory = _memory(new, transaction)
        for _ in range(bench.pick(5, 1)):
            bare.append(pump(sender, receiver, transaction * (1 if size < _LARGE else count), size))
            if size >= _LARGE:
                keeping.append(pump(sender, receiver, transaction * count, size, keep=2 * transaction))
            own.append(stream(new, max(_PIECE, size), transaction, count))
            stock.append(stream(old, size, transaction // (8 if size < _LARGE else 1), 1))
    is_large = size >= _LARGE
    kept = column(keeping, "rate")
    beside_keeping = (
        [
            of_samples(CASE, group, "pump that keeps", "GB/s", kept, note="with a digest on both sides"),
            of_ratios(CASE, group, "ftd / pump that keeps", column(own, "rate"), kept),
        ]
        if is_large
        else []
    )
    at_most = _CPU if size == _LARGE else None
    return [
        of_samples(CASE, group, "bare pump", "GB/s", column(bare, "rate")),
        *beside_keeping,
        of_samples(CASE, group, "stock transport", "GB/s", column(stock, "rate"), note="one frame at a time"),
        of_samples(CASE, group, "ftd", "GB/s", column(own, "rate")),
        of_ratios(
            CASE,
            group,
            "ftd / pump",
            column(own, "rate"),
            column(bare, "rate"),
            at_least=_OF_PUMP if is_large else None,
        ),
        of_ratios(
            CASE,
            group,
            "ftd / stock",
            column(own, "rate"),
            column(stock, "rate"),
            at_least=None if is_large else _OF_STOCK,
        ),
        of_samples(CASE, group, "CPU, sending", "s/GB", column(own, "sender"), at_most=at_most),
        of_samples(CASE, group, "CPU, receiving", "s/GB", column(own, "receiver"), at_most=at_most),
        of_samples(CASE, group, "CPU, pump sending", "s/GB", column(bare, "sender")),
        of_samples(CASE, group, "CPU, pump receiving", "s/GB", column(bare, "receiver")),
        *memory_figures(CASE, group, memory, transaction),
    ]


def _memory(pair: Halves, transaction: int) -> tuple[int, int]:
    """The peak of both, with what the daemons had without a pair taken off; one more transaction has to run."""
    for child in pair.both:
        child.ask("usage", forget=True)
    stream(pair, _PIECE, transaction, 1)
    sender, receiver = (child.ask("usage") for child in pair.both)
    return sender["peak"] - sender["idle"], receiver["peak"] - receiver["idle"]


def memory_figures(case: str, group: str, memory: tuple[int, int], transaction: int) -> list[Figure]:
    """The receiver holds one transaction while it takes the next."""
    sender, receiver = memory
    return [
        Figure(
            case=case,
            group=group,
            name="memory, sending",
            value=sender / MIB,
            unit="MiB",
            at_most=_MEMORY / MIB,
            note="peak, beside the memory that is sent",
        ),
        Figure(
            case=case,
            group=group,
            name="memory, receiving",
            value=(receiver - 2 * transaction) / MIB,
            unit="MiB",
            at_most=_MEMORY / MIB,
            note="peak, beside the transaction that is kept and the one that comes",
        ),
    ]
