"""How the bytes of a link get to the socket and back."""

from ftd.transport.adopt import adopt, set_options
from ftd.transport.base import LinkEnd, LinkTransport
from ftd.transport.options import DEFAULT_OPTIONS, LinkOptions

__all__ = ["DEFAULT_OPTIONS", "LinkEnd", "LinkOptions", "LinkTransport", "adopt", "set_options"]
