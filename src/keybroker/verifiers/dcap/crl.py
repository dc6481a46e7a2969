"""Certificate revocation lists, read strictly.

Specification: RFC 5280, section 5.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keybroker.model.errors import EvidenceError
from keybroker.verifiers import der
from keybroker.verifiers.der import DerError, DerReader
from keybroker.verifiers.x509 import Certificate

#: Largest list in bytes. Intel's longest has some 4 KiB.
MAX_CRL_BYTES = 1024 * 1024

_CRL_NUMBER: Final = "2.5.29.20"
_ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list of revoked serial numbers. Parsed, not trusted.

    Attributes:
        issuer: name of the CA as DER.
        number: the CRL number; 0 where it has none.
        revoked: serial numbers.
    """

    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime
    number: int
    revoked: frozenset[int] = field(repr=False)


def parse_crl(data: bytes) -> RevocationList:
    """Parse a revocation list in DER.

    Raises:
        EvidenceError: not a version 2 list, signed by ECDSA with SHA-256, that says when the next
            one comes.
    """
    if len(data) > MAX_CRL_BYTES:
        raise EvidenceError(f"a revocation list is larger than {MAX_CRL_BYTES} bytes")
    try:
        return _parse(data)
    except DerError as error:
        raise EvidenceError(f"not a revocation list: {error}") from None


def _parse(data: bytes) -> RevocationList:
    outer = DerReader(data)
    reader = outer.enter()
    outer.finish()
    tbs = reader.element(der.SEQUENCE)
    algorithm = reader.element(der.SEQUENCE)
    signature = reader.bit_string()
    reader.finish()
    body = DerReader(tbs).enter()
    if body.integer() != 1:
        raise DerError("the list is not of version 2")
    if algorithm != _ECDSA_WITH_SHA256 or body.element(der.SEQUENCE) != algorithm:
        raise DerError("the list is not signed by ECDSA with SHA-256")
    issuer = body.element(der.SEQUENCE)
    this_update, next_update = body.time(), body.time()
    revoked: set[int] = set()
    if body.next_is(der.SEQUENCE):
        entries = body.enter()
        while not entries.at_end():
            entry = entries.enter()
            revoked.add(entry.integer())
            entry.time()
            if not entry.at_end():
                entry.read(der.SEQUENCE)
            entry.finish()
    number = 0
    if body.next_is(der.context(0)):
        wrapper = body.enter(der.context(0))
        number = _crl_number(wrapper.enter())
        wrapper.finish()
    body.finish()
    return RevocationList(
        tbs=tbs,
        signature=signature,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        number=number,
        revoked=frozenset(revoked),
    )


def _crl_number(extensions: DerReader) -> int:
    number = 0
    while not extensions.at_end():
        extension = extensions.enter()
        oid = extension.oid()
        if extension.next_is(der.BOOLEAN) and extension.boolean():
            # the critical ones change what the list means: deltas, indirect lists
            raise DerError(f"the extension {oid} is critical and not known")
        value = extension.read(der.OCTET_STRING)
        extension.finish()
        if oid == _CRL_NUMBER:
            inner = DerReader(value)
            number = inner.integer()
            inner.finish()
    return number


def verify_crl_issued_by(crl: RevocationList, issuer: Certificate) -> RevocationList:
    """Check that a list was issued by a CA.

    Raises:
        EvidenceError: it names another issuer, or the signature is not by its key.
    """
    key = issuer.public_key()
    if crl.issuer != issuer.subject or not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(f"a revocation list is not by {issuer.subject_cn!r}")
    try:
        key.verify(crl.signature, crl.tbs, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EvidenceError(
            f"the revocation list of {issuer.subject_cn!r} is not signed by it"
        ) from None
    return crl


def verify_not_revoked(certificate: Certificate, crl: RevocationList) -> Certificate:
    """Check that a certificate is not on the list of its issuer.

    Raises:
        EvidenceError: it is, or the list is of another issuer.
    """
    if certificate.issuer != crl.issuer:
        raise EvidenceError(f"no revocation list covers {certificate.subject_cn!r}")
    if certificate.serial in crl.revoked:
        raise EvidenceError(f"{certificate.subject_cn!r} is revoked")
    return certificate
