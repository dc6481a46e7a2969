"""Transfer policies: what must be attested before a key is handed out.

A policy is for one kind of TEE and names values that its claims must have. Everything that it
names must hold; of a list one value must be the claim's. A policy names at least one measurement,
identity or policy id: one that would be satisfied by any TEE of its kind is refused.

For SGX and TDX the attributes are those of the Trust Authority key broker. For every other kind
that the broker verifies they are the claims of its verifier by name, nested ones with ``/``
between the names (``realm/cca-realm-initial-measurement``).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keybroker.key_transfer.records import NEVER, parse_id
from keybroker.model.errors import MalformedError
from keybroker.model.tee import Tee

SGX = "SGX"
TDX = "TDX"

#: Every kind that a policy can be for, as it stands in ``attestation_type``.
ATTESTATION_TYPES: Mapping[str, Tee] = {tee.value.upper(): tee for tee in Tee}

ENFORCE_TCB = "enforce_tcb_upto_date"

#: More values, attributes or policy ids than any policy has a use for.
MAX_VALUES = 256

_MAX_TEXT = 1024
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_SHA384 = re.compile(r"[0-9a-fA-F]{96}", re.ASCII)
_CLAIM_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*", re.ASCII)

Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class TransferPolicy:
    """One policy.

    Attributes:
        attestation_type: a key of :data:`ATTESTATION_TYPES`.
        attributes: name → the values of which the claim must have one.
        enforce_tcb_upto_date: whether the platform's TCB must be up to date.
        policy_ids: lower-case; one of them must be among those that Trust Authority matched.
        document: as it is stored and answered.
    """

    id: str
    attestation_type: str
    attributes: Mapping[str, tuple[Scalar, ...]]
    enforce_tcb_upto_date: bool
    policy_ids: frozenset[str]
    document: Mapping[str, Any] = field(repr=False)

    @property
    def tee(self) -> Tee:
        """The kind of TEE."""
        return ATTESTATION_TYPES[self.attestation_type]


def parse_policy(request: Any, *, policy_id: str, created_at: str) -> TransferPolicy:
    """Read a policy as it is created, or as it was stored.

    Raises:
        MalformedError: an unknown member, a value of another kind, or nothing that is required.
    """
    if not isinstance(request, dict):
        raise MalformedError("a transfer policy is a JSON object")
    type_ = _attestation_type(request.get("attestation_type"))
    member = type_.lower()
    # ``id`` and ``created_at`` are the broker's to choose; clients of the original may send them.
    unknown = sorted(set(request) - {"id", "created_at", "attestation_type", "sgx", "tdx", member})
    if unknown:
        raise MalformedError(f"unknown member {unknown[0][:64]!r} in a {type_} policy")
    for other in ("sgx", "tdx"):
        if other != member and other in request:
            raise MalformedError(f"a {type_} policy must not have the member {other!r}")
    body = request.get(member)
    if not isinstance(body, dict):
        raise MalformedError(f"a {type_} policy needs the member {member!r}, an object")
    unknown = sorted(set(body) - {"attributes", "policy_ids"})
    if unknown:
        raise MalformedError(f"unknown member {unknown[0][:64]!r} in {member!r}")
    attributes, enforce = _attributes(body.get("attributes", {}), type_)
    policy_ids = _policy_ids(body.get("policy_ids", []))
    if not attributes and not policy_ids:
        raise MalformedError("a policy that names no attribute and no policy id matches everything")
    document: dict[str, Any] = {
        "id": policy_id,
        "created_at": created_at,
        "attestation_type": type_,
        member: body,
    }
    return TransferPolicy(policy_id, type_, attributes, enforce, policy_ids, document)


def parse_stored_policy(document: Any) -> TransferPolicy:
    """Read a policy that was stored, here or by an original broker.

    Raises:
        MalformedError: as :func:`parse_policy`, or it has no id.
    """
    policy_id = document.get("id") if isinstance(document, dict) else None
    if not isinstance(policy_id, str):
        raise MalformedError("a stored policy has no id")
    created_at = document.get("created_at")
    return parse_policy(
        document,
        policy_id=parse_id(policy_id),
        created_at=created_at if isinstance(created_at, str) else NEVER,
    )


def _attestation_type(value: Any) -> str:
    # The original's instructions write a list with one entry, its code a string.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or value.upper() not in ATTESTATION_TYPES:
        known = ", ".join(ATTESTATION_TYPES)
        raise MalformedError(f"attestation_type must be one of {known}")
    return value.upper()


def _attributes(value: Any, type_: str) -> tuple[Mapping[str, tuple[Scalar, ...]], bool]:
    if not isinstance(value, dict):
        raise MalformedError("attributes must be an object")
    if len(value) > MAX_VALUES:
        raise MalformedError("too many attributes")
    given = dict(value)
    enforce = _boolean(given.pop(ENFORCE_TCB, False))
    readers = _READERS.get(type_)
    attributes: dict[str, tuple[Scalar, ...]] = {}
    for name, item in given.items():
        if readers is None:
            if not _CLAIM_NAME.fullmatch(name) or len(name) > _MAX_TEXT:
                raise MalformedError(f"{name[:64]!r} is not the name of a claim")
            read: Callable[[str, Any], tuple[Scalar, ...]] = _claim_values
        elif name in readers:
            read = readers[name]
        else:
            raise MalformedError(f"unknown attribute {name[:64]!r} for {type_}")
        values = read(name, item)
        if values:
            attributes[name] = values
    return attributes, enforce


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise MalformedError(f"{ENFORCE_TCB} must be true or false")
    return value


def _policy_ids(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        raise MalformedError("policy_ids must be a list of ids")
    ids = set()
    for item in value:
        if not isinstance(item, str):
            raise MalformedError("policy_ids must be a list of ids")
        ids.add(parse_id(item))
    return frozenset(ids)


def _digests(pattern: re.Pattern[str]) -> Callable[[str, Any], tuple[Scalar, ...]]:
    def read(name: str, value: Any) -> tuple[Scalar, ...]:
        return tuple(_digest(name, item, pattern) for item in _list(name, value))

    return read


def _one_digest(name: str, value: Any) -> tuple[Scalar, ...]:
    # An empty register stands for one that is not named, in the original as well.
    return () if value == "" else (_digest(name, value, _SHA384),)


def _digest(name: str, value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        bits = 256 if pattern is _SHA256 else 384
        raise MalformedError(f"{name} must hold SHA-{bits} digests in hexadecimal")
    return value.lower()


def _numbers(name: str, value: Any) -> tuple[Scalar, ...]:
    return tuple(_number(name, item) for item in _list(name, value))


def _one_number(name: str, value: Any) -> tuple[Scalar, ...]:
    return (_number(name, value),)


def _number(name: str, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise MalformedError(f"{name} must hold integers from 0 to 65535")
    return value


def _claim_values(name: str, value: Any) -> tuple[Scalar, ...]:
    values = _list(name, value) if isinstance(value, list) else [value]
    read: list[Scalar] = []
    for item in values:
        if isinstance(item, str) and len(item) <= _MAX_TEXT:
            read.append(item.lower())
        elif isinstance(item, bool | int):
            read.append(item)
        else:
            raise MalformedError(f"{name[:64]} must hold strings, integers, true or false")
    return tuple(read)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedError(f"{name[:64]} must be a list")
    if len(value) > MAX_VALUES:
        raise MalformedError(f"{name[:64]} holds too many values")
    return value


#: How the attributes of Intel's TEEs are read.
_READERS: Mapping[str, Mapping[str, Callable[[str, Any], tuple[Scalar, ...]]]] = {
    SGX: {
        "mrsigner": _digests(_SHA256),
        "isvprodid": _numbers,
        "mrenclave": _digests(_SHA256),
        "isvsvn": _one_number,
    },
    TDX: {
        "mrsignerseam": _digests(_SHA384),
        "mrseam": _digests(_SHA384),
        "seamsvn": _one_number,
        "mrtd": _digests(_SHA384),
        "rtmr0": _one_digest,
        "rtmr1": _one_digest,
        "rtmr2": _one_digest,
        "rtmr3": _one_digest,
    },
}
