"""Quotes: the signed structure that a quoting enclave makes of a report.

Versions 3 (SGX), 4 (SGX and TDX 1.0) and 5 (TDX 1.0 and 1.5), signed by an ECDSA P-256 attestation
key that a PCK certificate vouches for. All integers are little-endian.

Specification: Intel SGX ECDSA Quote Library Reference (versions 3), appendix A; Intel TDX DCAP
Quoting Library API (versions 4 and 5), appendix A.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from types import MappingProxyType
from typing import Final

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee

#: Largest quote in bytes. Quotes with a certificate chain have about 5000.
MAX_QUOTE_BYTES = 64 * 1024

#: UUID of Intel's quoting enclaves, in the header of every quote of theirs.
INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_ECDSA_P256: Final = 2
_TEE_TYPES: Final = {0x00000000: Tee.SGX, 0x00000081: Tee.TDX}
_PCK_CERTIFICATE_CHAIN: Final = 5
_QE_REPORT_CERTIFICATION: Final = 6
_TD_1_0: Final = 2
_TD_1_5: Final = 3

_U16 = Struct("<H")
_U32 = Struct("<I")

_Layout = tuple[tuple[str, int], ...]

_HEADER: _Layout = (
    ("version", 2),
    ("att_key_type", 2),
    ("tee_type", 4),
    ("reserved", 4),
    ("vendor_id", 16),
    ("user_data", 20),
)

_ENCLAVE_REPORT: _Layout = (
    ("cpu_svn", 16),
    ("misc_select", 4),
    ("reserved1", 12),
    ("isv_ext_prod_id", 16),
    ("attributes.flags", 8),
    ("attributes.xfrm", 8),
    ("mr_enclave", 32),
    ("reserved2", 32),
    ("mr_signer", 32),
    ("reserved3", 32),
    ("config_id", 64),
    ("isv_prod_id", 2),
    ("isv_svn", 2),
    ("config_svn", 2),
    ("reserved4", 42),
    ("isv_family_id", 16),
    ("report_data", 64),
)

_TD_REPORT_1_0: _Layout = (
    ("tcb_svn", 16),
    ("mr_seam", 48),
    ("mrsigner_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr_0", 48),
    ("rtmr_1", 48),
    ("rtmr_2", 48),
    ("rtmr_3", 48),
    ("report_data", 64),
)

_TD_REPORT_1_5: _Layout = (*_TD_REPORT_1_0, ("tee_tcb_svn2", 16), ("mr_servicetd", 48))

ENCLAVE_REPORT_BYTES: Final = sum(size for _, size in _ENCLAVE_REPORT)

Fields = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote, split into its fields. Parsed, not trusted.

    Attributes:
        raw: the whole quote, without padding behind it.
        tee: ``sgx`` or ``tdx``.
        version: 3, 4 or 5.
        header: its fields by name.
        body_type: type and size of the body as they stand in a quote of version 5, 2 and 4 bytes;
            None for other versions.
        body: fields of the report by name.
        signed: header and body, which the attestation key signed.
        signature: ECDSA r ‖ s, 64 bytes big-endian.
        attestation_key: x ‖ y of the P-256 key, 64 bytes big-endian.
        qe_report: the quoting enclave's own report, 384 bytes, and ``qe_report_fields`` its fields.
        qe_report_signature: by the PCK key, 64 bytes.
        qe_auth_data: bytes that the quoting enclave bound beside the attestation key.
        pck_chain: PEM of PCK certificate, its CA and the root.
    """

    raw: bytes = field(repr=False)
    tee: Tee
    version: int
    header: Fields = field(repr=False)
    body_type: tuple[bytes, bytes] | None = field(repr=False)
    body: Fields = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    attestation_key: bytes = field(repr=False)
    qe_report: bytes = field(repr=False)
    qe_report_fields: Fields = field(repr=False)
    qe_report_signature: bytes = field(repr=False)
    qe_auth_data: bytes = field(repr=False)
    pck_chain: bytes = field(repr=False)

    @property
    def report_data(self) -> bytes:
        """64 bytes that the workload chose."""
        return self.body["report_data"]

    @property
    def init_data(self) -> bytes:
        """The field that init-data is bound to: 48 bytes for TDX, 64 for SGX."""
        return self.body["mr_config_id" if self.tee is Tee.TDX else "config_id"]


class _Cursor:
    """Reads from front to back and never beyond the end."""

    __slots__ = ("_data", "_what", "position")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise EvidenceError(f"the {self._what} is cut off in its {what}")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def fields(self, layout: _Layout) -> Fields:
        return MappingProxyType({name: self.take(size, name) for name, size in layout})

    def u16(self, what: str) -> int:
        return int(_U16.unpack(self.take(2, what))[0])

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def rest(self) -> bytes:
        return self._data[self.position :]


def parse_quote(raw: bytes) -> Quote:
    """Parse a quote.

    Args:
        raw: the quote; zero bytes may follow it, as the buffer it comes in is larger.

    Raises:
        EvidenceError: not a quote of a version, body, key and certification data that are taken
            here, or a length in it lies.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise EvidenceError(f"the quote is larger than {MAX_QUOTE_BYTES} bytes")
    cursor = _Cursor(raw, "quote")
    header = cursor.fields(_HEADER)
    version = int(_U16.unpack(header["version"])[0])
    tee = _TEE_TYPES.get(int(_U32.unpack(header["tee_type"])[0]))
    if _U16.unpack(header["att_key_type"])[0] != _ECDSA_P256:
        raise EvidenceError("the quote's attestation key is not ECDSA P-256")
    if header["vendor_id"] != INTEL_QE_VENDOR_ID:
        raise EvidenceError("the quote is not by a quoting enclave of Intel")

    body_type: tuple[bytes, bytes] | None = None
    if (version == 3 and tee is Tee.SGX) or (version == 4 and tee is Tee.SGX):
        layout = _ENCLAVE_REPORT
    elif version == 4 and tee is Tee.TDX:
        layout = _TD_REPORT_1_0
    elif version == 5 and tee is Tee.TDX:
        body_type = (cursor.take(2, "body type"), cursor.take(4, "body size"))
        layout = _td_layout(*body_type)
    else:
        raise EvidenceError(
            f"quotes of version {version} with TEE type {header['tee_type'].hex()} are not taken"
        )
    body = cursor.fields(layout)
    signed = raw[: cursor.position]
    signature_data = cursor.take(cursor.u32("signature size"), "signature data")
    if any(cursor.rest()):
        raise EvidenceError("there is more behind the quote than its lengths say")
    return _with_signature_data(
        signature_data,
        raw=raw[: cursor.position],
        tee=tee,
        version=version,
        header=header,
        body_type=body_type,
        body=body,
        signed=signed,
    )


def _td_layout(body_type: bytes, body_size: bytes) -> _Layout:
    kind = int(_U16.unpack(body_type)[0])
    layout = {_TD_1_0: _TD_REPORT_1_0, _TD_1_5: _TD_REPORT_1_5}.get(kind)
    if layout is None:
        raise EvidenceError(f"the quote's body is of type {kind}, not of TDX 1.0 or 1.5")
    if _U32.unpack(body_size)[0] != sum(size for _, size in layout):
        raise EvidenceError("the quote's body has another size than its type")
    return layout


def _with_signature_data(
    data: bytes,
    *,
    raw: bytes,
    tee: Tee,
    version: int,
    header: Fields,
    body_type: tuple[bytes, bytes] | None,
    body: Fields,
    signed: bytes,
) -> Quote:
    cursor = _Cursor(data, "quote's signature data")
    signature = cursor.take(64, "signature")
    attestation_key = cursor.take(64, "attestation key")
    if version > 3:
        # from version 4 on, the quoting enclave's report is itself certification data
        kind = cursor.u16("certification type")
        if kind != _QE_REPORT_CERTIFICATION:
            raise EvidenceError(f"the quote's certification data is of type {kind}, not 6")
        certification = cursor.take(cursor.u32("certification size"), "certification data")
        _check_consumed(cursor)
        cursor = _Cursor(certification, "quote's certification data")
    qe_report = cursor.take(ENCLAVE_REPORT_BYTES, "QE report")
    qe_report_signature = cursor.take(64, "QE report signature")
    qe_auth_data = cursor.take(cursor.u16("QE authentication size"), "QE authentication data")
    kind = cursor.u16("certification type")
    if kind != _PCK_CERTIFICATE_CHAIN:
        raise EvidenceError(
            f"the quote brings certification data of type {kind}, not a PCK certificate chain (5)"
        )
    pck_chain = cursor.take(cursor.u32("certificate size"), "certificate chain")
    _check_consumed(cursor)
    return Quote(
        raw=raw,
        tee=tee,
        version=version,
        header=header,
        body_type=body_type,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_fields=_Cursor(qe_report, "QE report").fields(_ENCLAVE_REPORT),
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        pck_chain=pck_chain,
    )


def _check_consumed(cursor: _Cursor) -> None:
    if cursor.rest():
        raise EvidenceError("the quote's certification data is smaller than what holds it")
