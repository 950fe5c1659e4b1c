"""A sink that breaks, as it should not, when the receiver goes on outside of a read: nothing that came is skipped."""

from __future__ import annotations

from ftd.test.link_case import LinkTestCase, code_of
from ftd.test.test_protocol_receiver import transaction


class BrokenSinkTests(LinkTestCase):
    def test_the_link_ends(self) -> None:
        _, peer, link = self.open_from_script()
        data = transaction(0, b"abc", b"def", b"g")
        self.sink.pause_at = 3
        peer.say(data[:42])
        link.pump()
        self.assertEqual(self.sink.held, b"abc")

        def broken(_data: object) -> None:
            patch.restore()
            raise OSError(12, "Cannot allocate memory")

        patch = self.patch(self.sink, "write", broken)
        self.sink.resume()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        link.pump()
        self.assertEqual(code_of(self.secondary.lost_with), ["UNKNOWN"])
        self.assertEqual((self.sink.kept, self.sink.held), ([], None))
