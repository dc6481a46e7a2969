"""Collateral: what Intel says about platforms, and the proof that Intel says it.

TCB info lists the TCB levels of one family of platforms with their status, the QE identity says
which quoting enclaves are genuine, two revocation lists say which certificates are not. Each is
signed under Intel's root; :func:`verify_collateral` checks that once, and what it returns is used
for every quote until it expires.

Specification: Intel SGX and TDX Provisioning Certification Service API, version 4.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.model.strict_json import convert_struct, parse_json
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.crl import (
    RevocationList,
    parse_crl,
    verify_crl_issued_by,
    verify_not_revoked,
)
from keybroker.verifiers.dcap.pck import PCK_CAS
from keybroker.verifiers.dcap.tcb import QeIdentity, TcbInfo
from keybroker.verifiers.x509 import Certificate, parse_certificates, verify_issued_by

if TYPE_CHECKING:
    import dcap_qvl

#: Largest part of a collateral in bytes. Intel's largest, a TCB info, has some 10 KiB.
MAX_PART_BYTES = 1024 * 1024

_Signed = TypeVar("_Signed", TcbInfo, QeIdentity)


class CollateralParts(msgspec.Struct, frozen=True):
    """Collateral in the JSON form that ``dcap-qvl`` and others store it in.

    Certificate chains are PEM, issuer last; revocation lists are DER in hexadecimal; ``tcb_info``
    and ``qe_identity`` are the JSON texts byte for byte as they were signed; signatures are ECDSA
    r ‖ s in hexadecimal.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


@dataclass(frozen=True, slots=True)
class CollateralKey:
    """What one collateral is for.

    Attributes:
        tee: ``tdx`` or ``sgx``.
        fmspc: 6 bytes.
        ca: ``platform`` or ``processor``.
    """

    tee: Tee
    fmspc: bytes
    ca: str

    def __str__(self) -> str:
        return f"{self.tee.value} {self.fmspc.hex().upper()} {self.ca}"


@dataclass(frozen=True, slots=True)
class VerifiedCollateral:
    """Collateral whose signatures verified. Only :func:`verify_collateral` makes these.

    Whether it is still valid is asked at the moment of use.

    Attributes:
        key: what it is for.
        root: the root that vouches for it.
        root_key_id: SHA-384 of the root's public key as a point, 48 bytes.
        earliest_issue: of every signed part and every certificate in it.
        latest_issue: it says nothing about moments before.
        earliest_expiration: when its first part is due to be replaced.
        parts: as they came.
        prepared: the same for ``dcap_qvl``.
    """

    key: CollateralKey
    root: Certificate = field(repr=False)
    root_key_id: bytes = field(repr=False)
    tcb_info: TcbInfo = field(repr=False)
    qe_identity: QeIdentity = field(repr=False)
    pck_ca: Certificate = field(repr=False)
    pck_crl: RevocationList = field(repr=False)
    root_crl: RevocationList = field(repr=False)
    earliest_issue: datetime
    latest_issue: datetime
    earliest_expiration: datetime
    parts: CollateralParts = field(repr=False)
    prepared: "dcap_qvl.QuoteCollateralV3" = field(repr=False)


def parse_collateral(raw: bytes) -> CollateralParts:
    """Parse collateral in the JSON form of ``dcap-qvl``.

    Raises:
        EvidenceError: not that form.
    """
    try:
        return convert_struct(parse_json(raw), CollateralParts)
    except MalformedError as error:
        raise EvidenceError(f"not collateral: {error}") from None


def describe_parts(parts: CollateralParts) -> CollateralKey:
    """Say what collateral claims to be for, before anything of it is verified.

    Raises:
        EvidenceError: it does not say it in a way that can be read.
    """
    info = _parse(parts.tcb_info, TcbInfo, "TCB info")
    chain = parse_certificates(parts.pck_crl_issuer_chain.encode("utf-8", "replace"))
    ca = PCK_CAS.get(chain[0].subject_cn)
    if ca is None or info.id not in ("SGX", "TDX"):
        raise EvidenceError("the collateral is of an unknown kind")
    return CollateralKey(Tee(info.id.lower()), bytes.fromhex(info.fmspc), ca)


def verify_collateral(
    parts: CollateralParts, tee: Tee, roots: Sequence[Certificate]
) -> VerifiedCollateral:
    """Check that collateral is whole, of one kind, and signed under a trusted root.

    Args:
        parts: the collateral.
        tee: what it must be for.
        roots: roots that are trusted; one of them must have issued everything.

    Raises:
        EvidenceError: it is not.
    """
    tcb_signer, root = _signer(parts.tcb_info_issuer_chain, roots, "TCB info")
    qe_signer, qe_root = _signer(parts.qe_identity_issuer_chain, roots, "QE identity")
    pck_ca, ca_root = _signer(parts.pck_crl_issuer_chain, roots, "PCK revocation list")
    if not root.der == qe_root.der == ca_root.der:
        raise EvidenceError("the collateral is not signed under one root")
    root_crl = verify_crl_issued_by(parse_crl(_hex(parts.root_ca_crl, "root CRL")), root)
    pck_crl = verify_crl_issued_by(parse_crl(_hex(parts.pck_crl, "PCK CRL")), pck_ca)
    for certificate in (tcb_signer, qe_signer, pck_ca, root):
        verify_not_revoked(certificate, root_crl)
    ca = PCK_CAS.get(pck_ca.subject_cn)
    if ca is None:
        raise EvidenceError(f"the PCK revocation list is by {pck_ca.subject_cn!r}")

    _verify_signed(parts.tcb_info, parts.tcb_info_signature, tcb_signer, "TCB info")
    _verify_signed(parts.qe_identity, parts.qe_identity_signature, qe_signer, "QE identity")
    tcb_info = _parse(parts.tcb_info, TcbInfo, "TCB info")
    qe_identity = _parse(parts.qe_identity, QeIdentity, "QE identity")
    tcb_info.check_for(tee)
    qe_identity.check_for(tee)

    certificates = (tcb_signer, qe_signer, pck_ca, root)
    issued = [
        tcb_info.issue_date,
        qe_identity.issue_date,
        root_crl.this_update,
        pck_crl.this_update,
        *(certificate.not_before for certificate in certificates),
    ]
    expiring = [
        tcb_info.next_update,
        qe_identity.next_update,
        root_crl.next_update,
        pck_crl.next_update,
        *(certificate.not_after for certificate in certificates),
    ]
    return VerifiedCollateral(
        key=CollateralKey(tee, bytes.fromhex(tcb_info.fmspc), ca),
        root=root,
        root_key_id=hashlib.sha384(
            root.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        ).digest(),
        tcb_info=tcb_info,
        qe_identity=qe_identity,
        pck_ca=pck_ca,
        pck_crl=pck_crl,
        root_crl=root_crl,
        earliest_issue=min(issued),
        latest_issue=max(issued),
        earliest_expiration=min(expiring),
        parts=parts,
        prepared=_prepare(parts),
    )


def _signer(pem: str, roots: Sequence[Certificate], what: str) -> tuple[Certificate, Certificate]:
    """Return the certificate that signs a part, and the trusted root that issued it."""
    chain = parse_certificates(pem.encode("utf-8", "replace"))
    signer = chain[0]
    problem = "its root is not trusted here"
    for root in roots:
        if root.subject != signer.issuer:
            continue
        try:
            verify_issued_by(signer, root)
        except EvidenceError as error:
            problem = error.diagnostics()
            continue
        return signer, root
    raise EvidenceError(f"the issuer chain of the {what} does not hold: {problem}")


def _verify_signed(text: str, signature: str, signer: Certificate, what: str) -> None:
    raw = _hex(signature, f"signature of the {what}")
    key = signer.public_key()
    if len(raw) != 64 or not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(f"the {what} is not signed by ECDSA P-256")
    der_signature = encode_dss_signature(
        int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    )
    try:
        key.verify(der_signature, text.encode("utf-8"), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EvidenceError(f"the signature of the {what} is not valid") from None


def _parse(text: str, type_: type[_Signed], what: str) -> _Signed:
    try:
        return convert_struct(parse_json(text.encode("utf-8")), type_)
    except MalformedError as error:
        raise EvidenceError(f"the {what} cannot be read: {error}") from None


def _hex(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise EvidenceError(f"the {what} of the collateral is not hexadecimal") from None


def _prepare(parts: CollateralParts) -> "dcap_qvl.QuoteCollateralV3":
    # loaded with the first collateral: it takes a tenth of a second, which a start can do without
    import dcap_qvl

    return dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=parts.pck_crl_issuer_chain,
        root_ca_crl=bytes.fromhex(parts.root_ca_crl),
        pck_crl=bytes.fromhex(parts.pck_crl),
        tcb_info_issuer_chain=parts.tcb_info_issuer_chain,
        tcb_info=parts.tcb_info,
        tcb_info_signature=bytes.fromhex(parts.tcb_info_signature),
        qe_identity_issuer_chain=parts.qe_identity_issuer_chain,
        qe_identity=parts.qe_identity,
        qe_identity_signature=bytes.fromhex(parts.qe_identity_signature),
    )
