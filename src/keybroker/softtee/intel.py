"""A private Intel: root, PCK CAs, PCK certificates and all collateral, signed as Intel signs.

Nobody trusts it unless a configuration names its root
(``verifier_config.dcap_verifier.extra_trusted_roots``)::

    intel = SoftwareIntel()
    Path("root.pem").write_bytes(intel.root_pem)
    platform = intel.platform()                              # one machine
    quote = platform.td_quote(report_data=digest)            # what its guest shows
    collateral = intel.collateral(platform, "tdx")           # what a PCCS would give for it

What the collateral says is decided by :class:`Terms`: any TCB status, expiry and revocation.
:mod:`keybroker.softtee.intel_pccs` serves it over HTTP.

Specification: Intel SGX PCK Certificate and CRL Profile Specification 1.5; Intel SGX and TDX
Provisioning Certification Service API, version 4.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keybroker.softtee import der
from keybroker.softtee.intel_quote import QeReport, SoftwareIntelPlatform, TcbNumbers

PLATFORM_CA: Final = "platform"
PROCESSOR_CA: Final = "processor"
_CA_NAMES: Final = {
    PLATFORM_CA: "Intel SGX PCK Platform CA",
    PROCESSOR_CA: "Intel SGX PCK Processor CA",
}
_SGX: Final = "1.2.840.113741.1.13.1"
_YEAR: Final = timedelta(days=365)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Terms:
    """What collateral says.

    Attributes:
        tcb_status, tcb_date, advisory_ids: of the level that the platform reaches.
        module_status, module_advisory_ids: of the TDX module.
        qe_status, qe_advisory_ids: of the quoting enclave.
        issued, next_update: of all its parts; default: yesterday, and 29 days from now.
        crl_next_update: of the revocation lists, where it is to differ.
        evaluation: the TCB evaluation data number.
        required: security version numbers that the platform must have; default: those it has.
        lower: numbers of a second level below, which is OutOfDate; default: there is none.
        revoked: serial numbers of revoked PCK certificates.
        revoked_by_root: serial numbers that the root revokes: of a CA, or the TCB signer.
    """

    tcb_status: str = "UpToDate"
    tcb_date: datetime = datetime(2024, 3, 13, tzinfo=UTC)
    advisory_ids: Sequence[str] = ()
    module_status: str = "UpToDate"
    module_advisory_ids: Sequence[str] = ()
    qe_status: str = "UpToDate"
    qe_advisory_ids: Sequence[str] = ()
    issued: datetime = field(default_factory=lambda: _now() - _DAY)
    next_update: datetime = field(default_factory=lambda: _now() + 29 * _DAY)
    crl_next_update: datetime | None = None
    evaluation: int = 17
    required: TcbNumbers | None = None
    lower: TcbNumbers | None = None
    revoked: Iterable[int] = ()
    revoked_by_root: Iterable[int] = ()


@dataclass(frozen=True)
class SoftwareCollateral:
    """Collateral as a service hands it out.

    Attributes:
        tcb_info, qe_identity: JSON texts as signed, with their signatures (r ‖ s).
        pck_crl, root_crl: DER.
        signer_chain, pck_ca_chain: PEM, issuer last.
    """

    tcb_info: str
    tcb_info_signature: bytes
    qe_identity: str
    qe_identity_signature: bytes
    pck_crl: bytes
    root_crl: bytes
    signer_chain: str
    pck_ca_chain: str

    def to_json(self) -> bytes:
        """Return it in the JSON form that is stored in files."""
        return json.dumps(
            {
                "pck_crl_issuer_chain": self.pck_ca_chain,
                "root_ca_crl": self.root_crl.hex(),
                "pck_crl": self.pck_crl.hex(),
                "tcb_info_issuer_chain": self.signer_chain,
                "tcb_info": self.tcb_info,
                "tcb_info_signature": self.tcb_info_signature.hex(),
                "qe_identity_issuer_chain": self.signer_chain,
                "qe_identity": self.qe_identity,
                "qe_identity_signature": self.qe_identity_signature.hex(),
            }
        ).encode()


@dataclass(frozen=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate


class SoftwareIntel:
    """One private Intel with keys of its own."""

    def __init__(self, *, made: datetime | None = None) -> None:
        """Make root, CAs and the signer of collateral.

        Args:
            made: when; certificates are valid for 20 years from then. Default: two years ago.
        """
        self._made = made if made is not None else _now() - 2 * _YEAR
        self._root = self._issue("Software SGX Root CA", None, ca=True)
        self._cas = {
            name: self._issue(common_name, self._root, ca=True)
            for name, common_name in _CA_NAMES.items()
        }
        self._signer = self._issue("Intel SGX TCB Signing", self._root, ca=False)

    @property
    def root_pem(self) -> bytes:
        """The root, to be named in a configuration that shall trust it."""
        return self._root.certificate.public_bytes(Encoding.PEM)

    @property
    def signer_serial(self) -> int:
        """Serial number of the certificate that signs TCB info and QE identity."""
        return self._signer.certificate.serial_number

    def ca_serial(self, ca: str) -> int:
        """Serial number of a PCK CA."""
        return self._cas[ca].certificate.serial_number

    def platform(
        self,
        *,
        fmspc: bytes = bytes.fromhex("b0c06f000000"),
        ca: str = PLATFORM_CA,
        numbers: TcbNumbers | None = None,
        sgx_type: int = 1,
        valid_until: datetime | None = None,
        fmspc_in_certificate: bytes | None = None,
    ) -> SoftwareIntelPlatform:
        """Make a machine with a PCK certificate.

        Args:
            fmspc: its family, 6 bytes.
            ca: ``platform`` or ``processor``, who issues its certificate.
            numbers: its security version numbers.
            sgx_type: 0 Standard, 1 Scalable, 2 Scalable with Integrity.
            valid_until: when its certificate expires; default: 7 years after it was made.
            fmspc_in_certificate: what the certificate says, where it is to lie.
        """
        numbers = numbers if numbers is not None else TcbNumbers()
        key = ec.generate_private_key(ec.SECP256R1())
        extension = _sgx_extension(
            fmspc=fmspc_in_certificate or fmspc,
            numbers=numbers,
            sgx_type=sgx_type,
            with_platform=ca == PLATFORM_CA,
        )
        leaf = self._sign(
            "Intel SGX PCK Certificate",
            key.public_key(),
            self._cas[ca].key,
            self._cas[ca].certificate.subject,
            ca=False,
            until=valid_until or self._made + 7 * _YEAR,
            extra=x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), extension),
        )
        chain = (leaf, self._cas[ca].certificate, self._root.certificate)
        return SoftwareIntelPlatform(
            fmspc=fmspc,
            ca=ca,
            numbers=numbers,
            pck_key=key,
            pck_serial=leaf.serial_number,
            pck_chain=_pem(*chain),
        )

    def collateral(
        self, platform: SoftwareIntelPlatform, tee: str, terms: Terms | None = None
    ) -> SoftwareCollateral:
        """Make collateral for a platform.

        Args:
            platform: for which family and numbers.
            tee: ``tdx`` or ``sgx``.
            terms: what it says; default: that all is well.
        """
        terms = terms if terms is not None else Terms()
        tcb_info = _compact(_tcb_info(platform, tee, terms))
        qe_identity = _compact(_qe_identity(tee, terms))
        crl_until = terms.crl_next_update or terms.next_update
        return SoftwareCollateral(
            tcb_info=tcb_info,
            tcb_info_signature=_sign_raw(self._signer.key, tcb_info.encode()),
            qe_identity=qe_identity,
            qe_identity_signature=_sign_raw(self._signer.key, qe_identity.encode()),
            pck_crl=_crl(self._cas[platform.ca], terms.revoked, terms.issued, crl_until),
            root_crl=_crl(self._root, terms.revoked_by_root, terms.issued, crl_until),
            signer_chain=_pem(self._signer.certificate, self._root.certificate),
            pck_ca_chain=_pem(self._cas[platform.ca].certificate, self._root.certificate),
        )

    def _issue(self, name: str, issuer: _Authority | None, *, ca: bool) -> _Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            name,
            key.public_key(),
            issuer.key if issuer is not None else key,
            issuer.certificate.subject if issuer is not None else _name(name),
            ca=ca,
            until=self._made + 20 * _YEAR,
        )
        return _Authority(key, certificate)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        signing_key: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
        *,
        ca: bool,
        until: datetime,
        extra: x509.ExtensionType | None = None,
    ) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=not ca,
            content_commitment=not ca,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._made)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if extra is not None:
            builder = builder.add_extension(extra, critical=False)
        return builder.sign(signing_key, hashes.SHA256())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "keybroker software TEE"),
        ]
    )


def _pem(*certificates: x509.Certificate) -> str:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode("ascii")


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


def _sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _crl(issuer: _Authority, revoked: Iterable[int], issued: datetime, until: datetime) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued).build()
        )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def _sgx_extension(
    *, fmspc: bytes, numbers: TcbNumbers, sgx_type: int, with_platform: bool
) -> bytes:
    def pair(number: str, value: bytes) -> bytes:
        return der.sequence(der.oid(f"{_SGX}.{number}"), value)

    components = [
        pair(f"2.{place}", der.integer(svn)) for place, svn in enumerate(numbers.sgx, start=1)
    ]
    tcb = der.sequence(
        *components,
        pair("2.17", der.integer(numbers.pce)),
        pair("2.18", der.octet_string(numbers.sgx)),
    )
    parts = [
        pair("1", der.octet_string(secrets.token_bytes(16))),
        pair("2", tcb),
        pair("3", der.octet_string(bytes(2))),
        pair("4", der.octet_string(fmspc)),
        pair("5", der.element(0x0A, bytes((sgx_type,)))),
    ]
    if with_platform:
        flags = (der.boolean(True), der.boolean(True), der.boolean(True))
        parts += [
            pair("6", der.octet_string(secrets.token_bytes(16))),
            pair(
                "7",
                der.sequence(*(pair(f"7.{place}", f) for place, f in enumerate(flags, start=1))),
            ),
        ]
    return der.sequence(*parts)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tcb_info(platform: SoftwareIntelPlatform, tee: str, terms: Terms) -> dict[str, Any]:
    required = terms.required if terms.required is not None else platform.numbers
    levels = [(required, terms.tcb_status, terms.tcb_date)]
    if terms.lower is not None:
        levels.append((terms.lower, "OutOfDate", terms.tcb_date - _YEAR))
    info: dict[str, Any] = {
        "id": tee.upper(),
        "version": 3,
        "issueDate": _moment(terms.issued),
        "nextUpdate": _moment(terms.next_update),
        "fmspc": platform.fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": terms.evaluation,
    }
    if tee == "tdx":
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        statuses = (terms.module_status, "OutOfDate")
        module_levels = [
            _level({"isvsvn": numbers.tdx[0]}, date, status, terms.module_advisory_ids)
            for (numbers, _, date), status in zip(levels, statuses, strict=False)
        ]
        info["tdxModule"] = module
        info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": module_levels}]
    info["tcbLevels"] = [
        _level(_numbers(numbers, tee), date, status, terms.advisory_ids)
        for numbers, status, date in levels
    ]
    return info


def _numbers(numbers: TcbNumbers, tee: str) -> dict[str, Any]:
    tcb: dict[str, Any] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in numbers.sgx],
        "pcesvn": numbers.pce,
    }
    if tee == "tdx":
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in numbers.tdx]
    return tcb


def _level(
    tcb: dict[str, Any], date: datetime, status: str, advisory_ids: Sequence[str]
) -> dict[str, Any]:
    level = {"tcb": tcb, "tcbDate": _moment(date), "tcbStatus": status}
    # as Intel writes it: without advisories there is no such member
    return {**level, "advisoryIDs": list(advisory_ids)} if advisory_ids else level


def _qe_identity(tee: str, terms: Terms) -> dict[str, Any]:
    enclave = QeReport.of(tee)
    return {
        "id": "TD_QE" if tee == "tdx" else "QE",
        "version": 2,
        "issueDate": _moment(terms.issued),
        "nextUpdate": _moment(terms.next_update),
        "tcbEvaluationDataNumber": terms.evaluation,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": enclave.mr_signer.hex().upper(),
        "isvprodid": enclave.product,
        "tcbLevels": [
            _level({"isvsvn": enclave.svn}, terms.tcb_date, terms.qe_status, terms.qe_advisory_ids)
        ],
    }
