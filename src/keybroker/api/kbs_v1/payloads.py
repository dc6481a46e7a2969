"""Bodies and answers of ``/kbs/v1``; a member that is not listed here is refused, as there."""

import base64
from typing import Any, TypeVar

import msgspec

from keybroker.key_transfer.keys import KeyFilter, KeyRequest
from keybroker.key_transfer.material import (
    AES_LENGTHS,
    ALGORITHMS,
    CURVES,
    RSA_LENGTHS,
    parse_spec,
)
from keybroker.key_transfer.nonces import parse_nonce, parse_octets
from keybroker.key_transfer.records import NIL_ID, KeyRecord, User, parse_id
from keybroker.key_transfer.transfer import BackgroundRequest
from keybroker.key_transfer.transfer_policy import ATTESTATION_TYPES
from keybroker.key_transfer.trust_authority import Evidence
from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import convert_struct, parse_json
from keybroker.release.swk import WrappedKey

#: The largest quote, with the certificates in it, has some 16 KiB; evidence of other TEEs is JSON
#: with certificates too.
MAX_QUOTE_BYTES = 256 * 1024

#: A held RSA key has a few hundred bytes.
MAX_USER_DATA_BYTES = 8 * 1024

#: Event logs of guests have up to some hundred KiB.
MAX_EVENT_LOG_BYTES = 1024 * 1024

#: What ``GET /keys`` and ``GET /users`` can be narrowed by.
_KEY_FILTERS = frozenset({"algorithm", "keyLength", "curveType", "transferPolicyId"})
_USER_FILTERS = frozenset({"username"})

_KEY_LENGTHS = frozenset(str(bits) for bits in (*AES_LENGTHS, *RSA_LENGTHS))

_MAX_ID_CHARS = 128
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ /.-")

_T = TypeVar("_T")


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /token``."""

    username: str | None = None
    password: str | None = None


class UserRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /users`` and ``PUT /users/{id}``; what is absent or empty stays as it is."""

    username: str | None = None
    password: str | None = None
    permissions: list[str] | None = None


class _KeyInformation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: str
    key_length: int | None = None
    curve_type: str | None = None
    key_data: str | None = None
    kmip_key_id: str | None = None


class _KeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key_information: _KeyInformation
    transfer_policy_id: str | None = None


class _KeyUpdateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    transfer_policy_id: str


class _TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    attestation_token: str | None = None
    quote: str | None = None
    nonce: Any = None
    user_data: str | None = None
    event_log: str | None = None


def parse_body(body: bytes, type_: type[_T]) -> _T:
    """Read a JSON body.

    Raises:
        MalformedError: not JSON, or not of the type's shape.
    """
    return convert_struct(parse_json(body), type_)


def parse_key_request(body: bytes) -> KeyRequest:
    """Read the body of ``POST /keys``.

    Raises:
        MalformedError: it is not one, or asks for a key that cannot be.
    """
    parsed = parse_body(body, _KeyBody)
    key = parsed.key_information
    if key.key_data and key.kmip_key_id:
        raise MalformedError("key_data and kmip_key_id exclude each other")
    if key.kmip_key_id and (
        len(key.kmip_key_id) > _MAX_ID_CHARS or not _ID_CHARACTERS.issuperset(key.kmip_key_id)
    ):
        raise MalformedError("kmip_key_id is not an id")
    return KeyRequest(
        parse_spec(key.algorithm, key.key_length, key.curve_type),
        parse_id(parsed.transfer_policy_id) if parsed.transfer_policy_id else NIL_ID,
        key.key_data or None,
        key.kmip_key_id or None,
    )


def parse_key_update(body: bytes) -> str:
    """Read the body of ``PUT /keys/{id}``: the id of the policy.

    Raises:
        MalformedError: it is not one, or names no policy.
    """
    policy_id = parse_id(parse_body(body, _KeyUpdateBody).transfer_policy_id)
    if policy_id == NIL_ID:
        raise MalformedError("a key transfer policy must be named")
    return policy_id


def parse_attestation_token(body: bytes) -> str:
    """Read the body of a transfer in passport mode.

    Raises:
        MalformedError: it holds no token, or more than a token.
    """
    parsed = parse_body(body, _TransferBody)
    if not parsed.attestation_token:
        raise MalformedError("attestation_token is missing, or the header Attestation-Type")
    if parsed.quote or parsed.nonce or parsed.user_data or parsed.event_log:
        raise MalformedError("attestation_token comes alone")
    return parsed.attestation_token


def parse_background_request(body: bytes, attestation_type: str) -> BackgroundRequest:
    """Read the second request of background mode.

    Args:
        attestation_type: the header of that name.

    Raises:
        MalformedError: something is missing or malformed.
    """
    if attestation_type not in ATTESTATION_TYPES:
        raise MalformedError("the header Attestation-Type names no kind of TEE")
    parsed = parse_body(body, _TransferBody)
    if parsed.attestation_token:
        raise MalformedError("attestation_token comes without the header Attestation-Type")
    if not parsed.quote or parsed.nonce is None or not parsed.user_data:
        raise MalformedError("quote, nonce and user_data are needed")
    return BackgroundRequest(
        attestation_type,
        parse_nonce(parsed.nonce),
        Evidence(
            parse_octets(parsed.quote, "quote", MAX_QUOTE_BYTES),
            parse_octets(parsed.user_data, "user_data", MAX_USER_DATA_BYTES),
            parse_octets(parsed.event_log or "", "event_log", MAX_EVENT_LOG_BYTES),
        ),
    )


def parse_key_filter(query: dict[str, str]) -> KeyFilter:
    """Read the filters of ``GET /keys``.

    Raises:
        MalformedError: one that there is not, or a value that no key has.
    """
    _check_names(query, _KEY_FILTERS)
    algorithm = query.get("algorithm", "").upper() or None
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise MalformedError("algorithm must be AES, RSA or EC")
    length = query.get("keyLength") or None
    if length is not None and length not in _KEY_LENGTHS:
        raise MalformedError("keyLength is the length of no key")
    curve = query.get("curveType") or None
    if curve is not None and curve not in CURVES:
        raise MalformedError("curveType must be secp256r1, secp384r1 or secp521r1")
    policy_id = query.get("transferPolicyId") or None
    return KeyFilter(
        algorithm,
        None if length is None else int(length),
        curve,
        None if policy_id is None else parse_id(policy_id),
    )


def parse_user_filter(query: dict[str, str]) -> str | None:
    """Read the filter of ``GET /users``: a name, or None.

    Raises:
        MalformedError: another filter.
    """
    _check_names(query, _USER_FILTERS)
    return query.get("username") or None


def _check_names(query: dict[str, str], known: frozenset[str]) -> None:
    for name in query:
        if name not in known:
            raise MalformedError(f"there is no filter {name[:64]!r}")


def user_answer(user: User) -> dict[str, Any]:
    """Say what may be known of a user."""
    return {
        "id": user.id,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
        "username": user.username,
        "permissions": list(user.permissions),
    }


def key_answer(record: KeyRecord) -> dict[str, Any]:
    """Say what may be known of a key."""
    information: dict[str, Any] = {"algorithm": record.algorithm}
    if record.key_length is not None:
        information["key_length"] = record.key_length
    if record.curve_type is not None:
        information["curve_type"] = record.curve_type
    if record.kmip_key_id is not None:
        information["kmip_key_id"] = record.kmip_key_id
    return {
        "id": record.id,
        "key_info": information,
        "transfer_policy_id": record.transfer_policy_id,
        "transfer_link": record.transfer_link,
        "created_at": record.created_at,
    }


def wrapped_answer(wrapped: WrappedKey) -> dict[str, str]:
    """Give a wrapped key the form of the wire."""
    answer = {"wrapped_key": base64.b64encode(wrapped.wrapped_key).decode("ascii")}
    if wrapped.wrapped_swk is not None:
        answer["wrapped_swk"] = base64.b64encode(wrapped.wrapped_swk).decode("ascii")
    return answer
