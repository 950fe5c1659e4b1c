"""What README.md and docs/ tell people to type is typed, and what they say will be answered is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.case import IN_CI, EndToEndCase, Output, run
from tests.daemon import TREE, environment
from tests.program import Program
from tests.shipped import ShippedDaemon
from tests.state import state_of

_README = (TREE / "README.md").read_text()

#: A size that shows as it does in the documents' examples.
_EXAMPLE_SIZE = 36_175_872

_ELLIPSIS = "…"


@attrs.frozen
class Step:
    """A command of a document, and what the document says comes of it."""

    command: str
    answer: str


def blocks(text: str, language: str) -> Iterator[str]:
    """The code blocks of a language."""
    # All are read, so that the end of a block in another language is not taken for the beginning of one in none.
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] == language:
            yield match[2]


def steps(block: str) -> list[Step]:
    """The commands of a block in which they begin with ``$``."""
    _before, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    return [Step(*(part.split("\n", 1) if "\n" in part else (part, ""))) for part in parts]


def shape(value: Any) -> Any:
    """What a JSON value is made of: its keys and its kinds."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


class DocumentCase(EndToEndCase):
    """A case with the shipped daemon and a directory to type commands in."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        if shutil.which("curl") is None:
            if IN_CI:
                self.fail("there is no curl here")
            raise SkipTest("there is no curl here")
        self.directory = self.scratch()
        self.shipped = ShippedDaemon(Path(self.mktemp()).absolute())
        self.addCleanup(self.shipped.remove)
        await self.shipped.start()
        await self.shipped.until_up()
        tools = self.directory / "bin"
        tools.mkdir()
        ftdctl = tools / "ftdctl"
        ftdctl.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ftd.cli "$@"\n')
        ftdctl.chmod(0o755)
        self.environment = {
            **environment(),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "FTD_URL": self.shipped.url,
        }

    def here(self, command: str) -> str:
        """A command of a document, for this test's daemon and this machine."""
        command = command.replace("127.0.0.1:8440", f"127.0.0.1:{self.shipped.port}")
        command = command.replace("localhost:8440", f"127.0.0.1:{self.shipped.port}")
        command = command.replace(".venv/bin/ftdctl", "ftdctl")
        return command.replace("/usr/bin/python3", shlex.quote(str(Path(sys.executable).resolve())))

    async def sh(self, command: str) -> Output:
        """Type it."""
        return await run("/bin/sh", "-euc", self.here(command), directory=self.directory, env=self.environment)


class ReadmeTests(DocumentCase):
    """README.md."""

    def commands(self, begins: str) -> list[str]:
        """The blocks of shell commands in which a line begins so."""
        found = [block for block in blocks(_README, "sh") if re.search(f"^{re.escape(begins)}", block, re.MULTILINE)]
        self.assertTrue(found, f"README.md has no block with {begins}")
        return found

    async def test_what_is_to_be_tried_works(self) -> None:
        # An error of HTTP is one of curl.
        curlrc = self.directory / ".curlrc"
        curlrc.write_text("fail-with-body\nsilent\nshow-error\n")
        self.environment["CURL_HOME"] = str(self.directory)
        first, *others = self.commands("curl ")
        copied = await self.sh(first)
        self.assertEqual((copied.status, copied.err), (0, b""), copied)
        self.assertEqual((self.directory / "copy").read_bytes(), Path(sys.executable).read_bytes())
        for block in others:
            done = await self.sh(block)
            self.assertEqual(done.status, 0, (block, done))
        # The transaction in steps was one of them.
        self.assertEqual(await self.shipped.checkpoint("demo-standby"), b"first part, second part")
        self.assertEqual(len(others), 2)

    async def test_what_is_to_be_watched_shows_something(self) -> None:
        (block,) = self.commands(".venv/bin/ftdctl")
        watching = [shlex.split(self.here(line)) for line in block.splitlines()]
        self.assertEqual(len(watching), 2)
        for command, shows in zip(watching, ("demo-standby", "ft_trans_send_header send header"), strict=True):
            command[:1] = [sys.executable, "-m", "ftd.cli"]
            program = Program(*command, directory=self.directory, env={"FTD_URL": self.shipped.url})
            self.addCleanup(program.end)
            await program.until_out(shows)
            program.send(signal.SIGINT)
            self.assertEqual(await program.ended(), 130)

    async def test_its_configurations_are_well(self) -> None:
        files = list(blocks(_README, "ini"))
        self.assertEqual(len(files), 2)
        for text in files:
            (self.directory / "ftd.conf").write_text(text)
            done = await self.sh("ftdctl check ftd.conf")
            self.assertEqual(done.status, 0, done)


class ApiTests(DocumentCase):
    """docs/api.md: every ``curl``, in the order of the document, with the answers that it shows."""

    async def test_examples(self) -> None:
        for part in ("part-1", "part-2"):
            (self.directory / part).write_bytes(state_of(1024 * 1024, part))
        typed = 0
        for block in blocks((TREE / "docs" / "api.md").read_text(), "console"):
            for step in steps(block):
                await self.shipped.until_up()
                if step.command.startswith("curl -N "):
                    await self.follow(step)
                else:
                    await self.ask(step)
                typed += 1
        self.assertGreater(typed, 15)

    async def ask(self, step: Step) -> None:
        """A request that is answered."""
        done = await self.sh(step.command.replace("curl ", "curl -sS ", 1))
        self.assertEqual(done.status, 0, (step, done))
        answer = done.out.decode()
        if _ELLIPSIS in step.answer or "HTTP/1.1" in step.answer:
            for expected in re.findall(r'^HTTP/1.1 .*$|^[A-Z][A-Za-z-]+: |"[a-z_]+":', step.answer, re.MULTILINE):
                self.assertIn(expected, answer, step)
        elif step.answer:
            self.assertEqual(shape(json.loads(answer)), shape(json.loads(step.answer)), step)

    async def follow(self, step: Step) -> None:
        """A stream of events."""
        command = f"exec {self.here(step.command)} --silent"
        program = Program("/bin/sh", "-euc", command, directory=self.directory, env=self.environment)
        self.addCleanup(program.end)
        await program.until_out("event: sync\n")
        await self.shipped.push("demo", b"an event")
        for expected in re.findall(r"^event: .*$", step.answer, re.MULTILINE):
            await program.until_out(f"{expected}\n")


class FtdctlTests(DocumentCase):
    """docs/ftdctl.md: each block of commands, with what it shows."""

    async def test_examples(self) -> None:
        (self.directory / "state.img").write_bytes(b"\0" * _EXAMPLE_SIZE)
        (self.directory / "etc").mkdir()
        shutil.copy(TREE / "etc" / "ftd.conf", self.directory / "etc")
        typed = 0
        for _ in range(2):
            await self.shipped.push("demo", b"\0" * _EXAMPLE_SIZE)
        for block in blocks((TREE / "docs" / "ftdctl.md").read_text(), ""):
            if not block.startswith("$ ftdctl"):
                continue
            if "is open on demo" in block:
                await self.sh("ftdctl begin demo")
            for step in steps(block):
                if step.command.startswith("ftdctl "):
                    await self.type(step, fails="ftdctl: " in step.answer)
                    typed += 1
            await self.shipped.http.request("POST", "/v1/pairs/demo/cancel")
            # Until the next heartbeat, CANCEL is what was said last.
            for half in self.shipped.pairs:
                await self.shipped.until_pair(half, state="ACK")
        self.assertGreater(typed, 10)

    async def type(self, step: Step, fails: bool) -> None:
        """A command, and what it shows, but for numbers and for what is left out."""
        if "--follow" in step.command:
            shown = await self.follow(step)
        else:
            done = await self.sh(step.command)
            self.assertEqual(done.status, 1 if fails else 0, (step, done))
            shown = (done.out + done.err).decode()
        for line in step.answer.strip().splitlines():
            if _ELLIPSIS not in line and "spare" not in line and "127.0.0.1:9999" not in line and "refused" not in line:
                expected = _without_numbers(line.replace("host-a", socket.gethostname()))
                self.assertIn(expected, _without_numbers(shown), f"{expected!r} of {step.command!r} in {shown!r}")

    async def follow(self, step: Step) -> str:
        """A command that goes on until somebody has seen enough; what it wrote until then."""
        program = Program("/bin/sh", "-euc", f"exec {step.command}", directory=self.directory, env=self.environment)
        self.addCleanup(program.end)
        # A heartbeat shows that it follows.
        await program.until_out("send header 1")
        await self.shipped.push("demo", b"an event")
        for line in step.answer.strip().splitlines():
            await program.until_out(f"{line}\n")
        return program.out()


def _without_numbers(text: str) -> str:
    """Text in which numbers, units of time and the width of columns do not matter."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "DIGEST", text)
    text = re.sub(r"\d[\d.:-]*(?: ?(?:ms|s|min|h)\b)?", "N", text)
    return re.sub(r"[ ─-]+", " ", text)


class TextTests(SynchronousTestCase):
    """What the documents name is there."""

    def test_the_first_commands_are_targets(self) -> None:
        named = re.findall(r"^make (\w+)", next(blocks(_README, "sh")), re.MULTILINE)
        self.assertEqual(named, ["run", "test"])
        makefile = (TREE / "Makefile").read_text()
        for target in named:
            self.assertRegex(makefile, rf"(?m)^{target}:")

    def test_links_lead_somewhere(self) -> None:
        for document in (*TREE.glob("*.md"), *(TREE / "docs").glob("*.md")):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
                self.assertTrue((document.parent / target).exists(), f"{document.name}: {target}")
