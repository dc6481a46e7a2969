"""The PCK certificate: which platform signed, and at which TCB.

Intel issues a provisioning certification key (PCK) certificate for each platform and TCB level; an
extension of it says which. The chain is PCK certificate, PCK Platform or Processor CA, Intel SGX
Root CA.

Specification: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification 1.5,
section 1.3.5.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from keybroker.model.errors import EvidenceError
from keybroker.verifiers import der
from keybroker.verifiers.der import DerError, DerReader
from keybroker.verifiers.x509 import Certificate, parse_certificates

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_PPID: Final = f"{SGX_EXTENSION}.1"
_TCB: Final = f"{SGX_EXTENSION}.2"
_PCE_SVN: Final = f"{_TCB}.17"
_CPU_SVN: Final = f"{_TCB}.18"
_PCE_ID: Final = f"{SGX_EXTENSION}.3"
_FMSPC: Final = f"{SGX_EXTENSION}.4"
_SGX_TYPE: Final = f"{SGX_EXTENSION}.5"
_PLATFORM_INSTANCE: Final = f"{SGX_EXTENSION}.6"
_CONFIGURATION: Final = f"{SGX_EXTENSION}.7"
_DYNAMIC_PLATFORM: Final = f"{_CONFIGURATION}.1"
_CACHED_KEYS: Final = f"{_CONFIGURATION}.2"
_SMT_ENABLED: Final = f"{_CONFIGURATION}.3"

_ENUMERATED: Final = 0x0A

#: Common name of the CA → how collateral services call it.
PCK_CAS: Final = {
    "Intel SGX PCK Platform CA": "platform",
    "Intel SGX PCK Processor CA": "processor",
}

#: Chains remembered after parsing: one for each platform that attests, a few KiB each.
_REMEMBERED_CHAINS = 1024


@dataclass(frozen=True, slots=True)
class PckCertificate:
    """A PCK certificate with its issuers. Parsed, not trusted.

    Attributes:
        leaf, ca, root: the chain; the root is that of the quote, which proves nothing.
        ca_name: ``platform`` or ``processor``.
        ppid: platform provisioning id, 16 bytes.
        fmspc: family, model, stepping, platform and custom SKU, 6 bytes.
        pce_id: 2 bytes as they stand there.
        cpu_svn: the raw CPUSVN, 16 bytes.
        tcb_components: its 16 components, in the order of TCB info.
        pce_svn: security version of the provisioning certification enclave.
        sgx_type: 0 Standard, 1 Scalable, 2 Scalable with Integrity.
        platform_instance_id: 16 bytes, most significant first; only of Platform CA.
        dynamic_platform, cached_keys, smt_enabled: only of Platform CA.
    """

    leaf: Certificate
    ca: Certificate = field(repr=False)
    root: Certificate = field(repr=False)
    ca_name: str
    ppid: bytes
    fmspc: bytes
    pce_id: bytes
    cpu_svn: bytes
    tcb_components: bytes
    pce_svn: int
    sgx_type: int
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None


@lru_cache(_REMEMBERED_CHAINS)
def parse_pck_chain(pem: bytes) -> PckCertificate:
    """Parse a PCK certificate chain.

    Args:
        pem: certificate, CA and root, in this order; zero bytes may follow.

    Raises:
        EvidenceError: not such a chain.
    """
    certificates = parse_certificates(pem.rstrip(b"\0"))
    if len(certificates) != 3:
        raise EvidenceError(f"a PCK chain has 3 certificates, not {len(certificates)}")
    leaf, ca, root = certificates
    ca_name = PCK_CAS.get(ca.subject_cn)
    if ca_name is None:
        raise EvidenceError(f"the issuer of the PCK certificate is {ca.subject_cn!r}")
    extension = leaf.extensions.get(SGX_EXTENSION)
    if extension is None:
        raise EvidenceError("the PCK certificate does not say which platform it is for")
    try:
        outer = DerReader(extension.value)
        values = _Values(outer.read(der.SEQUENCE))
        outer.finish()
        tcb = values.nested(_TCB)
        components = bytes(
            _u8(tcb.read(f"{_TCB}.{number}", der.INTEGER)) for number in range(1, 17)
        )
        configuration = values.nested(_CONFIGURATION) if _CONFIGURATION in values else None
        instance = values.octets(_PLATFORM_INSTANCE, 16) if _PLATFORM_INSTANCE in values else None
        if (ca_name == "platform") != (instance is not None and configuration is not None):
            raise EvidenceError("the PCK certificate has not the fields of its issuer")
        return PckCertificate(
            leaf=leaf,
            ca=ca,
            root=root,
            ca_name=ca_name,
            ppid=values.octets(_PPID, 16),
            fmspc=values.octets(_FMSPC, 6),
            pce_id=values.octets(_PCE_ID, 2),
            cpu_svn=tcb.octets(_CPU_SVN, 16),
            tcb_components=components,
            pce_svn=_u16(tcb.read(_PCE_SVN, der.INTEGER)),
            sgx_type=_u8(values.read(_SGX_TYPE, _ENUMERATED)),
            # a GUID in the byte order of its host; claims have it as a number
            platform_instance_id=instance[::-1] if instance is not None else None,
            dynamic_platform=_flag(configuration, _DYNAMIC_PLATFORM),
            cached_keys=_flag(configuration, _CACHED_KEYS),
            smt_enabled=_flag(configuration, _SMT_ENABLED),
        )
    except DerError as error:
        raise EvidenceError(f"the platform extension of the PCK certificate: {error}") from None


class _Values:
    """A SEQUENCE of pairs of object identifier and value."""

    def __init__(self, content: bytes) -> None:
        reader = DerReader(content)
        self._values: dict[str, tuple[int, bytes]] = {}
        while not reader.at_end():
            pair = reader.enter()
            oid = pair.oid()
            value = pair.any()
            pair.finish()
            if oid in self._values:
                raise DerError(f"{oid} is there twice")
            self._values[oid] = value

    def __contains__(self, oid: str) -> bool:
        return oid in self._values

    def read(self, oid: str, tag: int) -> bytes:
        found = self._values.get(oid)
        if found is None or found[0] != tag:
            raise DerError(f"{oid} is missing or of another type")
        return found[1]

    def octets(self, oid: str, size: int) -> bytes:
        value = self.read(oid, der.OCTET_STRING)
        if len(value) != size:
            raise DerError(f"{oid} has {len(value)} bytes in place of {size}")
        return value

    def nested(self, oid: str) -> "_Values":
        return _Values(self.read(oid, der.SEQUENCE))


def _flag(configuration: _Values | None, oid: str) -> bool | None:
    if configuration is None or oid not in configuration:
        return None
    content = configuration.read(oid, der.BOOLEAN)
    if len(content) != 1:
        raise DerError(f"{oid} is not a BOOLEAN of one byte")
    return content != b"\0"


def _u8(content: bytes) -> int:
    number = der.decode_integer(content)
    if not 0 <= number <= 0xFF:
        raise DerError("a number does not fit a byte")
    return number


def _u16(content: bytes) -> int:
    number = der.decode_integer(content)
    if not 0 <= number <= 0xFFFF:
        raise DerError("a number does not fit two bytes")
    return number
