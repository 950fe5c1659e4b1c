"""How the bytes of a link get to the socket and back."""

from ftd.transport.adopt import adopt
from ftd.transport.base import LinkEnd, LinkTransport

__all__ = ["LinkEnd", "LinkTransport", "adopt"]
