"""The guest's half of the RCAR handshake: messages and the digests that evidence binds.

Nothing here does I/O. The order of steps is that of :func:`keybroker.client.guest.attest`.

Specification: KBS attestation protocol 0.4.0.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from keybroker.client.errors import InputError, ProtocolError
from keybroker.model.errors import MalformedError
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import (
    PROTOCOL_VERSION,
    Attestation,
    Challenge,
    CompositeEvidence,
    InitData,
    Request,
    RuntimeData,
    device_runtime_data,
    primary_runtime_data,
    runtime_data_bytes,
)
from keybroker.model.strict_json import parse_json, parse_struct
from keybroker.model.tee import Tee

#: What a broker may select from; every TEE's own algorithm is among them.
SUPPORTED_HASH_ALGORITHMS = tuple(algorithm.value for algorithm in HashAlgorithm)

#: Used where the broker selects none.
DEFAULT_HASH_ALGORITHM = HashAlgorithm.SHA384

#: A token goes into an HTTP header, where servers take about this much.
MAX_TOKEN_CHARS = 1 << 20

#: JSON Web Signature, compact serialisation (RFC 7515 section 3.1).
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True)
class Terms:
    """What the broker's challenge asks for."""

    nonce: str
    hash_algorithm: HashAlgorithm


def encode_request(tee: Tee) -> bytes:
    """Encode the first message."""
    return msgspec.json.encode(
        Request(
            version=PROTOCOL_VERSION,
            tee=tee.value,
            extra_params={"supported-hash-algorithms": list(SUPPORTED_HASH_ALGORITHMS)},
        )
    )


def parse_challenge(raw: bytes) -> Terms:
    """Read the broker's challenge.

    Raises:
        ProtocolError: not a challenge, or it selects an unknown hash algorithm.
    """
    try:
        challenge = parse_struct(raw, Challenge)
    except MalformedError as error:
        raise ProtocolError(f"the challenge is malformed: {error.detail}") from None
    if not challenge.nonce:
        raise ProtocolError("the challenge has an empty nonce")
    selected: Any = None
    if isinstance(challenge.extra_params, dict):
        selected = challenge.extra_params.get("selected-hash-algorithm")
    if selected is None:
        return Terms(challenge.nonce, DEFAULT_HASH_ALGORITHM)
    if not isinstance(selected, str):
        raise ProtocolError("the challenge selects a hash algorithm that is not a name")
    try:
        return Terms(challenge.nonce, HashAlgorithm.parse(selected))
    except ValueError:
        raise ProtocolError(f"the challenge selects the hash {selected[:32]!r}") from None


def device_report_data(runtime_data: RuntimeData, algorithm: HashAlgorithm) -> bytes:
    """Return the digest that a further device's evidence binds: nonce and TEE key."""
    return _digest(algorithm, device_runtime_data(runtime_data))


def primary_report_data(
    runtime_data: RuntimeData, additional_evidence: str, algorithm: HashAlgorithm
) -> bytes:
    """Return the digest that the CPU's evidence binds: nonce, TEE key and devices' evidence."""
    return _digest(algorithm, primary_runtime_data(runtime_data, additional_evidence))


def encode_additional_evidence(evidence: Mapping[Tee, Any]) -> str:
    """Encode the devices' evidence as the JSON string that travels; empty for no devices."""
    return json.dumps(evidence, separators=(",", ":")) if evidence else ""


def encode_attestation(
    runtime_data: RuntimeData, evidence: CompositeEvidence, init_data: InitData | None
) -> bytes:
    """Encode the second message."""
    return msgspec.json.encode(
        Attestation(runtime_data=runtime_data, tee_evidence=evidence, init_data=init_data)
    )


def parse_token_answer(raw: bytes) -> str:
    """Read the attestation token out of the answer to an attestation.

    Raises:
        ProtocolError: no token in it.
    """
    try:
        answer = parse_json(raw)
    except MalformedError as error:
        raise ProtocolError(f"the answer to the attestation is malformed: {error.detail}") from None
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not is_token(token):
        raise ProtocolError("the answer to the attestation holds no token")
    return token


def is_token(text: str) -> bool:
    """Say whether a text has the form of a token, so that it can go into a header."""
    return len(text) <= MAX_TOKEN_CHARS and _TOKEN.fullmatch(text) is not None


def make_init_data(body: str, format_: str | None = None) -> InitData:
    """Make the init-data member of an attestation.

    Args:
        body: the plain text that was measured when the guest was launched.
        format_: ``toml`` or ``json``; by default JSON where the text is a JSON object.

    Raises:
        InputError: another format, or a text that has no UTF-8 form.
    """
    if format_ is None:
        format_ = "json" if body.lstrip().startswith("{") else "toml"
    if format_ not in ("toml", "json"):
        raise InputError(f"init-data must be toml or json, not {format_[:32]!r}")
    try:
        body.encode()
    except UnicodeEncodeError:
        raise InputError("init-data must be UTF-8 text") from None
    return InitData(format=format_, body=body)


def init_data_digest(init_data: InitData) -> bytes:
    """Return the digest by which a guest's launch binds init-data.

    Raises:
        InputError: the text is not of its format, or names no known hash algorithm.

    Specification: Initdata Specification 0.1.0: the member ``algorithm`` names the hash of the
    whole text.
    """
    try:
        if init_data.format == "toml":
            document: Any = tomllib.loads(init_data.body)
        else:
            document = parse_json(init_data.body.encode())
        return HashAlgorithm.parse(document["algorithm"]).digest(init_data.body.encode())
    except (ValueError, TypeError, KeyError, AttributeError, MalformedError, RecursionError):
        raise InputError(
            f"init-data must be {init_data.format} with a member algorithm that names a hash"
        ) from None


def _digest(algorithm: HashAlgorithm, structured: dict[str, Any]) -> bytes:
    try:
        return algorithm.digest(runtime_data_bytes(structured))
    except MalformedError as error:
        raise ProtocolError(f"the challenge cannot be answered: {error.detail}") from None
    except ValueError:
        raise ProtocolError(f"this machine cannot compute {algorithm.value}") from None
