"""Where a standby puts the state it receives."""

from ftd.sinks.directory import DirectorySink
from ftd.sinks.memory import MemorySink
from ftd.sinks.sink import SinkError

__all__ = ["DirectorySink", "MemorySink", "SinkError"]
