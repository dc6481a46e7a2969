"""The guest policy of AMD SEV: what the firmware allows to be done to a guest.

Four bytes: flags (two, little-endian), then major and minor version of the oldest firmware API that
the guest may run under. It travels in JSON as the Rust crate ``sev`` writes it::

    {"flags": {"bits": 59}, "minfw": {"major": 0, "minor": 0}}

Specification: AMD 55766, Secure Encrypted Virtualization API, revision 3.24, chapter 3.
"""

from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated, Any, Final

import msgspec

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import convert_struct

_Byte = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]


class SevPolicyFlags(IntFlag):
    """What a policy forbids or demands; the other ten bits are reserved and must be zero."""

    NO_DEBUG = 1 << 0
    NO_KEY_SHARING = 1 << 1
    ENCRYPTED_STATE = 1 << 2
    NO_SEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


_KNOWN_FLAGS: Final = (1 << 6) - 1


class _Flags(msgspec.Struct, frozen=True):
    bits: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class _Version(msgspec.Struct, frozen=True):
    major: _Byte
    minor: _Byte


class _Policy(msgspec.Struct, frozen=True):
    flags: _Flags
    minfw: _Version


@dataclass(frozen=True, slots=True)
class SevPolicy:
    """A guest policy.

    Attributes:
        minimum_api: major and minor version of the oldest firmware API.
    """

    flags: SevPolicyFlags
    minimum_api: tuple[int, int] = (0, 0)

    def encode(self) -> bytes:
        """Return the four bytes that the firmware takes and that MACs cover."""
        return self.flags.to_bytes(2, "little") + bytes(self.minimum_api)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        major, minor = self.minimum_api
        return {"flags": {"bits": int(self.flags)}, "minfw": {"major": major, "minor": minor}}

    @property
    def allows_debug(self) -> bool:
        """Whether the host may read and write the guest's memory."""
        return SevPolicyFlags.NO_DEBUG not in self.flags


#: Where a workload is registered without one: nothing but running on one SEV platform is allowed.
#: Without SEV-ES, which not every hypervisor can run and which changes the launch digest.
DEFAULT_POLICY: Final = SevPolicy(
    SevPolicyFlags.NO_DEBUG
    | SevPolicyFlags.NO_KEY_SHARING
    | SevPolicyFlags.NO_SEND
    | SevPolicyFlags.DOMAIN
    | SevPolicyFlags.SEV
)


def decode_policy(data: bytes) -> SevPolicy:
    """Read the four bytes of :meth:`SevPolicy.encode`."""
    return SevPolicy(
        SevPolicyFlags(int.from_bytes(data[:2], "little") & _KNOWN_FLAGS), (data[2], data[3])
    )


def parse_policy(value: Any) -> SevPolicy:
    """Read the JSON form.

    Args:
        value: a parsed JSON value.

    Raises:
        MalformedError: not of this form, or a reserved bit is set.
    """
    policy = convert_struct(value, _Policy)
    if policy.flags.bits & ~_KNOWN_FLAGS:
        raise MalformedError("the SEV policy sets bits that are reserved (6 to 15)")
    return SevPolicy(SevPolicyFlags(policy.flags.bits), (policy.minfw.major, policy.minfw.minor))
