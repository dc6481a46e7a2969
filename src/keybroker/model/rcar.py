"""Payloads of the KBS attestation protocol 0.4.0: Request, Challenge, Attestation, Response.

The protocol is four messages, "RCAR"::

    guest                                     broker
      │  POST /kbs/v0/auth    Request           │
      │────────────────────────────────────────▶│
      │◀──────────────────── Challenge + cookie │
      │  POST /kbs/v0/attest  Attestation       │
      │────────────────────────────────────────▶│  verify, appraise, sign
      │◀────────────────────────────── {token}  │
      │  GET /kbs/v0/resource/…                 │
      │────────────────────────────────────────▶│  decide, encrypt to tee-pubkey
      │◀────────────────────── Response (a JWE) │

Field names are those of kbs-types 0.18. Unknown members are ignored, as the other implementations
do: a newer guest must not be refused for saying more.
"""

from typing import Any

import msgspec

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import canonical_json, convert_struct
from keybroker.model.tee import Tee

#: The version of the protocol that this broker speaks; guests must send exactly this.
PROTOCOL_VERSION = "0.4.0"

#: Name of the session cookie.
SESSION_COOKIE = "kbs-session-id"

#: Size of the challenge before base64.
NONCE_BYTES = 32


class Request(msgspec.Struct, frozen=True, rename="kebab"):
    """The first message of a guest.

    ``tee`` is a plain string here: an unknown kind is refused with a message that says so.
    """

    version: str
    tee: str
    extra_params: Any = ""


class Challenge(msgspec.Struct, frozen=True, rename="kebab"):
    """The broker's answer to a Request; ``nonce`` is base64 of 32 random bytes."""

    nonce: str
    extra_params: Any = ""


class RuntimeData(msgspec.Struct, frozen=True, rename="kebab"):
    """What the evidence binds: the broker's nonce and the key that lives in the TEE (a JWK)."""

    nonce: str
    tee_pubkey: dict[str, Any]


class CompositeEvidence(msgspec.Struct, frozen=True):
    """Evidence of the CPU, and of further devices as a JSON string (TEE kind → evidence)."""

    primary_evidence: Any
    additional_evidence: str = ""


class InitData(msgspec.Struct, frozen=True):
    """Measured configuration of the guest in plain text; ``format`` is ``toml`` or ``json``."""

    format: str
    body: str


class Attestation(msgspec.Struct, frozen=True, rename="kebab"):
    """The second message of a guest."""

    runtime_data: RuntimeData
    tee_evidence: CompositeEvidence
    init_data: InitData | None = None


class Response(msgspec.Struct, frozen=True, omit_defaults=True):
    """A secret encrypted to the TEE: JWE in flattened JSON serialisation, RFC 7516 section 7.2.2.

    All members are base64url without padding.
    """

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str
    aad: str | None = None


class ErrorInformation(msgspec.Struct, frozen=True):
    """An error answer in the form of RFC 7807."""

    type: str
    detail: str


#: Members of a tee-pubkey that are hashed into the report data, by key type (kbs-types TeePubKey).
_PUBKEY_MEMBERS = {
    "RSA": ("kty", "alg", "n", "e"),
    "EC": ("kty", "crv", "alg", "x", "y"),
}


def pubkey_members(jwk: dict[str, Any]) -> dict[str, str]:
    """Pick the members of a ``tee-pubkey`` that the protocol knows, all of them strings.

    Guests hash exactly these, so whatever else a JWK holds must not change the digest.

    Raises:
        MalformedError: unknown ``kty``, or a member is absent or not a string.
    """
    kty = jwk.get("kty")
    names = _PUBKEY_MEMBERS.get(kty) if isinstance(kty, str) else None
    if names is None:
        raise MalformedError("tee-pubkey: kty must be RSA or EC")
    members: dict[str, str] = {}
    for name in names:
        value = jwk.get(name)
        if not isinstance(value, str):
            raise MalformedError(f"tee-pubkey: member {name!r} must be a string")
        members[name] = value
    return members


def device_runtime_data(runtime_data: RuntimeData) -> dict[str, Any]:
    """Runtime data that an additional device's evidence binds."""
    return {
        "tee-pubkey": pubkey_members(runtime_data.tee_pubkey),
        "nonce": runtime_data.nonce,
    }


def primary_runtime_data(runtime_data: RuntimeData, additional_evidence: str) -> dict[str, Any]:
    """Runtime data that the primary evidence binds: the devices' evidence is part of it."""
    return {
        **device_runtime_data(runtime_data),
        "additional-evidence": additional_evidence,
    }


def runtime_data_bytes(structured: dict[str, Any]) -> bytes:
    """The bytes whose digest goes into the report data: canonical JSON (RFC 8785)."""
    return canonical_json(structured)


def parse_tee(name: str) -> Tee:
    """Read a TEE kind.

    Raises:
        MalformedError: no such kind.
    """
    if name == "nvidiadpu":  # an alias that kbs-types accepts
        return Tee.NVIDIA_DPU
    try:
        return Tee(name)
    except ValueError:
        raise MalformedError(f"unknown tee {name[:32]!r}") from None


def parse_attestation(value: Any) -> Attestation:
    """Give a parsed JSON value the shape of an Attestation, with the old protocol told apart.

    Raises:
        MalformedError: the shape is wrong; the message names a 0.1.x payload as such.
    """
    if isinstance(value, dict) and (
        "tee-pubkey" in value or isinstance(value.get("tee-evidence"), str)
    ):
        raise MalformedError(
            "this is an Attestation of protocol 0.1.x (top-level tee-pubkey or evidence as a"
            f" string); this broker speaks {PROTOCOL_VERSION}"
        )
    return convert_struct(value, Attestation)
