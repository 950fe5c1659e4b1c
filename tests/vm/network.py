"""A network of a test's own: a namespace with a bridge, a tap device for each machine, and clients."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.program import Program
from tests.vm import client, programs
from tests.vm.memory import orphaned, own_prefix

#: Where the clients are; the guests are in the same subnet.
ADDRESS = "10.0.2.1/24"

_numbers = itertools.count()


class Network:
    """
    A namespace of the network.

    :param taps: the names of the devices that the machines' frames come out of, all on one bridge.
    """

    def __init__(self, taps: Sequence[str]) -> None:
        programs.need_root()
        self._ip = programs.program("ip")
        self.name = f"{own_prefix()}{next(_numbers)}"
        for name in orphaned(os.listdir("/run/netns") if Path("/run/netns").exists() else ()):
            self._run("netns", "delete", name)
        self._run("netns", "add", self.name)
        commands = [
            "link set lo up",
            # No spanning tree and no waiting: a port of the bridge passes frames from its first moment.
            # An address of its own: it would have one of its ports' otherwise, and another when that one is gone.
            "link add bridge address 02:00:0a:00:02:01 type bridge stp_state 0 forward_delay 0",
            f"address add {ADDRESS} dev bridge",
            "link set bridge up",
        ]
        for tap in taps:
            commands += [f"tuntap add dev {tap} mode tap", f"link set {tap} master bridge up"]
        self._run("-n", self.name, "-batch", "-", given="\n".join(commands))

    def inside(self, *command: str) -> tuple[str, ...]:
        """The command line that runs a program in it."""
        return (self._ip, "netns", "exec", self.name, *command)

    def remove(self) -> None:
        """The namespace is gone as soon as nobody runs in it any more."""
        self._run("netns", "delete", self.name)

    def _run(self, *arguments: str, given: str = "") -> None:
        done = subprocess.run([self._ip, *arguments], input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done


@attrs.frozen
class Seen:
    """
    A number that a client got.

    :ivar asked: when it asked for it; of a line, when the one before came.  Seconds of CLOCK_MONOTONIC.
    :ivar at: when it came.
    """

    number: int
    asked: float
    at: float


class Client:
    """A client in a network: it runs until it is ended, and writes down what it gets."""

    def __init__(self, network: Network, kind: str, host: str, port: int, directory: Path) -> None:
        command = network.inside(sys.executable, "-S", client.__file__, kind, host, str(port))
        self._program = Program(*command, directory=directory)

    def seen(self) -> list[Seen]:
        """All numbers so far, in the order in which they came."""
        found = []
        for line in self._program.out().split("\n")[:-1]:
            number, asked, at = line.split()
            found.append(Seen(int(number), float(asked), float(at)))
        return found

    def numbers(self) -> list[int]:
        """The numbers alone."""
        return [seen.number for seen in self.seen()]

    def trouble(self) -> str:
        """What went wrong for it, if anything did."""
        return self._program.err()

    def end(self) -> None:
        """End it."""
        self._program.end()
