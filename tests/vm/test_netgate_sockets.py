"""A gate's own sockets: what is left of others, what is in use, and QEMU's end of a connection."""

from __future__ import annotations

import os
import socket

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ftd.vm.netgate import NetGateError
from ftd.vm.netgate_sockets import Sockets


class UnblockTests(SynchronousTestCase):
    """QEMU's end of a connection; here it is this process that listens."""

    def setUp(self) -> None:
        path = os.path.relpath(self.mktemp())
        self.door = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.door.close)
        self.door.bind(path)
        self.door.listen(1)
        self.ours = Sockets().dial(path)
        self.addCleanup(self.ours.close)

    def unblock(self) -> bool:
        try:
            return Sockets().unblock_peer(self.ours)
        except OSError as error:
            raise SkipTest(f"no right to trace, or an old kernel: {error}") from None

    def test_the_other_end_and_not_the_one_that_listens_is_made_non_blocking(self) -> None:
        theirs, _address = self.door.accept()
        self.addCleanup(theirs.close)
        self.assertTrue(os.get_blocking(theirs.fileno()))
        self.assertTrue(self.unblock())
        self.assertFalse(os.get_blocking(theirs.fileno()))
        self.assertTrue(os.get_blocking(self.door.fileno()))

    def test_one_that_has_not_accepted_is_not_found(self) -> None:
        self.assertFalse(self.unblock())


class ListenTests(SynchronousTestCase):
    """The socket files themselves; nobody connects."""

    def setUp(self) -> None:
        # Short: the path of a socket has 107 bytes at most.
        self.path = os.path.relpath(self.mktemp())

    def test_only_the_user_and_the_group_may_connect(self) -> None:
        door = Sockets().listen(self.path)
        self.addCleanup(door.close)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o660)
        self.assertRaises(BlockingIOError, door.accept)

    def test_one_that_was_left_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(self.path)
        Sockets().listen(self.path).close()

    def test_one_that_is_in_use_is_not(self) -> None:
        door = Sockets().listen(self.path)
        self.addCleanup(door.close)
        error = self.assertRaises(NetGateError, Sockets().listen, self.path)
        self.assertIn(f"somebody listens at {self.path} already", str(error))

    def test_another_kind_of_file_is_not(self) -> None:
        with open(self.path, "w"):
            pass
        error = self.assertRaises(NetGateError, Sockets().listen, self.path)
        self.assertIn("is not a socket; remove it", str(error))

    def test_a_directory_that_is_not_there(self) -> None:
        error = self.assertRaises(NetGateError, Sockets().listen, f"{self.path}/n0")
        self.assertIn("No such file or directory; its directory has to exist", str(error))
