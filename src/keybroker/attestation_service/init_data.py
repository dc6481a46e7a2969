"""Init-data: measured configuration that the untrusted host gave the guest.

A document of ``version``, ``algorithm`` and ``data``, in TOML or JSON. The digest is that of the
document's exact bytes, so two spellings of one content differ. What is in ``data`` becomes claims
that policies and the broker's plugins read: the configuration of the Confidential Data Hub and of
the Attestation Agent as JSON, and of a Kata agent policy the data it ends with.

Specification: Initdata Specification 0.1.0 (Trustee, ``kbs/docs/initdata.md``).
"""

import math
import tomllib
from datetime import date, datetime, time
from typing import Any

import msgspec

from keybroker.attestation_service.request import BoundData
from keybroker.model.errors import MalformedError, TooLargeError
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import InitData
from keybroker.model.strict_json import MAX_DEPTH, convert_struct, parse_json

#: Longest document. Kata's agent policies are the largest part of one, at some 100 KiB.
MAX_INIT_DATA_BYTES = 4 * 1024 * 1024

#: Entries of ``data`` that hold a TOML configuration.
_TOML_ENTRIES = ("cdh.toml", "aa.toml")

#: Entry that holds the agent's policy, and what stands before the data at the policy's end.
_AGENT_POLICY = "policy.rego"
_POLICY_DATA = "policy_data := {"


class _Document(msgspec.Struct, frozen=True):
    version: str
    algorithm: str
    data: dict[str, str]


def parse_init_data(init_data: InitData) -> BoundData:
    """Read a document and hash it.

    Raises:
        MalformedError: unknown format or algorithm, or the document cannot be parsed.
        TooLargeError: longer than :data:`MAX_INIT_DATA_BYTES`.
    """
    try:
        body = init_data.body.encode()
    except UnicodeEncodeError:
        raise MalformedError("init-data: not UTF-8") from None
    if len(body) > MAX_INIT_DATA_BYTES:
        raise TooLargeError(f"init-data is longer than {MAX_INIT_DATA_BYTES} bytes")
    document = _parse_document(init_data.format, init_data.body, body)
    try:
        digest = HashAlgorithm.parse(document.algorithm).digest(body)
    except ValueError:
        raise MalformedError(f"init-data: no hash algorithm {document.algorithm[:32]!r}") from None
    return BoundData(digest, _claims(document.data))


def _parse_document(format_: str, text: str, body: bytes) -> _Document:
    if format_ == "toml":
        value = _parse_toml(text)
        if value is None:
            raise MalformedError("init-data: not TOML")
    elif format_ == "json":
        value = parse_json(body)
    else:
        raise MalformedError(f"init-data: format {format_[:32]!r} is neither toml nor json")
    try:
        return convert_struct(value, _Document)
    except MalformedError as error:
        raise MalformedError(f"init-data: {error.diagnostics()}") from None


def _claims(data: dict[str, str]) -> dict[str, Any]:
    claims: dict[str, Any] = dict(data)
    for name in _TOML_ENTRIES:
        if name in data:
            parsed = _parse_toml(data[name])
            if parsed is not None:
                claims[name] = parsed
    if _AGENT_POLICY in data:
        policy_data = _policy_data(data[_AGENT_POLICY])
        if policy_data is not None:
            del claims[_AGENT_POLICY]
            claims["agent_policy_claims"] = policy_data
    return claims


def _policy_data(policy: str) -> Any | None:
    # The generator of these policies (Kata's genpolicy) puts the data at the end, as JSON.
    start = policy.find(_POLICY_DATA)
    if start < 0:
        return None
    try:
        return parse_json(policy[start + len(_POLICY_DATA) - 1 :].encode())
    except (MalformedError, UnicodeEncodeError):
        return None


def _parse_toml(text: str) -> Any | None:
    """Return a TOML document as JSON types, or None where it is not one."""
    try:
        return _as_json(tomllib.loads(text), 1)
    except (ValueError, RecursionError):
        return None


def _as_json(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {name: _as_json(member, depth + 1) for name, member in value.items()}
    if isinstance(value, list):
        return [_as_json(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value
