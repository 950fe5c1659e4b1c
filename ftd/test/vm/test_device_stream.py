"""The pipe through which QEMU hands over its device state: a real one, and the buffer that is kept."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.primary_world import VmReactor
from ftd.vm.device_stream import DeviceBuffer, DeviceStream
from ftd.vm.errors import VmError

MIB = 1 << 20


class StreamCase(SynchronousTestCase):
    """A stream, and QEMU's end of it."""

    def setUp(self) -> None:
        self.reactor: Any = VmReactor()
        self.buffer = DeviceBuffer(4 * MIB)
        self.before = os.listdir("/proc/self/fd")
        self.qemu = -1
        self.stream = self.new_stream()

    def tearDown(self) -> None:
        self.stream.abandon()
        self.close()
        self.assertEqual(self.reactor.readers, [])
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(self.before), "descriptors are left")

    def new_stream(self) -> DeviceStream:
        """One that QEMU has been passed."""

        def pass_on(descriptor: int) -> None:
            self.qemu = os.dup(descriptor)
            os.set_blocking(self.qemu, False)

        stream = DeviceStream(self.reactor, self.buffer)
        stream.hand_over(pass_on)
        stream.close_ours()
        return stream

    def write(self, data: bytes) -> None:
        """QEMU writes, and ftd reads whenever the pipe is full."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.qemu, view) :]
            except BlockingIOError:
                self.reactor.deliver()

    def close(self) -> None:
        """QEMU closes its end."""
        if self.qemu >= 0:
            os.close(self.qemu)
            self.qemu = -1
        self.reactor.deliver()

    def read(self, data: bytes) -> memoryview:
        """A whole state on its way."""
        self.write(data)
        self.close()
        return self.successResultOf(self.stream.done)


class StreamTests(StreamCase):
    """One state."""

    def test_it_arrives(self) -> None:
        self.write(b"device ")
        self.reactor.deliver()
        self.assertNoResult(self.stream.done)
        self.assertEqual(bytes(self.read(b"state")), b"device state")

    def test_an_empty_one(self) -> None:
        self.assertEqual(bytes(self.read(b"")), b"")

    def test_it_cannot_be_written_to(self) -> None:
        self.assertTrue(self.read(b"state").readonly)

    def test_larger_than_the_pipe_and_the_first_buffer(self) -> None:
        data = os.urandom(3 * MIB + 17)
        self.assertEqual(bytes(self.read(data)), data)

    def test_exactly_the_limit(self) -> None:
        data = os.urandom(4 * MIB)
        self.write(data)
        self.close()
        # Where the buffer is full, nothing tells the end from one byte more.
        self.assertIn("qemu-device-limit", str(self.failureResultOf(self.stream.done, VmError).value))

    def test_over_the_limit(self) -> None:
        with self.assertRaises(BrokenPipeError):
            self.write(bytes(5 * MIB))
        error = self.failureResultOf(self.stream.done, VmError).value
        self.assertIn("larger than qemu-device-limit, 4194304 bytes; raise it", str(error))
        assert self.stream.failure is not None

    def test_its_end_is_told_as_a_lost_connection(self) -> None:
        self.write(b"state")
        os.close(self.qemu)
        self.qemu = -1
        # epoll does so when the writer has hung up.
        self.stream.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(bytes(self.successResultOf(self.stream.done)), b"state")

    def test_lost_while_the_writer_is_there(self) -> None:
        self.stream.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(self.stream.done, ConnectionLost)

    def test_abandoned(self) -> None:
        self.write(b"sta")
        self.stream.abandon()
        self.assertEqual(self.reactor.readers, [])
        self.stream.abandon()

    def test_abandoned_before_it_was_handed_over(self) -> None:
        DeviceStream(self.reactor, self.buffer).abandon()

    def test_abandoned_after_it_failed(self) -> None:
        with self.assertRaises(BrokenPipeError):
            self.write(bytes(5 * MIB))
        self.stream.abandon()
        self.successResultOf(self.stream.done)

    def test_the_memory_is_that_of_the_one_before(self) -> None:
        first = self.read(os.urandom(2 * MIB))
        self.stream = self.new_stream()
        data = os.urandom(2 * MIB)
        self.assertEqual(bytes(self.read(data)), data)
        self.assertEqual(bytes(first), data, "it was not allocated again")
