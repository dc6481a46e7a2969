"""Payloads of the registered-workload API, as its clients write and read them.

Clients come in two dialects: older ones put TEE-specific JSON into a *string* (``extra-params``,
``tee-evidence``), newer ones nest it. Each is answered in its own.

Byte strings are arrays of numbers, as the Rust crates ``sev`` and ``kbs-types`` serialise them.
Unknown members are ignored, as the original does.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import convert_struct, parse_json
from keybroker.verifiers.sev_certificate import MAX_CERTIFICATE_BYTES
from keybroker.verifiers.sev_chain import SevChain
from keybroker.workloads.registration import WorkloadTee
from keybroker.workloads.sev_launch import Build, LaunchMeasurement, LaunchSecret, LaunchStart

_Byte = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_Certificate = Annotated[list[_Byte], msgspec.Meta(max_length=MAX_CERTIFICATE_BYTES)]
_Bytes16 = Annotated[list[_Byte], msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[list[_Byte], msgspec.Meta(min_length=32, max_length=32)]


class _Request(msgspec.Struct, frozen=True, rename="kebab"):
    tee: str
    extra_params: Any


class _WorkloadParameters(msgspec.Struct, frozen=True):
    workload_id: str


class _Version(msgspec.Struct, frozen=True):
    major: _Byte
    minor: _Byte


class _Build(msgspec.Struct, frozen=True):
    version: _Version
    build: _Byte


class _CaChain(msgspec.Struct, frozen=True):
    ask: _Certificate
    ark: _Certificate


class _PlatformChain(msgspec.Struct, frozen=True):
    pdh: _Certificate
    pek: _Certificate
    oca: _Certificate
    cek: _Certificate


class _Chain(msgspec.Struct, frozen=True):
    ca: _CaChain
    sev: _PlatformChain


class _SevParameters(msgspec.Struct, frozen=True):
    workload_id: str
    build: _Build
    chain: _Chain


class _Measurement(msgspec.Struct, frozen=True):
    measure: _Bytes32
    mnonce: _Bytes16


class _Attestation(msgspec.Struct, frozen=True, rename="kebab"):
    tee_evidence: Any
    tee_pubkey: dict[str, Any] = {}


class _SnpParameters(msgspec.Struct, frozen=True):
    report: str
    gen: str
    cert_chain: Any = None


@dataclass(frozen=True, slots=True)
class SevPlatform:
    """What a client says of the platform that is to launch a guest. Parsed, not trusted."""

    build: Build
    chain: SevChain


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """The first message of a client.

    Attributes:
        platform: for SEV alone.
        nested: whether the client nests JSON rather than putting it into strings.
    """

    tee: WorkloadTee
    workload_id: str
    platform: SevPlatform | None
    nested: bool


@dataclass(frozen=True, slots=True)
class Attestation:
    """The second message: evidence (a JSON value, by TEE) and the guest's public key."""

    evidence: Any
    public_key: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SnpAttestation:
    """Evidence of an SNP guest. Parsed, not trusted.

    Attributes:
        report: hexadecimal.
        generation: name of the processor generation, in any case of letters.
        certificates: a certificate table as a JSON value, or None.
    """

    report: str
    generation: str
    certificates: Any


def _inner(value: Any, name: str) -> Any:
    """Return the JSON value that is nested, or in a string."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value.encode("utf-8", "surrogatepass"))
    except MalformedError as error:
        raise MalformedError(f"{name}: {error.diagnostics()}") from None


def parse_auth_request(body: bytes) -> AuthRequest:
    """Read the body of ``auth``.

    Raises:
        MalformedError: not of that form, or a TEE that workloads cannot be registered for.
    """
    request = convert_struct(parse_json(body), _Request)
    parameters = _inner(request.extra_params, "extra-params")
    nested = not isinstance(request.extra_params, str)
    if request.tee == WorkloadTee.SNP:
        workload_id = convert_struct(parameters, _WorkloadParameters).workload_id
        return AuthRequest(WorkloadTee.SNP, workload_id, None, nested)
    if request.tee != WorkloadTee.SEV:
        raise MalformedError(
            f"unsupported tee {request.tee[:16]!r}: registered workloads have sev or snp"
        )
    sev = convert_struct(parameters, _SevParameters)
    build = Build(sev.build.version.major, sev.build.version.minor, sev.build.build)
    platform, ca = sev.chain.sev, sev.chain.ca
    chain = SevChain(
        pdh=bytes(platform.pdh),
        pek=bytes(platform.pek),
        oca=bytes(platform.oca),
        cek=bytes(platform.cek),
        ask=bytes(ca.ask),
        ark=bytes(ca.ark),
    )
    return AuthRequest(WorkloadTee.SEV, sev.workload_id, SevPlatform(build, chain), nested)


def parse_attestation(body: bytes) -> Attestation:
    """Read the body of ``attest``.

    Raises:
        MalformedError: not of that form.
    """
    attestation = convert_struct(parse_json(body), _Attestation)
    return Attestation(_inner(attestation.tee_evidence, "tee-evidence"), attestation.tee_pubkey)


def parse_launch_measurement(evidence: Any) -> LaunchMeasurement:
    """Read the evidence of an SEV client.

    Raises:
        MalformedError: not of that form.
    """
    measurement = convert_struct(evidence, _Measurement)
    return LaunchMeasurement(bytes(measurement.measure), bytes(measurement.mnonce))


def parse_snp_attestation(evidence: Any) -> SnpAttestation:
    """Read the evidence of an SNP guest.

    Raises:
        MalformedError: not of that form.
    """
    snp = convert_struct(evidence, _SnpParameters)
    certificates = snp.cert_chain
    if isinstance(certificates, str):
        certificates = _inner(certificates, "cert_chain") if certificates else None
    # guests that have no table send an empty one
    return SnpAttestation(snp.report, snp.gen, certificates or None)


def challenge(nonce: str, start: LaunchStart | None, *, nested: bool) -> dict[str, Any]:
    """Make the answer to ``auth``.

    Args:
        start: what an SEV platform begins its launch with; None for SNP, which needs the nonce
            alone.
    """
    extra_params: Any = ""
    if start is not None:
        value = {"id": nonce, "start": _start(start)}
        extra_params = value if nested else msgspec.json.encode(value).decode("ascii")
    return {"nonce": nonce, "extra-params": extra_params}


def _start(start: LaunchStart) -> dict[str, Any]:
    session = start.session
    return {
        "policy": start.policy.as_json(),
        "cert": list(start.certificate),
        "session": {
            "nonce": list(session.nonce),
            "wrap_tk": list(session.wrap_tk),
            "wrap_iv": list(session.wrap_iv),
            "wrap_mac": list(session.wrap_mac),
            "policy_mac": list(session.policy_mac),
        },
    }


def secret_packet(secret: LaunchSecret) -> dict[str, Any]:
    """Make the answer to ``key`` for SEV."""
    return {
        "header": {
            "flags": {"bits": secret.flags},
            "iv": list(secret.iv),
            "mac": list(secret.mac),
        },
        "ciphertext": list(secret.ciphertext),
    }
