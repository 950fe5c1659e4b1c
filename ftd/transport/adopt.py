"""Which transport a link gets."""

from __future__ import annotations

from typing import Any

from ftd.transport.base import LinkEnd, LinkTransport
from ftd.transport.options import LinkOptions
from ftd.transport.stock import StockTransport


def adopt(transport: Any, end: LinkEnd, options: LinkOptions) -> LinkTransport:  # noqa: ARG001
    """
    The link's transport on top of ``transport``, which Twisted has made and connected.

    :param end: the protocol; it is Twisted's protocol of ``transport`` already.
    """
    return StockTransport(transport)
