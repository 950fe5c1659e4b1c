"""Where an upload's bytes come from, and where a download's bytes go."""

from __future__ import annotations

import os
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface.verify import verifyObject

from ftd.client import ApiError, Damaged, FileBody, PipeBody, SourceChanged, Unreachable
from ftd.client.transfer import BLOCK, is_regular, replacing
from ftd.test.api_case import NOW
from ftd.test.client_case import ClientTestCase


class Consumer:
    """
    :ivar blocks: what was written.
    :ivar slows: paused at every write, as a connection does that cannot send as fast.
    """

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.slows: FileBody | None = None

    def write(self, data: bytes) -> None:
        """See `IConsumer`."""
        self.blocks.append(data)
        if self.slows is not None:
            self.slows.pauseProducing()


class Stream(RawIOBase):
    """
    A file that cannot seek.

    :ivar broken: raised by the next read, if set.
    """

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)
        self.broken: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        if self.broken is not None:
            raise self.broken
        return self._data.read(size)


class FileBodyTests(SynchronousTestCase):
    """A file, block by block."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.consumer = Consumer()
        self.progress: list[tuple[int, int | None]] = []

    def body(self, file: Any, length: int | None = None) -> FileBody:
        """A body that tells of its progress."""
        return FileBody(
            cast(BinaryIO, file), self.clock, length, lambda moved, total: self.progress.append((moved, total))
        )

    def start(self, body: FileBody) -> Deferred[None]:
        """Begin to send to the consumer."""
        return body.startProducing(cast(Any, self.consumer))

    def turn(self) -> None:
        """What is to happen in the reactor without delay."""
        self.clock.advance(0)

    def test_blocks(self) -> None:
        """None at first, and then one whenever the consumer wants it; after the last the Deferred fires."""
        data = bytes(BLOCK) + b"rest"
        body = self.consumer.slows = self.body(BytesIO(data))
        self.assertEqual(body.length, len(data))
        done = self.start(body)
        self.assertEqual(self.consumer.blocks, [])
        self.turn()
        self.assertEqual([len(block) for block in self.consumer.blocks], [BLOCK])
        body.resumeProducing()
        self.turn()
        self.assertEqual(b"".join(self.consumer.blocks), data)
        self.assertNoResult(done)
        body.resumeProducing()
        self.turn()
        self.successResultOf(done)
        self.assertEqual(self.progress, [(BLOCK, BLOCK + 4), (BLOCK + 4, BLOCK + 4)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_goes_on_by_itself(self) -> None:
        """Where nobody pauses it."""
        done = self.start(self.body(BytesIO(bytes(3 * BLOCK))))
        self.turn()
        self.assertEqual(len(self.consumer.blocks), 3)
        self.successResultOf(done)

    def test_begins_where_the_file_stands(self) -> None:
        """What was read of it before is not sent."""
        file = BytesIO(b"0123456789")
        file.seek(4)
        body = self.body(file)
        self.assertEqual(body.length, 6)
        done = self.start(body)
        self.turn()
        self.assertEqual(self.consumer.blocks, [b"456789"])
        self.successResultOf(done)

    def test_length_that_is_given(self) -> None:
        """No more than that is read."""
        body = self.body(BytesIO(b"0123456789"), 3)
        done = self.start(body)
        self.turn()
        self.assertEqual(self.consumer.blocks, [b"012"])
        self.successResultOf(done)

    def test_unknown_length(self) -> None:
        """A stream is read to its end."""
        body = self.body(Stream(b"abc"))
        self.assertIs(body.length, UNKNOWN_LENGTH)
        done = self.start(body)
        self.turn()
        self.assertEqual((self.consumer.blocks, self.progress), ([b"abc"], [(3, None)]))
        self.successResultOf(done)

    def test_grown_file(self) -> None:
        """What was added after the beginning is not sent: the length has been told."""
        file = BytesIO(b"abc")
        body = self.body(file)
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        file.seek(0)
        done = self.start(body)
        self.turn()
        self.assertEqual(self.consumer.blocks, [b"abc"])
        self.successResultOf(done)

    def test_shrunken_file(self) -> None:
        """Is an error that says so."""
        file = BytesIO(b"abcdef")
        body = self.body(file)
        file.truncate(2)
        done = self.start(body)
        self.turn()
        self.assertIn("4 bytes early", str(self.failureResultOf(done, SourceChanged).value))

    def test_unreadable_file(self) -> None:
        """The operating system's error comes through."""
        file = Stream(b"abc")
        file.broken = OSError(5, "Input/output error")
        done = self.start(self.body(file))
        self.turn()
        self.assertIs(self.failureResultOf(done, OSError).value, file.broken)

    def test_pause(self) -> None:
        """Nothing is read in a pause, also one that begins or ends twice."""
        body = self.body(BytesIO(bytes(2 * BLOCK)))
        self.start(body)
        body.pauseProducing()
        body.pauseProducing()
        self.turn()
        self.assertEqual(self.consumer.blocks, [])
        self.consumer.slows = body
        body.resumeProducing()
        body.resumeProducing()
        self.turn()
        self.assertEqual(len(self.consumer.blocks), 1)

    def test_stop(self) -> None:
        """Nothing is read any more, and the Deferred does not fire."""
        body = self.body(BytesIO(b"abc"))
        done = self.start(body)
        body.stopProducing()
        self.turn()
        self.assertEqual(self.consumer.blocks, [])
        self.assertNoResult(done)

    def test_cancel(self) -> None:
        """Stops too."""
        done = self.start(self.body(BytesIO(b"abc")))
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PipeBodyTests(SynchronousTestCase):
    """A pipe, read when there is something in it."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.consumer = Consumer()
        self.out, self.into = os.pipe()
        self.addCleanup(self.close)
        self.progress: list[tuple[int, int | None]] = []
        self.body = PipeBody(self.out, self.reactor, lambda moved, total: self.progress.append((moved, total)))
        self.done = self.body.startProducing(cast(Any, self.consumer))

    def close(self) -> None:
        """Both ends."""
        self.close_writer()
        os.close(self.out)

    def close_writer(self) -> None:
        """The writing end."""
        if self.into >= 0:
            os.close(self.into)
            self.into = -1

    def test_read(self) -> None:
        """What is there, until the end; in chunks, as there is no length."""
        self.assertIs(self.body.length, UNKNOWN_LENGTH)
        self.assertEqual((self.body.fileno(), self.reactor.getReaders()), (self.out, [self.body]))
        for data in (b"abc", b"d"):
            os.write(self.into, data)
            self.body.doRead()
        self.assertNoResult(self.done)
        self.close_writer()
        self.body.doRead()
        self.successResultOf(self.done)
        self.assertEqual((self.consumer.blocks, self.progress), ([b"abc", b"d"], [(3, None), (4, None)]))
        self.assertEqual(self.reactor.getReaders(), [])

    def test_hang_up(self) -> None:
        """The reactor tells of a writer that went without another byte."""
        self.body.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(self.done)
        self.assertEqual(self.reactor.getReaders(), [])

    def test_pause_and_stop(self) -> None:
        """The reactor does not look at it meanwhile."""
        self.body.pauseProducing()
        self.assertEqual(self.reactor.getReaders(), [])
        self.body.resumeProducing()
        self.assertEqual(self.reactor.getReaders(), [self.body])
        self.body.stopProducing()
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertNoResult(self.done)

    def test_unreadable(self) -> None:
        """The operating system's error comes through."""
        body = PipeBody(self.into, self.reactor)
        done = body.startProducing(cast(Any, self.consumer))
        body.doRead()
        self.failureResultOf(done, OSError)
        self.assertNotIn(body, self.reactor.getReaders())

    def test_interfaces(self) -> None:
        """What Twisted's client and its reactor demand."""
        verifyObject(IBodyProducer, self.body)
        verifyObject(IReadDescriptor, self.body)
        verifyObject(IBodyProducer, FileBody(BytesIO(), Clock()))

    def test_is_regular(self) -> None:
        """A pipe is no file that can be read at any time."""
        with os.fdopen(os.dup(self.out), "rb") as pipe, open(__file__, "rb") as file:
            self.assertEqual((is_regular(pipe), is_regular(file)), (False, True))


class ReplacingTests(SynchronousTestCase):
    """A file that takes another's place when it is whole."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "state"

    def names(self) -> list[str]:
        """What is in the directory."""
        return sorted(path.name for path in self.directory.iterdir())

    def test_new(self) -> None:
        """It is not there before the end, and then nothing else is."""
        with replacing(self.path) as file:
            file.write(b"new")
            self.assertNotIn("state", self.names())
        self.assertEqual((self.names(), self.path.read_bytes()), (["state"], b"new"))

    def test_permissions(self) -> None:
        """Are those of any new file."""
        other = self.directory / "other"
        other.touch()
        with replacing(self.path):
            pass
        self.assertEqual(self.path.stat().st_mode, other.stat().st_mode)

    def test_replaced(self) -> None:
        """The old one is whole until the new one is."""
        self.path.write_bytes(b"old")
        with replacing(self.path) as file:
            file.write(b"new")
            file.flush()
            self.assertEqual(self.path.read_bytes(), b"old")
        self.assertEqual(self.path.read_bytes(), b"new")

    def test_failure(self) -> None:
        """The old one stays, and nothing is left of the new one."""
        self.path.write_bytes(b"old")

        def fail() -> None:
            with replacing(self.path) as file:
                file.write(b"new")
                raise KeyboardInterrupt

        self.assertRaises(KeyboardInterrupt, fail)
        self.assertEqual((self.names(), self.path.read_bytes()), (["state"], b"old"))

    def test_symbolic_link(self) -> None:
        """What it points to is replaced, and not the link."""
        link = self.directory / "link"
        link.symlink_to("state")
        with replacing(link) as file:
            file.write(b"new")
        self.assertTrue(link.is_symlink())
        self.assertEqual(self.path.read_bytes(), b"new")

    def test_device(self) -> None:
        """Is written to, not replaced."""
        with replacing("/dev/null") as file:
            file.write(b"new")
        self.assertTrue(Path("/dev/null").is_char_device())


class PushTests(ClientTestCase):
    """Uploads, all the way to the pair."""

    def test_push(self) -> None:
        """With a length, of more than a block."""
        data = os.urandom(3 * BLOCK + 17)
        progress: list[tuple[int, int | None]] = []
        committed = self.result(
            self.client.push("demo", BytesIO(data), progress=lambda moved, total: progress.append((moved, total)))
        )
        self.assertEqual((committed.bytes, self.primary.uploads[0].data), (len(data), data))
        self.assertIn(f"Content-Length: {len(data)}\r\n".encode(), self.links[0].sent)
        self.assertEqual(progress[-1], (len(data), len(data)))
        self.assertEqual([moved for moved, _ in progress], [BLOCK, 2 * BLOCK, 3 * BLOCK, len(data)])

    def test_push_stream(self) -> None:
        """In chunks."""
        data = os.urandom(BLOCK + 17)
        committed = self.result(self.client.push("demo", cast(BinaryIO, Stream(data))))
        self.assertEqual((committed.bytes, self.primary.uploads[0].data), (len(data), data))
        self.assertIn(b"Transfer-Encoding: chunked\r\n", self.links[0].sent)

    def test_frozen_pair_slows_its_source(self) -> None:
        """Little of the file is read while the pair takes nothing."""
        self.primary.show(freeze_output=True)
        moved: list[int] = []
        waiting = self.start(
            self.client.push("demo", BytesIO(bytes(100 * BLOCK)), progress=lambda now, _: moved.append(now))
        )
        for _ in range(20):
            self.pump()
        self.assertNoResult(waiting)
        self.assertLess(moved[-1], 5 * BLOCK)
        self.primary.uploads[0].body.resumeProducing()
        self.pump()
        self.assertEqual(self.successResultOf(waiting).bytes, 100 * BLOCK)

    def test_source_fails(self) -> None:
        """The caller gets the file's own error, the daemon cancels."""
        stream = Stream(bytes(2 * BLOCK))
        progress: list[int] = []

        def fail_after_the_first(moved: int, _: int | None) -> None:
            progress.append(moved)
            stream.broken = OSError(5, "Input/output error")

        error = self.error(self.client.push("demo", cast(BinaryIO, stream), progress=fail_after_the_first), OSError)
        self.assertIs(error, stream.broken)
        self.assertEqual(progress, [BLOCK])
        self.assertIsNone(self.primary.shown.transaction)

    def test_source_shrinks(self) -> None:
        """Nothing else is sent in the place of what is missing."""
        file = BytesIO(b"abcdef")
        waiting = Deferred.fromCoroutine(self.client.push("demo", file))
        file.truncate(2)
        self.pump()
        self.failureResultOf(waiting, SourceChanged)
        self.assertIsNone(self.primary.shown.transaction)


class FetchTests(ClientTestCase):
    """Downloads."""

    def setUp(self) -> None:
        super().setUp()
        self.data = os.urandom(3 * BLOCK)
        self.secondary.kept.add(b"older", NOW)
        self.held = self.secondary.kept.add(self.data, NOW)
        self.file = BytesIO()

    def test_list(self) -> None:
        """Oldest first."""
        self.assertEqual([held.number for held in self.result(self.client.checkpoints("demo-standby"))], [1, 2])

    def test_by_number(self) -> None:
        """The bytes, and what they are."""
        fetched = self.result(self.client.fetch("demo-standby", 1, self.file))
        self.assertEqual((fetched.number, fetched.bytes, self.file.getvalue()), (1, 5, b"older"))
        self.assertEqual(fetched.xxh3, xxhash.xxh3_64_hexdigest(b"older"))

    def test_latest(self) -> None:
        """With its number, and progress that ends with all of it."""
        progress: list[tuple[int, int | None]] = []
        fetched = self.result(
            self.client.fetch(
                "demo-standby", "latest", self.file, progress=lambda moved, total: progress.append((moved, total))
            )
        )
        self.assertEqual((fetched.number, self.file.getvalue()), (2, self.data))
        self.assertEqual(progress[-1], (len(self.data), len(self.data)))
        self.assertEqual(progress, sorted(progress))

    def test_missing(self) -> None:
        """A number that is not held."""
        self.assertEqual(self.error(self.client.fetch("demo-standby", 9, self.file), ApiError).status, 404)

    def scripted(self, head: str, body: bytes, *, close: bool = False) -> Deferred[Any]:
        """A download from a server that answers so."""
        servers = self.script()
        waiting = self.start(self.client.fetch("demo-standby", "latest", self.file))
        servers.connections[0].answer(head, body, close=close)
        self.pump()
        return waiting

    def test_damaged(self) -> None:
        """The digest is compared."""
        waiting = self.scripted('200 OK\r\nX-Ftd-Checkpoint: 2\r\nETag: "0123456789abcdef"', b"state")
        text = str(self.failureResultOf(waiting, Damaged).value)
        self.assertIn("checkpoint 2 of demo-standby arrived damaged: its xxh3 is 0123456789abcdef", text)

    def test_weak_tag(self) -> None:
        """A proxy that touched the answer makes the entity tag a weak one; the digest in it counts as before."""
        digest = xxhash.xxh3_64_hexdigest(b"state")
        waiting = self.scripted(f'200 OK\r\nX-Ftd-Checkpoint: 2\r\nETag: W/"{digest}"', b"state")
        self.assertEqual(self.successResultOf(waiting).xxh3, digest)

    def test_digest_from_the_list(self) -> None:
        """Where the headers do not have it."""
        digest = xxhash.xxh3_64_hexdigest(b"state")
        for listed, kind in ((digest, None), ("0" * 16, Damaged)):
            waiting = self.scripted("200 OK", b"state", close=True)
            row = f'{{"number":7,"id":1,"bytes":5,"xxh3":"{listed}","generation":"","committed_at":1.5}}'
            servers = cast(Any, self._server)
            servers.connections[1].answer("200 OK", f'{{"checkpoints":[{row}]}}'.encode())
            self.pump()
            if kind is None:
                self.assertEqual(self.successResultOf(waiting).number, 7)
            else:
                self.failureResultOf(waiting, kind)
            self.result(self.client.close())

    def test_no_digest_at_all(self) -> None:
        """Nobody can say whether it arrived whole, so it did not."""
        waiting = self.scripted("200 OK", b"state", close=True)
        cast(Any, self._server).connections[1].answer("200 OK", b'{"checkpoints":[]}')
        self.pump()
        self.assertIn("no longer held", str(self.failureResultOf(waiting, Damaged).value))

    def test_cut_short(self) -> None:
        """The connection breaks in the midst of it."""
        self.secondary.kept.missing = 10
        error = self.error(self.client.fetch("demo-standby", 2, self.file), Unreachable)
        self.assertEqual(error.why, "the connection broke before the answer was through")
        self.assertEqual(len(self.flushLoggedErrors(EOFError)), 1)

    def test_to_path(self) -> None:
        """The file is there when it is whole."""
        path = Path(self.mktemp())
        self.result(self.client.fetch_to("demo-standby", 2, path))
        self.assertEqual(path.read_bytes(), self.data)

    def test_to_path_cut_short(self) -> None:
        """What was there stays, and nothing is added."""
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "state"
        path.write_bytes(b"before")
        self.secondary.kept.missing = 10
        self.error(self.client.fetch_to("demo-standby", 2, path), Unreachable)
        self.assertEqual([entry.name for entry in directory.iterdir()], ["state"])
        self.assertEqual(path.read_bytes(), b"before")
        self.flushLoggedErrors(EOFError)

    def test_full_disk(self) -> None:
        """The file's own error comes through, and the download stops."""

        class FullDisk(BytesIO):
            def write(self, data: Any) -> int:
                raise OSError(28, f"No space left for {len(data)} bytes")

        self.assertEqual(self.error(self.client.fetch("demo-standby", 2, FullDisk()), OSError).errno, 28)
        self.assertTrue(self.links[0].transport.is_closed)
