"""
The two ends of a link as Twisted Protocols: what the seed calls freezing, in producers and consumers.

==============================================  ======================================================================
The seed                                        Here
==============================================  ======================================================================
``freeze_output`` on EAGAIN                     the transport pauses the sender, which is its push producer
put_notify, flush, ``put_ready``                the transport resumes it
``rate_limit`` and frozen: the caller waits     the sender is the `IConsumer` of its source and pauses it
data put while frozen is appended               the source runs on into the `Outbox` up to ``buffer-limit``
``freeze_input`` while loading                  the sink pauses the receiver, which pauses its transport
==============================================  ======================================================================
"""

from __future__ import annotations

from ftd.receiver_protocol import ReceiverProtocol
from ftd.sender_protocol import SenderProtocol

__all__ = ["ReceiverProtocol", "SenderProtocol"]
