"""What a verified token attests, in the terms of transfer policies, whoever issued it.

Two kinds of issuers write tokens: Intel Trust Authority, whose claims name what policies name
(version 1 at the top of the claims, version 2 below ``sgx`` or ``tdx``, and its predecessor Amber
with names of its own), and attestation services that write EAT Attestation Results, such as the
one of this broker, where the verifier's own claims are looked up.

A claim that the token does not carry has no value, and what has no value satisfies nothing.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from keybroker.key_transfer.errors import TransferDeniedError
from keybroker.key_transfer.transfer_policy import SGX, TDX, TransferPolicy
from keybroker.model.errors import JweError, MalformedError
from keybroker.release.swk import check_swk_recipient, parse_held_key
from keybroker.tokens.jwk import parse_public_jwk

#: What issuers call a TCB that is up to date: Trust Authority's first version, and Intel itself.
UP_TO_DATE = ("OK", "UpToDate")

_ANNOTATED = "ear.veraison.annotated-evidence"

#: Policy attribute → where an EAR of ours holds it, and whether as a little-endian number.
_EAR_CLAIMS: Mapping[str, Mapping[str, tuple[tuple[str, ...], bool]]] = {
    SGX: {
        "mrsigner": (("body", "mr_signer"), False),
        "isvprodid": (("body", "isv_prod_id"), True),
        "mrenclave": (("body", "mr_enclave"), False),
        "isvsvn": (("body", "isv_svn"), True),
    },
    TDX: {
        "mrsignerseam": (("quote", "body", "mrsigner_seam"), False),
        "mrseam": (("quote", "body", "mr_seam"), False),
        "mrtd": (("quote", "body", "mr_td"), False),
        **{f"rtmr{index}": (("quote", "body", f"rtmr_{index}"), False) for index in range(4)},
    },
}

#: Claims that say that the host can read the TEE's memory, by where they stand.
_EAR_DEBUG = (("debug",), ("td_attributes", "debug"), ("policy_debug_allowed",))


@dataclass(frozen=True, slots=True)
class Attested:
    """What a token attests of one TEE.

    Attributes:
        values: by the attributes that the policy names; what is not carried is not in it.
        tcb_up_to_date: whether the token says so.
        matched_policy_ids: of Trust Authority's policies, lower-case.
        debuggable: whether the token says that the TEE can be looked into.
        held_data: what the attester holds, as its evidence binds it; None: the token has none.
        held_jwk: a key in JWK form instead.
    """

    values: Mapping[str, Any]
    tcb_up_to_date: bool = False
    matched_policy_ids: frozenset[str] = frozenset()
    debuggable: bool = False
    held_data: bytes | None = field(default=None, repr=False)
    held_jwk: Mapping[str, Any] | None = field(default=None, repr=False)


def read_attested(claims: Mapping[str, Any], policy: TransferPolicy) -> Attested:
    """Read what verified claims say about the kind of TEE that a policy is for.

    Raises:
        TransferDeniedError: the token is about another kind.
    """
    if "submods" in claims:
        return _read_appraisal(claims, policy)
    return _read_trust_authority(claims, policy)


def verify_policy(policy: TransferPolicy, attested: Attested) -> None:
    """Return if what is attested satisfies the policy in everything that it names.

    Raises:
        TransferDeniedError: it does not; the diagnostics name the first attribute that failed.
    """
    if attested.debuggable:
        raise TransferDeniedError("the TEE can be debugged: what it holds is no secret")
    if policy.policy_ids and not policy.policy_ids & attested.matched_policy_ids:
        raise TransferDeniedError("no policy of policy_ids was matched")
    if policy.enforce_tcb_upto_date and not attested.tcb_up_to_date:
        raise TransferDeniedError("the TCB is not up to date")
    for name, accepted in policy.attributes.items():
        value = attested.values.get(name)
        if isinstance(value, str):
            value = value.lower()
        if not any(type(value) is type(item) and value == item for item in accepted):
            raise TransferDeniedError(f"{name} is not among the values of policy {policy.id}")


def held_key(attested: Attested, policy: TransferPolicy) -> rsa.RSAPublicKey:
    """Return the public key to which the key is wrapped.

    Raises:
        JweError: the attester holds none, or not RSA of more than 2048 bits.
    """
    if attested.held_data is not None:
        return parse_held_key(
            attested.held_data, little_endian_modulus=policy.attestation_type == SGX
        )
    if attested.held_jwk is None:
        raise JweError("the token attests no public key")
    try:
        key = parse_public_jwk(attested.held_jwk)
    except MalformedError as error:
        raise JweError(error.diagnostics()) from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise JweError("the attested key must be RSA")
    return check_swk_recipient(key)


def _read_trust_authority(claims: Mapping[str, Any], policy: TransferPolicy) -> Attested:
    type_ = policy.attestation_type
    if type_ not in (SGX, TDX):
        raise TransferDeniedError(f"Trust Authority attests no {type_}")
    member = type_.lower()
    nested = claims.get(member)
    own: Mapping[str, Any] = nested if isinstance(nested, Mapping) else claims

    def claim(name: str) -> Any:
        return own[name] if name in own else own.get(f"amber_{name}")

    said = own.get("attester_type", own.get("amber_evidence_type"))
    if said is None and own is not claims:
        said = type_  # version 2 says it by where the claims stand
    if not isinstance(said, str) or said.upper() != type_:
        raise TransferDeniedError(f"the token is not about {type_}")
    values = {}
    for name in policy.attributes:
        value = claim(f"{member}_{name}")
        if value is not None:
            values[name] = value
    tcb = own.get("attester_tcb_status", own.get("amber_tcb_status"))
    held = own.get("attester_held_data", own.get("amber_tee_held_data"))
    runtime = own.get("attester_runtime_data")
    jwk = runtime.get("tee-pubkey") if isinstance(runtime, Mapping) else None
    return Attested(
        values=values,
        tcb_up_to_date=tcb in UP_TO_DATE,
        matched_policy_ids=_matched(claims) | _matched(own),
        debuggable=claim(f"{member}_is_debuggable") is True,
        held_data=_base64(held) if isinstance(held, str) else None,
        held_jwk=jwk if isinstance(jwk, Mapping) else None,
    )


def _matched(claims: Mapping[str, Any]) -> frozenset[str]:
    matched = claims.get("policy_ids_matched", claims.get("amber_matched_policy_ids"))
    if not isinstance(matched, list):
        return frozenset()
    ids = (entry.get("id") if isinstance(entry, Mapping) else entry for entry in matched)
    return frozenset(entry.lower() for entry in ids if isinstance(entry, str))


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise JweError("the held data of the token is not base64") from None


def _read_appraisal(claims: Mapping[str, Any], policy: TransferPolicy) -> Attested:
    annotated = _follow(claims, ("submods", "cpu0", _ANNOTATED))
    own = annotated.get(policy.tee.value) if isinstance(annotated, Mapping) else None
    if not isinstance(annotated, Mapping) or not isinstance(own, Mapping):
        raise TransferDeniedError(f"the token is not about {policy.attestation_type}")
    values = {}
    for name in policy.attributes:
        value = _appraised(own, annotated, policy.attestation_type, name)
        if value is not None:
            values[name] = value
    jwk = _follow(annotated, ("runtime_data_claims", "tee-pubkey"))
    return Attested(
        values=values,
        tcb_up_to_date=own.get("tcb_status") in UP_TO_DATE,
        debuggable=any(_follow(own, path) in (True, "1", "true") for path in _EAR_DEBUG),
        held_jwk=jwk if isinstance(jwk, Mapping) else None,
    )


def _appraised(own: Mapping[str, Any], annotated: Mapping[str, Any], type_: str, name: str) -> Any:
    names = _EAR_CLAIMS.get(type_)
    if names is None:
        # Report data and init-data stand beside the TEE's own claims.
        found = _follow(own, tuple(name.split("/")))
        return (
            annotated.get(name) if found is None and name in ("report_data", "init_data") else found
        )
    if name == "seamsvn":
        # TEE_TCB_SVN: byte 0 is the minor SVN of the TDX module, byte 1 its major version.
        svn = _follow(own, ("quote", "body", "tcb_svn"))
        return _number(svn[:4]) if isinstance(svn, str) else None
    path, number = names[name]
    value = _follow(own, path)
    return _number(value) if number else value


def _number(value: Any) -> int | None:
    try:
        return int.from_bytes(bytes.fromhex(value), "little") if isinstance(value, str) else None
    except ValueError:
        return None


def _follow(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
