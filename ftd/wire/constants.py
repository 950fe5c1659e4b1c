"""
The numbers of the VM transaction protocol: commands (the seed's ``enum QEMU_VM_TRANSACTION_STATE``), features, limits.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

ByteOrder = Literal["little", "big"]

#: Bytes of a header: ``cmd`` u16, ``id`` u16, ``seq`` u32, ``payload_len`` u32, no padding.
HEADER_SIZE: Final = 12

#: Transaction ids are 16 bits wide and wrap.
ID_MODULUS: Final = 1 << 16

#: ``seq`` is 32 bits wide and does not wrap inside a transaction.
MAX_SEQ: Final = (1 << 32) - 1

#: The longest HELLO payload, in bytes.
MAX_HELLO: Final = 64 * 1024

#: What a header's ``payload_len`` can say at most.
MAX_PAYLOAD_LEN: Final = (1 << 32) - 1

#: Bytes of the xxh3-64 that ends a COMMIT or an ATOMIC where the digest feature is agreed.
DIGEST_SIZE: Final = 8

PROTOCOL_VERSION: Final = 1


class Command(IntEnum):
    """What a header's ``cmd`` says.  INIT never travels."""

    INIT = 0
    BEGIN = 1
    CONTINUE = 2
    COMMIT = 3
    CANCEL = 4
    ATOMIC = 5
    ACK = 6
    HELLO = 7
    NACK = 0xFFFF


#: The features this implementation offers in its HELLO; one is in force when both sides list it.
FEATURE_ATOMIC: Final = "atomic"
FEATURE_NACK: Final = "nack"
FEATURE_DIGEST: Final = "digest"
FEATURE_WINDOW: Final = "window"
FEATURES: Final = frozenset({FEATURE_ATOMIC, FEATURE_NACK, FEATURE_DIGEST, FEATURE_WINDOW})

#: The most transactions in flight that a HELLO can ask for or allow.
MAX_WINDOW: Final = 1024
