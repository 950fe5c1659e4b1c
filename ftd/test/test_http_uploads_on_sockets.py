"""What :mod:`ftd.test.test_http_uploads` says, where every body is read past Twisted's transport."""

from __future__ import annotations

from ftd.http import uploads
from ftd.test import test_http_uploads as in_memory
from ftd.test.api_case import ApiTestCase
from ftd.testing.http_socket import SocketConnection


class OnSockets(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(uploads, "LARGE_BODY", 1)

    def connect(self, capacity: int = 64 * 1024) -> SocketConnection:
        return SocketConnection(self.site, capacity)


class StreamingTests(OnSockets, in_memory.StreamingTests):
    pass


class PauseTests(OnSockets, in_memory.PauseTests):
    pass


class CutTests(OnSockets, in_memory.CutTests):
    pass


class EarlyAnswerTests(OnSockets, in_memory.EarlyAnswerTests):
    pass


class ShortIdleTimeTests(OnSockets, in_memory.ShortIdleTimeTests):
    pass
