"""How a pair is put together from its configuration: endpoints, sinks, directories."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.threads import deferToThreadPool

from ftd.config import PairConfig, Role, Sink
from ftd.errors import ConfigError
from ftd.interfaces import IStoringSink
from ftd.pair import Surroundings
from ftd.primary import PrimaryPair
from ftd.secondary import SecondaryPair
from ftd.sinks import DirectorySink, MemorySink


def build_pair(config: PairConfig, around: Surroundings, state_dir: Path, reactor: Any) -> PrimaryPair | SecondaryPair:
    """
    Make a half-pair that has not started yet.

    :raises ConfigError: if its part of ``state-dir`` cannot be used.
    """
    directory = state_dir / "pairs" / config.section
    if config.role is Role.PRIMARY:
        return PrimaryPair(config, around, endpoint=clientFromString(reactor, config.link), directory=directory)
    return SecondaryPair(
        config,
        around,
        endpoint=serverFromString(reactor, config.link),
        sink=_build_sink(config, directory / "checkpoints", reactor),
    )


def _build_sink(config: PairConfig, directory: Path, reactor: Any) -> IStoringSink:
    if config.sink is Sink.MEMORY:
        return MemorySink(config.keep, config.memory_limit)
    sink = DirectorySink(directory, config.keep, partial(deferToThreadPool, reactor, reactor.getThreadPool()))
    try:
        sink.recover()
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: {error.strerror}", "ftd", "state-dir") from None
    return sink
