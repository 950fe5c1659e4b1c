"""What every sink has to do, done by each: see `ftd.testing.sink_suite`."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ftd.interfaces import IStoringSink
from ftd.sinks import DirectorySink, MemorySink
from ftd.test.wire.profile import examples
from ftd.testing.sink_suite import StoringSinkSuite
from ftd.testing.threads import run_at_once


class MemorySinkSuiteTests(StoringSinkSuite, SynchronousTestCase):
    """`MemorySink`."""

    examples = examples(40)

    def make_sink(self, keep: int) -> IStoringSink:
        return MemorySink(keep, 1 << 30, self.now)


class DirectorySinkSuiteTests(StoringSinkSuite, SynchronousTestCase):
    """`DirectorySink`, on a real directory, without the waiting for the disk."""

    examples = examples(20)

    def setUp(self) -> None:
        self.patch(os, "fsync", lambda _descriptor: None)

    def make_sink(self, keep: int) -> IStoringSink:
        sink = DirectorySink(Path(self.mktemp()), keep, run_at_once, self.now)
        sink.recover()
        return sink
