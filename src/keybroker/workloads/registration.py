"""What an operator registers: a workload's measurement, TEE configuration and passphrase.

Everything that could make a release fail later is refused here: a measurement of no TEE, a policy
that the firmware or the broker would not accept, a passphrase that does not fit into the packet it
travels in.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import convert_struct, parse_json
from keybroker.verifiers.snp_report import Generation
from keybroker.workloads.sev_launch import SECRET_BYTES
from keybroker.workloads.sev_policy import DEFAULT_POLICY, SevPolicy, parse_policy

#: Longest workload id. Guests hold the URL that ends in it in a buffer of 100 characters.
MAX_WORKLOAD_ID_CHARS: Final = 128

#: Longest TEE configuration; one with every known member has some 100 bytes.
MAX_TEE_CONFIG_BYTES: Final = 4096


class WorkloadTee(StrEnum):
    """A TEE that workloads can be registered for, as ``tee`` of a request spells it."""

    SEV = "sev"
    SNP = "snp"


#: The TEE by the size of its launch measurement: SHA-256 for SEV and SEV-ES, SHA-384 for SEV-SNP.
TEE_BY_MEASUREMENT_BYTES: Final = {32: WorkloadTee.SEV, 48: WorkloadTee.SNP}

#: Longest passphrase by TEE, in bytes. SEV: the packet. SNP: what PKCS#1 v1.5 (11 bytes of padding)
#: can encrypt to a key of 2048 bits, which is what guests make.
MAX_PASSPHRASE_BYTES: Final = {WorkloadTee.SEV: SECRET_BYTES, WorkloadTee.SNP: 2048 // 8 - 11}

#: What stands in a URL path as it is (RFC 3986, ``pchar`` without escapes), since an id is one.
_WORKLOAD_ID = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


@dataclass(frozen=True, slots=True)
class Registration:
    """Body of ``register_workload``. Parsed, not checked."""

    workload_id: str
    launch_measurement: str
    tee_config: str
    passphrase: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SnpConfiguration:
    """The TEE configuration of an SNP workload.

    Attributes:
        generation: the only processor generation it may run on, or None.
    """

    generation: Generation | None


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that can be served.

    Attributes:
        measurement: launch digest, 32 or 48 bytes.
        tee_config: as it was registered.
        configuration: what ``tee_config`` says: an SEV guest policy, or SNP's.
        passphrase: the secret; not empty, holds no zero byte.
    """

    workload_id: str
    measurement: bytes
    tee_config: str
    configuration: SevPolicy | SnpConfiguration
    passphrase: bytes = field(repr=False)

    @property
    def tee(self) -> WorkloadTee:
        """SEV (which includes SEV-ES) or SNP."""
        return TEE_BY_MEASUREMENT_BYTES[len(self.measurement)]


def check_workload_id(workload_id: str) -> str:
    """Return the id if it may be one.

    Raises:
        MalformedError: empty, too long, or a character that a URL path would have to escape.
    """
    if len(workload_id) > MAX_WORKLOAD_ID_CHARS or not _WORKLOAD_ID.fullmatch(workload_id):
        raise MalformedError(
            f"workload_id must have 1 to {MAX_WORKLOAD_ID_CHARS} characters, of those that need no"
            " escape in a URL path"
        )
    if workload_id in (".", ".."):
        raise MalformedError("workload_id must not be . or ..")
    return workload_id


def parse_registration(body: bytes, *, allow_debug: bool) -> Workload:
    """Read and check a registration.

    Args:
        body: JSON.
        allow_debug: take a policy that allows the host to debug the guest.

    Raises:
        MalformedError: not of that form, or something in it could never be served.
    """
    registration = convert_struct(parse_json(body), Registration)
    check_workload_id(registration.workload_id)
    if not _HEX.fullmatch(registration.launch_measurement):
        raise MalformedError("launch_measurement must be hexadecimal")
    measurement = bytes.fromhex(registration.launch_measurement)
    tee = TEE_BY_MEASUREMENT_BYTES.get(len(measurement))
    if tee is None:
        raise MalformedError(
            f"launch_measurement has {len(measurement)} bytes; that of SEV has 32, of SEV-SNP 48"
        )
    if len(registration.tee_config.encode("utf-8", "surrogatepass")) > MAX_TEE_CONFIG_BYTES:
        raise MalformedError(f"tee_config is longer than {MAX_TEE_CONFIG_BYTES} bytes")
    workload = Workload(
        workload_id=registration.workload_id,
        measurement=measurement,
        tee_config=registration.tee_config,
        configuration=parse_tee_config(registration.tee_config, tee),
        passphrase=_passphrase(registration.passphrase, tee),
    )
    policy = workload.configuration
    if isinstance(policy, SevPolicy) and policy.allows_debug and not allow_debug:
        raise MalformedError(
            "the SEV policy allows the host to debug the guest (bit 0 is not set): it could read"
            " the passphrase"
        )
    return workload


def parse_tee_config(text: str, tee: WorkloadTee) -> SevPolicy | SnpConfiguration:
    """Read a TEE configuration: empty, or a JSON object in text.

    For SEV it is the guest policy; empty means the default one. For SNP the guest's policy is in
    its report; here ``gen`` may bind the workload to a processor generation.

    Raises:
        MalformedError: not of that form.
    """
    value: Any = {}
    if text.strip():
        try:
            value = parse_json(text.encode("utf-8", "surrogatepass"))
        except MalformedError as error:
            raise MalformedError(f"tee_config: {error.diagnostics()}") from None
    if not isinstance(value, dict):
        raise MalformedError("tee_config must be empty or a JSON object")
    if tee is WorkloadTee.SEV:
        return parse_policy(value) if value else DEFAULT_POLICY
    name = value.get("gen")
    if name is None:
        return SnpConfiguration(None)
    generation = generation_named(name) if isinstance(name, str) else None
    if generation is None:
        raise MalformedError("tee_config: gen must be milan, genoa or turin")
    return SnpConfiguration(generation)


def generation_named(name: str) -> Generation | None:
    """Return a processor generation by its name, in any case of letters, or None."""
    return next((member for member in Generation if member.lower() == name.lower()), None)


def _passphrase(text: str, tee: WorkloadTee) -> bytes:
    try:
        passphrase = text.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError("the passphrase is not Unicode text") from None
    if not passphrase or b"\0" in passphrase:
        raise MalformedError("the passphrase must not be empty and must hold no zero character")
    limit = MAX_PASSPHRASE_BYTES[tee]
    if len(passphrase) > limit:
        raise MalformedError(
            f"the passphrase has {len(passphrase)} bytes; one for {tee.value} has at most {limit}"
        )
    return passphrase
