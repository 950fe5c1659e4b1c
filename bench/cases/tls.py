"""A TLS link beside blocking ``ssl`` sockets with the same certificates."""

from __future__ import annotations

from bench import certificates
from bench.child import ChildError
from bench.figures import of_ratios, of_samples
from bench.setting import KIB, MIB, Bench, Rate, column, halves, pump, rivals, scratch, size_text, stream

CASE = "tls"

_SIZES = (32 * KIB, 256 * KIB, MIB)

#: Ratio to blocking ``ssl`` sockets.
_OF_BLOCKING = 0.8


def measure(bench: Bench) -> None:
    """All sizes."""
    total = bench.pick(256 * MIB, 16 * MIB)
    with scratch() as directory, rivals() as (sender, receiver):
        files = certificates.make(directory)
        keys = {f"link_{name}": files[name] for name in ("certificate", "key", "ca")}
        keys["link_peer_name"] = files["name"]
        for size in bench.pick(_SIZES, (MIB,)):
            group = f"{size_text(size)} frames"
            bench.say(f"{CASE}: {group}")
            bare: list[Rate] = []
            own: list[Rate] = []
            try:
                with halves(keys={**keys, "frame_size": str(size)}) as pair:
                    stream(pair, MIB, total, 2)
                    for _ in range(bench.pick(5, 1)):
                        bare.append(pump(sender, receiver, total, size, files))
                        own.append(stream(pair, MIB, total, 1))
            except ChildError as error:
                bench.lacks(CASE, group, error)
                continue
            rates = column(own, "rate"), column(bare, "rate")
            bench.add(
                of_samples(CASE, group, "blocking ssl sockets", "GB/s", rates[1]),
                of_samples(CASE, group, "ftd", "GB/s", rates[0]),
                of_ratios(CASE, group, "ftd / ssl sockets", *rates, at_least=_OF_BLOCKING),
                of_samples(CASE, group, "CPU, sending", "s/GB", column(own, "sender")),
                of_samples(CASE, group, "CPU, receiving", "s/GB", column(own, "receiver")),
                of_samples(CASE, group, "CPU, ssl sockets sending", "s/GB", column(bare, "sender")),
                of_samples(CASE, group, "CPU, ssl sockets receiving", "s/GB", column(bare, "receiver")),
            )
