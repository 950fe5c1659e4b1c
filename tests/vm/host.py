"""
A whole host of a test's own, in namespaces of the kernel: its network, its processes, its ``/run`` and ``/dev/shm``.

Its power can be cut, which ends everything that runs on it at once; its disk, a directory, is still there when it
boots again.  Nothing on it outlives the process of the tests.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.case import Output, run
from tests.daemon import environment, twistd
from tests.program import Program
from tests.vm import host_init, programs
from tests.vm.network import Network
from tests.vm.programs import QemuProgram


class Host:
    """
    A host, which is off at first.

    ``twistd`` and ``ftdctl`` are commands there.

    :param lan: what it is connected to, by its ``br0``.
    :param address: its own there, with the length of the prefix.
    :param disk: an empty directory: where its commands are run, and what it keeps.
    :param files: files of the machine by the names that they have there.
    :param qemu: what ``qemu-system-x86_64`` is there.
    """

    def __init__(
        self, name: str, lan: Network, address: str, disk: Path, files: Mapping[str, Path], qemu: QemuProgram
    ) -> None:
        self.name = name
        self.disk = disk
        self._lan = lan
        self._address = address
        setpriv, unshare = programs.program("setpriv"), programs.program("unshare")
        self._new = (setpriv, "--pdeathsig", "KILL", unshare, "--net", "--mount", "--pid", "--fork", "--kill-child")
        self._nsenter = programs.program("nsenter")
        # The same at each boot, as a card has it: others remember it.
        self._mac = "02:00:" + ":".join(f"{int(part):02x}" for part in address.partition("/")[0].split("."))
        self._init: subprocess.Popen[str] | None = None
        self._pid = 0
        self._programs: list[Program] = []
        self._earlier = ""
        bin_directory = disk / "bin"
        bin_directory.mkdir()
        commands = {
            "twistd": twistd(),
            "ftdctl": [sys.executable, "-m", "ftd.cli"],
            "qemu-system-x86_64": qemu.command,
        }
        for command, words in commands.items():
            script = bin_directory / command
            script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            script.chmod(0o755)
        for file, target in files.items():
            (disk / file).symlink_to(target)
        self._path = f"{bin_directory}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"

    async def boot(self) -> None:
        """Switch it on, and connect it."""
        assert self._init is None, "it is on"
        self._init = subprocess.Popen(
            [*self._new, sys.executable, "-S", host_init.__file__],
            env={**environment(), "PATH": self._path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._init.stdout is not None
        pid, is_up = self._init.stdout.readline(), self._init.stdout.readline()
        assert is_up == "up\n", f"its first process says: {pid}{is_up}"
        self._pid = int(pid)
        cable = f"to-{self.name}"
        await self._on_lan(f"ip link add {cable} type veth peer name eth0 address {self._mac} netns {self._pid}")
        await self._on_lan(f"ip link set {cable} master bridge up")
        await self.succeed(
            f"ip link add br0 address {self._mac} type bridge stp_state 0 forward_delay 0;"
            " ip link set eth0 master br0 up;"
            f" ip address add {self._address} dev br0; ip link set br0 up"
        )

    async def unplug(self) -> None:
        """Pull its cable: nobody hears from it any more, nor is told that."""
        await self._on_lan(f"ip link delete to-{self.name}")

    def cut_power(self) -> None:
        """Everything on it is gone but its disk; nothing happens if it is off."""
        if self._init is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._init.wait()
            assert self._init.stdout is not None
            self._init.stdout.close()
            self._init = None
        for program in self._programs:
            self._earlier += program.out()
            program.end()
        self._programs.clear()

    def remove(self) -> None:
        """It is gone for good."""
        self.cut_power()
        shutil.rmtree(self.disk, ignore_errors=True)

    async def end_qemu(self) -> None:
        """End every QEMU on it."""
        is_qemu = "case $(readlink $at/exe || true) in */qemu-system-*) kill ${at#/proc/};; esac"
        await self.succeed(f"for at in /proc/[0-9]*; do {is_qemu}; done")

    # What is typed

    async def sh(self, command: str) -> Output:
        """Type a command and wait for its end."""
        words = self._words(command)
        return await run(words[0], *words[1:], env=self._environment())

    async def succeed(self, command: str) -> str:
        """The same, which has to go well; what it printed."""
        done = await self.sh(command)
        assert done.status == 0, (command, done)
        return done.out.decode()

    def start(self, command: str, *, on_terminal: bool = False) -> Program:
        """Type a command that goes on."""
        environment = self._environment()
        program = Program(
            *self._words(f"exec {command}"), directory=self.disk, env=environment, on_terminal=on_terminal
        )
        self._programs.append(program)
        return program

    async def pair(self, name: str) -> Any:
        """What its ftd says of a pair; nothing if it does not answer."""
        done = await self.sh(f"curl -s http://127.0.0.1:8440/v1/pairs/{name}")
        return json.loads(done.out) if done.status == 0 else {}

    def said(self) -> str:
        """What all that was started here and goes on has said, beside the requests that it answered."""
        text = self._earlier + "".join(program.out() + program.err() for program in self._programs)
        return "\n".join(line for line in text.splitlines() if "[ftd.http.site#" not in line)

    def _words(self, command: str) -> list[str]:
        spaces = ("--net", "--mount", "--pid")
        there = f"cd {shlex.quote(str(self.disk))}; {command}"
        return [self._nsenter, f"--target={self._pid}", *spaces, "/bin/sh", "-euc", there]

    def _environment(self) -> dict[str, str]:
        return {**environment(), "PATH": self._path}

    async def _on_lan(self, command: str) -> None:
        words = self._lan.inside(*command.split())
        done = await run(words[0], *words[1:])
        assert done.status == 0, (command, done)
