"""Uploads: how a body becomes frames, what holds it up, and every way in which it can end."""

from __future__ import annotations

from sys import getrefcount

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import FtdError, LinkDown, NotInState, TooLarge
from ftd.feed import Upload
from ftd.interfaces import IUpload
from ftd.test.link_case import FakeSource
from ftd.test.wire.profile import examples
from ftd.wire.sender import Buffer

FRAME_SIZE = 1000


class FakeTarget:
    """
    Takes frames, and freezes or fails when it is told to.

    :ivar frames: the pieces of each.
    :ivar runs: size and frame size of each run, whose frames are in `frames` too.
    :ivar unsent: what it says of itself.
    :ivar freeze_at: how many more frames it takes before it freezes.
    :ivar fails_with: what ``send_frame`` raises.
    :ivar ending: ``finished``, or the reason for which the upload was cut.
    """

    def __init__(self) -> None:
        self.frames: list[tuple[Buffer, ...]] = []
        self.runs: list[tuple[int, int]] = []
        self.unsent = 0
        self.freeze_at: int | None = None
        self.fails_with: FtdError | None = None
        self.finish_fails_with: FtdError | None = None
        self.ending = ""
        self.upload: Upload

    def send_frame(self, pieces: tuple[Buffer, ...]) -> None:
        """See `UploadTarget`."""
        assert not self.ending
        if self.fails_with is not None:
            raise self.fails_with
        self.frames.append(pieces)
        if self.freeze_at is not None:
            self.freeze_at -= 1
            if self.freeze_at == 0:
                self.upload.pauseProducing()

    def send_run(self, data: memoryview, frame_size: int) -> None:
        """See `UploadTarget`."""
        self.runs.append((len(data), frame_size))
        for at in range(0, len(data), frame_size):
            self.send_frame((data[at : at + frame_size],))

    def upload_finished(self, upload: Upload) -> None:
        """See `UploadTarget`."""
        assert upload is self.upload and not self.ending
        if self.finish_fails_with is not None:
            raise self.finish_fails_with
        self.ending = "finished"

    def upload_cut(self, reason: str) -> None:
        """See `UploadTarget`."""
        assert not self.ending
        self.ending = reason
        if self.fails_with is not None:
            raise self.fails_with
        self.upload.fail(NotInState(reason, "CANCEL"))

    def sizes(self) -> list[int]:
        """Bytes of each frame."""
        return [sum(map(len, frame)) for frame in self.frames]

    def state(self) -> bytes:
        """All bytes."""
        return b"".join(bytes(piece) for frame in self.frames for piece in frame)


class UploadTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.body = FakeSource()
        self.target = FakeTarget()
        self.upload = self.target.upload = Upload(self.target, self.body, FRAME_SIZE, is_checkpoint=True)

    def write(self, *sizes: int) -> None:
        for size in sizes:
            self.upload.write(bytes(size))


class FrameTests(UploadTestCase):
    def test_it_is_what_the_api_knows(self) -> None:
        self.assertTrue(IUpload.providedBy(self.upload))

    def test_nothing_is_sent_before_a_frame_is_full(self) -> None:
        self.write(400, 599)
        self.assertEqual((self.target.sizes(), self.upload.accepted), ([], 0))
        self.write(1)
        self.assertEqual((self.target.sizes(), self.upload.accepted), ([1000], 1000))

    def test_a_long_piece_becomes_many_frames_and_is_not_copied(self) -> None:
        data = bytes(range(250)) * 10
        self.upload.write(data)
        self.upload.finish()
        self.assertEqual(self.target.sizes(), [1000, 1000, 500])
        self.assertEqual(self.target.state(), data)
        for frame in self.target.frames:
            for piece in frame:
                self.assertIsInstance(piece, memoryview)
                self.assertIs(memoryview(piece).obj, data)

    def test_whole_frames_of_a_long_piece_go_at_once(self) -> None:
        self.write(300, 4000, 900)
        self.upload.finish()
        self.assertEqual(self.target.runs, [(3000, FRAME_SIZE)])
        self.assertEqual(self.target.sizes(), [1000, 1000, 1000, 1000, 1000, 200])

    def test_unsent_is_what_waits_here_and_what_the_pair_has(self) -> None:
        self.write(700)
        self.assertEqual(self.upload.unsent, 700)
        self.target.unsent = 112
        self.assertEqual(self.upload.unsent, 812)
        self.write(1300)
        self.assertEqual(self.upload.unsent, 112)
        self.write(10)
        self.upload.fail(NotInState("it was cancelled", "CANCEL"))
        self.failureResultOf(self.upload.done, NotInState)
        self.assertEqual(self.upload.unsent, 112, "what was sent is still on its way")

    def test_a_piece_that_fits_is_sent_as_it_is(self) -> None:
        pieces = [bytes(300), bytes(700)]
        for piece in pieces:
            self.upload.write(piece)
        (frame,) = self.target.frames
        self.assertEqual([id(piece) for piece in frame], [id(piece) for piece in pieces])

    def test_the_rest_is_sent_at_the_end(self) -> None:
        self.write(1400)
        self.upload.finish()
        self.assertEqual(
            (self.target.sizes(), self.upload.accepted, self.target.ending), ([1000, 400], 1400, "finished")
        )

    def test_an_empty_body_has_no_frame(self) -> None:
        self.upload.finish()
        self.assertEqual((self.target.frames, self.target.ending), ([], "finished"))

    def test_writes_of_nothing_are_nothing(self) -> None:
        self.write(*[0] * 200)
        self.upload.finish()
        self.assertEqual(self.target.frames, [])

    def test_tiny_pieces_end_a_frame_early(self) -> None:
        self.write(*[1] * 63)
        self.assertEqual(self.target.frames, [])
        self.write(1)
        self.assertEqual(self.target.sizes(), [64])
        self.write(*[1] * 63, 2000)
        self.assertEqual(self.target.sizes(), [64, 1000, 1000])
        self.upload.finish()
        self.assertEqual(self.target.sizes(), [64, 1000, 1000, 63])

    @examples(200)
    @given(st.lists(st.one_of(st.integers(0, 20), st.integers(0, 5000)), max_size=150), st.data())
    def test_whatever_holds_it_up_the_state_is_the_body(self, sizes: list[int], data: st.DataObject) -> None:
        self.setUp()
        self.upload.hold()
        held, frozen = True, False
        body = b"".join(index.to_bytes(2, "big") * (size // 2) for index, size in enumerate(sizes))
        at = 0
        for size in sizes:
            self.upload.write(body[at : at + size // 2 * 2])
            at += size // 2 * 2
            step = data.draw(st.sampled_from(("write on", "release", "freeze", "thaw")), label="then")
            if step == "release":
                self.upload.release()
                held = False
            elif step == "freeze":
                self.upload.pauseProducing()
                frozen = True
            elif step == "thaw":
                self.upload.resumeProducing()
                frozen = False
            self.assertEqual(self.body.is_paused, held or frozen)
            self.assertEqual(bool(self.target.frames) and held, False)
        self.upload.finish()
        self.upload.resumeProducing()
        self.upload.release()
        self.assertEqual(self.target.ending, "finished")
        self.assertEqual(self.target.state(), body)
        self.assertEqual(self.upload.accepted, len(body))
        self.assertLessEqual(max(self.target.sizes(), default=0), FRAME_SIZE)


class HoldTests(UploadTestCase):
    """A whole transaction whose BEGIN has to wait."""

    def test_the_body_waits_for_the_transaction(self) -> None:
        self.upload.hold()
        self.assertEqual(self.body.calls, ["pause"])
        self.write(2500)
        self.assertEqual(self.target.frames, [])
        self.upload.release()
        self.assertEqual((self.target.sizes(), self.body.calls), ([1000, 1000], ["pause", "resume"]))

    def test_a_body_that_ends_before_it_waits_too(self) -> None:
        self.upload.hold()
        self.write(1500)
        self.upload.finish()
        self.assertEqual(self.target.ending, "")
        self.upload.release()
        self.assertEqual((self.target.sizes(), self.target.ending), ([1000, 500], "finished"))

    def test_a_transaction_that_opens_frozen_waits_for_the_thaw(self) -> None:
        self.upload.hold()
        self.write(2500)
        self.upload.finish()
        self.upload.pauseProducing()
        self.upload.release()
        self.assertEqual((self.target.sizes(), self.target.ending, self.body.calls), ([], "", ["pause"]))
        self.upload.resumeProducing()
        self.assertEqual((self.target.sizes(), self.target.ending), ([1000, 1000, 500], "finished"))

    def test_a_body_that_ends_while_its_transaction_is_frozen_is_cut_into_frames_too(self) -> None:
        self.upload.hold()
        self.write(2500)
        self.upload.pauseProducing()
        self.upload.release()
        self.upload.finish()
        self.upload.resumeProducing()
        self.assertEqual((self.target.sizes(), self.target.ending), ([1000, 1000, 500], "finished"))

    def test_releasing_what_is_not_held_does_nothing(self) -> None:
        self.upload.release()
        self.upload.resumeProducing()
        self.assertEqual(self.body.calls, [])


class FreezeTests(UploadTestCase):
    """The sender pauses and resumes the upload, and the upload its body."""

    def test_a_freeze_pauses_the_body_once(self) -> None:
        self.upload.pauseProducing()
        self.upload.pauseProducing()
        self.upload.resumeProducing()
        self.assertEqual(self.body.calls, ["pause", "resume"])

    def test_both_reasons_have_to_go(self) -> None:
        self.upload.hold()
        self.upload.pauseProducing()
        self.upload.release()
        self.assertEqual(self.body.calls, ["pause"])
        self.upload.resumeProducing()
        self.assertEqual(self.body.calls, ["pause", "resume"])

    def test_what_a_paused_body_still_writes_is_sent(self) -> None:
        self.upload.pauseProducing()
        self.write(1000)
        self.assertEqual(self.target.sizes(), [1000])

    def test_an_end_while_frozen_waits_for_the_thaw(self) -> None:
        self.write(300)
        self.upload.pauseProducing()
        self.upload.finish()
        self.assertEqual((self.target.sizes(), self.target.ending), ([300], ""))
        self.upload.resumeProducing()
        self.assertEqual((self.target.sizes(), self.target.ending), ([300], "finished"))

    def test_a_last_frame_that_freezes_is_waited_for(self) -> None:
        self.target.freeze_at = 1
        self.write(300)
        self.upload.finish()
        self.assertEqual((self.target.sizes(), self.target.ending), ([300], ""))
        self.upload.resumeProducing()
        self.assertEqual(self.target.ending, "finished")

    def test_a_thaw_that_freezes_again_leaves_the_body_paused(self) -> None:
        self.upload.hold()
        self.write(1500)
        self.target.freeze_at = 1
        self.upload.release()
        self.assertEqual(self.target.sizes(), [1000])
        self.assertTrue(self.body.is_paused)
        self.upload.resumeProducing()
        self.assertFalse(self.body.is_paused)

    def test_a_sender_that_thaws_while_it_takes_a_frame_gets_them_in_order(self) -> None:
        class Fickle(FakeTarget):
            def send_frame(self, pieces: tuple[Buffer, ...]) -> None:
                super().send_frame(pieces)
                self.upload.pauseProducing()
                self.upload.resumeProducing()

        target = Fickle()
        upload = target.upload = Upload(target, self.body, FRAME_SIZE, is_checkpoint=True)
        body = bytes(range(250)) * 14
        upload.write(body)
        upload.finish()
        self.assertEqual((target.sizes(), target.ending), ([1000, 1000, 1000, 500], "finished"))
        self.assertEqual(target.state(), body)

    def test_a_sender_that_is_gone_says_nothing(self) -> None:
        self.upload.stopProducing()
        self.assertNoResult(self.upload.done)


class EndTests(UploadTestCase):
    def test_success_is_told_once(self) -> None:
        self.upload.finish()
        self.upload.succeed(17)
        self.upload.succeed(18)
        self.upload.fail(LinkDown("too late", 1.0))
        self.assertEqual(self.successResultOf(self.upload.done), 17)

    def test_failure_is_told_once_and_the_body_may_be_read_to_its_end(self) -> None:
        self.upload.hold()
        self.upload.pauseProducing()
        self.write(500)
        self.upload.fail(LinkDown("it broke", 1.0))
        self.upload.fail(LinkDown("again", 1.0))
        self.upload.succeed(1)
        self.assertEqual(str(self.failureResultOf(self.upload.done, LinkDown).value), "it broke")
        self.assertFalse(self.body.is_paused)

    def test_what_is_written_after_a_failure_is_discarded(self) -> None:
        self.write(500)
        self.upload.fail(LinkDown("it broke", 1.0))
        self.write(5000)
        self.upload.pauseProducing()
        self.upload.resumeProducing()
        self.upload.release()
        self.upload.finish()
        self.upload.cut("too late")
        self.assertEqual((self.target.frames, self.target.ending), ([], ""))
        self.failureResultOf(self.upload.done, LinkDown)
        self.assertFalse(self.body.is_paused)

    def test_a_failure_lets_go_of_what_was_and_will_be_written(self) -> None:
        before, after = bytes(500), bytes(501)
        counts = getrefcount(before), getrefcount(after)
        self.upload.write(before)
        self.assertGreater(getrefcount(before), counts[0])
        self.upload.fail(LinkDown("it broke", 1.0))
        self.upload.write(after)
        self.assertEqual((getrefcount(before), getrefcount(after)), counts)
        self.failureResultOf(self.upload.done, LinkDown)

    def test_a_frame_that_cannot_be_sent_fails_it_and_ends_the_frames(self) -> None:
        self.target.fails_with = TooLarge("larger than it may be")
        self.write(3500)
        self.failureResultOf(self.upload.done, TooLarge)
        self.target.fails_with = None
        self.write(3500)
        self.upload.finish()
        self.assertEqual((self.target.frames, self.target.ending), ([], ""))

    def test_a_last_frame_that_cannot_be_sent_fails_it(self) -> None:
        self.write(500)
        self.target.fails_with = LinkDown("it broke", 1.0)
        self.upload.finish()
        self.failureResultOf(self.upload.done, LinkDown)
        self.assertEqual(self.target.ending, "")

    def test_a_frame_that_cannot_be_sent_after_a_thaw_fails_it(self) -> None:
        self.upload.hold()
        self.write(3500)
        self.upload.finish()
        self.target.fails_with = LinkDown("it broke", 1.0)
        self.upload.release()
        self.failureResultOf(self.upload.done, LinkDown)
        self.assertEqual(self.target.ending, "")

    def test_an_end_that_the_pair_cannot_take_fails_it(self) -> None:
        self.target.finish_fails_with = LinkDown("it broke", 1.0)
        self.write(500)
        self.upload.finish()
        self.failureResultOf(self.upload.done, LinkDown)

    def test_a_cut_cancels(self) -> None:
        for moment in ("before it began", "at once", "after a frame", "while frozen"):
            with self.subTest(moment):
                self.setUp()
                if moment == "before it began":
                    self.upload.hold()
                if moment == "after a frame":
                    self.write(1500)
                if moment == "while frozen":
                    self.write(500)
                    self.upload.pauseProducing()
                self.upload.cut("the client went away")
                self.assertEqual(self.target.ending, "the client went away")
                failure = self.failureResultOf(self.upload.done, NotInState)
                self.assertEqual(str(failure.value), "the client went away")
                self.upload.release()
                self.upload.resumeProducing()
                self.assertEqual(self.target.sizes(), [1000] if moment == "after a frame" else [])

    def test_a_cut_that_the_pair_cannot_take_fails_it(self) -> None:
        self.target.fails_with = LinkDown("it broke", 1.0)
        self.upload.cut("the client went away")
        self.failureResultOf(self.upload.done, LinkDown)
