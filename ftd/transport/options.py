"""What can be set of a link's connection."""

from __future__ import annotations

import attrs

from ftd.transport.tls_identity import TlsIdentity


@attrs.frozen(kw_only=True)
class LinkOptions:
    """
    The keys of the same names in ``docs/configuration.md``; ``None`` and 0 leave a thing as the system has it.

    :ivar latency_spin: seconds to look for an answer before going to sleep; 0 for never, ``None`` to find out.
    :ivar user_timeout: seconds, TCP_USER_TIMEOUT.
    :ivar tls: who this end is, for a link that is TLS.
    """

    latency_spin: float | None = None
    congestion_control: str = ""
    socket_buffer: int = 0
    no_delay: bool = True
    user_timeout: float = 0.0
    tls: TlsIdentity | None = None


#: As a link is where nobody said otherwise.
DEFAULT_OPTIONS = LinkOptions()
