"""X.509 certificates, read strictly, and the check that one certificate signed another.

Our own reader, because the certificates of AMD carry the serial number 0 and repeat default values,
both of which a strict general-purpose library may refuse; and because only a few fields matter
here. Signatures are checked by OpenSSL through ``cryptography``.

Specification: RFC 5280; RFC 4055 for RSASSA-PSS.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keybroker.model.errors import EvidenceError
from keybroker.verifiers import der
from keybroker.verifiers.der import DerError, DerReader

#: Largest certificate in bytes of DER; those of AMD and Intel have under 2 KiB.
MAX_CERTIFICATE_BYTES = 16 * 1024

#: Most certificates taken from one PEM text; vendor chains have three.
MAX_PEM_CERTIFICATES = 16

#: Most extensions in a certificate; a VCEK has a dozen.
_MAX_EXTENSIONS = 64

#: Longest common name in bytes: RFC 5280 appendix A.1 has 64 characters. It appears in messages.
_MAX_COMMON_NAME_BYTES = 256

BASIC_CONSTRAINTS = "2.5.29.19"
KEY_USAGE = "2.5.29.15"
_COMMON_NAME = "2.5.4.3"

_RSASSA_PSS = "1.2.840.113549.1.1.10"
_MGF1 = "1.2.840.113549.1.1.8"
_HASHES: Mapping[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256,
    "2.16.840.1.101.3.4.2.2": hashes.SHA384,
    "2.16.840.1.101.3.4.2.3": hashes.SHA512,
}
_RSA_PKCS1V15: Mapping[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256,
    "1.2.840.113549.1.1.12": hashes.SHA384,
    "1.2.840.113549.1.1.13": hashes.SHA512,
}
_ECDSA: Mapping[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "1.2.840.10045.4.3.2": hashes.SHA256,
    "1.2.840.10045.4.3.3": hashes.SHA384,
    "1.2.840.10045.4.3.4": hashes.SHA512,
}

#: What an algorithm without parameters may hold: nothing, or NULL (RFC 4055 section 2.1).
_NO_PARAMETERS = (b"", b"\x05\x00")

#: Smallest RSA key that may sign a certificate, in bits.
_MIN_RSA_BITS = 2048

_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----", re.ASCII
)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: whether whoever does not understand it must refuse, and its raw value."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """The fields of a certificate. Parsed, not trusted.

    Attributes:
        der: the whole certificate.
        tbs: the signed part, header included.
        serial: the serial number; may be 0.
        issuer, subject: the names as DER, to be compared byte by byte.
        issuer_cn, subject_cn: the common name, or "" where there is none.
        not_before, not_after: both ends belong to the validity.
        public_key_info: SubjectPublicKeyInfo as DER.
        signature_algorithm: AlgorithmIdentifier as DER.
        extensions: by dotted object identifier.
    """

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    serial: int
    issuer: bytes = field(repr=False)
    subject: bytes = field(repr=False)
    issuer_cn: str
    subject_cn: str
    not_before: datetime
    not_after: datetime
    public_key_info: bytes = field(repr=False)
    signature_algorithm: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    extensions: Mapping[str, Extension] = field(repr=False)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the DER in hexadecimal."""
        return hashlib.sha256(self.der).hexdigest()

    def public_key(self) -> PublicKey:
        """Load the public key.

        Raises:
            EvidenceError: not an RSA or EC key that OpenSSL takes.
        """
        try:
            key = load_der_public_key(self.public_key_info)
        except (ValueError, UnsupportedAlgorithm):
            raise EvidenceError(f"the key of {self.subject_cn!r} cannot be loaded") from None
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise EvidenceError(f"the key of {self.subject_cn!r} is neither RSA nor EC")
        return key

    def is_self_issued(self) -> bool:
        """Tell whether issuer and subject are the same name."""
        return self.issuer == self.subject


def parse_certificate(data: bytes) -> Certificate:
    """Read one certificate, DER or PEM.

    Args:
        data: at most :data:`MAX_CERTIFICATE_BYTES` of DER, or a PEM text of one certificate.

    Raises:
        EvidenceError: not a certificate of RFC 5280's form.
    """
    if not data.startswith(b"\x30") and b"-----BEGIN" in data:
        certificates = parse_certificates(data)
        if len(certificates) != 1:
            raise EvidenceError("the PEM text holds more than one certificate")
        return certificates[0]
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"a certificate is larger than {MAX_CERTIFICATE_BYTES} bytes")
    try:
        return _parse_der(data)
    except DerError as error:
        raise EvidenceError(f"not a certificate: {error}") from None


def parse_certificates(data: bytes) -> list[Certificate]:
    """Read one DER certificate, or every certificate of a PEM text, in its order.

    Raises:
        EvidenceError: no certificate in it, too many, or one that does not parse.
    """
    if data.startswith(b"\x30"):
        return [parse_certificate(data)]
    blocks = _PEM.findall(data)
    if not blocks or len(blocks) > MAX_PEM_CERTIFICATES:
        raise EvidenceError(f"neither DER nor PEM of 1 to {MAX_PEM_CERTIFICATES} certificates")
    certificates = []
    for block in blocks:
        try:
            raw = base64.b64decode(b"".join(block.split()), validate=True)
        except binascii.Error:
            raise EvidenceError("a PEM block is not base64") from None
        if not raw.startswith(b"\x30"):
            raise EvidenceError("a PEM block does not hold a certificate")
        certificates.append(parse_certificate(raw))
    return certificates


def _parse_der(data: bytes) -> Certificate:
    outer = DerReader(data)
    certificate = outer.enter()
    outer.finish()
    tbs = certificate.element(der.SEQUENCE)
    signature_algorithm = certificate.element(der.SEQUENCE)
    signature = certificate.bit_string()
    certificate.finish()

    body = DerReader(tbs).enter()
    if not body.next_is(der.context(0)):
        raise DerError("the certificate is not of version 3")
    version = body.enter(der.context(0))
    if version.integer() != 2:
        raise DerError("the certificate is not of version 3")
    version.finish()
    serial = body.integer()
    # RFC 5280 section 4.1.1.2: the two must be the same, else the unsigned one could be swapped
    if body.element(der.SEQUENCE) != signature_algorithm:
        raise DerError("the signature algorithm inside and outside differ")
    issuer = body.element(der.SEQUENCE)
    validity = body.enter()
    not_before, not_after = validity.time(), validity.time()
    validity.finish()
    subject = body.element(der.SEQUENCE)
    public_key_info = body.element(der.SEQUENCE)
    extensions: Mapping[str, Extension] = MappingProxyType({})
    if body.next_is(der.context(3)):
        wrapper = body.enter(der.context(3))
        extensions = _parse_extensions(wrapper.enter())
        wrapper.finish()
    body.finish()
    return Certificate(
        der=data,
        tbs=tbs,
        serial=serial,
        issuer=issuer,
        subject=subject,
        issuer_cn=_common_name(issuer),
        subject_cn=_common_name(subject),
        not_before=not_before,
        not_after=not_after,
        public_key_info=public_key_info,
        signature_algorithm=signature_algorithm,
        signature=signature,
        extensions=extensions,
    )


def _parse_extensions(reader: DerReader) -> Mapping[str, Extension]:
    extensions: dict[str, Extension] = {}
    while not reader.at_end():
        one = reader.enter()
        oid = one.oid()
        critical = one.boolean() if one.next_is(der.BOOLEAN) else False
        value = one.read(der.OCTET_STRING)
        one.finish()
        if oid in extensions:
            raise DerError(f"the extension {oid} is there twice")
        if len(extensions) == _MAX_EXTENSIONS:
            raise DerError(f"there are more than {_MAX_EXTENSIONS} extensions")
        extensions[oid] = Extension(critical, value)
    return MappingProxyType(extensions)


def _common_name(name: bytes) -> str:
    found: list[str] = []
    relative_names = DerReader(name).enter()
    while not relative_names.at_end():
        attributes = relative_names.enter(der.SET)
        while not attributes.at_end():
            attribute = attributes.enter()
            oid = attribute.oid()
            tag, value = attribute.any()
            attribute.finish()
            if oid == _COMMON_NAME:
                if len(value) > _MAX_COMMON_NAME_BYTES:
                    raise DerError("a common name is too long")
                if tag not in (der.UTF8_STRING, der.PRINTABLE_STRING, der.IA5_STRING):
                    raise DerError("a common name is not a UTF-8, printable or IA5 string")
                try:
                    found.append(value.decode("utf-8"))
                except UnicodeDecodeError:
                    raise DerError("a common name is not UTF-8") from None
    if len(found) > 1:
        raise DerError("a name holds more than one common name")
    return found[0] if found else ""


def verify_signed_by(certificate: Certificate, issuer_key: PublicKey) -> Certificate:
    """Check the signature of a certificate and return the certificate.

    RSASSA-PSS (with the parameters that the certificate names), RSASSA-PKCS1-v1_5 and ECDSA, each
    with SHA-256, SHA-384 or SHA-512.

    Raises:
        EvidenceError: the signature is not by this key, or the algorithm is another.
    """
    try:
        oid, parameters = _algorithm(certificate.signature_algorithm)
        if isinstance(issuer_key, rsa.RSAPublicKey):
            _verify_rsa(certificate, issuer_key, oid, parameters)
        elif oid in _ECDSA and not parameters:
            issuer_key.verify(certificate.signature, certificate.tbs, ec.ECDSA(_ECDSA[oid]()))
        else:
            raise DerError(f"the algorithm {oid} is not for an EC key")
    except InvalidSignature:
        raise EvidenceError(
            f"{certificate.subject_cn!r} is not signed by the key it is checked with"
            f" (issuer {certificate.issuer_cn!r})"
        ) from None
    except DerError as error:
        raise EvidenceError(f"the signature of {certificate.subject_cn!r}: {error}") from None
    return certificate


def _verify_rsa(
    certificate: Certificate, issuer_key: rsa.RSAPublicKey, oid: str, parameters: bytes
) -> None:
    if issuer_key.key_size < _MIN_RSA_BITS:
        raise DerError(f"an RSA key of {issuer_key.key_size} bits is too small")
    scheme: padding.PSS | padding.PKCS1v15
    algorithm: _Hash
    if oid == _RSASSA_PSS:
        algorithm, salt_length = _pss_parameters(parameters)
        scheme = padding.PSS(padding.MGF1(algorithm), salt_length)
    elif oid in _RSA_PKCS1V15 and parameters in _NO_PARAMETERS:
        algorithm, scheme = _RSA_PKCS1V15[oid](), padding.PKCS1v15()
    else:
        raise DerError(f"the algorithm {oid} is not for an RSA key")
    issuer_key.verify(certificate.signature, certificate.tbs, scheme, algorithm)


def _algorithm(identifier: bytes) -> tuple[str, bytes]:
    """Split an AlgorithmIdentifier into its object identifier and its parameters as DER."""
    reader = DerReader(identifier).enter()
    return reader.oid(), reader.rest()


def _pss_parameters(parameters: bytes) -> tuple[_Hash, int]:
    """Read RSASSA-PSS-params, RFC 4055 section 3.1: return hash and salt length in bytes."""
    outer = DerReader(parameters)
    reader = outer.enter()
    outer.finish()
    if not reader.next_is(der.context(0)):
        raise DerError("RSASSA-PSS with SHA-1 is not taken")
    hash_oid, hash_parameters = _algorithm(reader.read(der.context(0)))
    if not reader.next_is(der.context(1)):
        raise DerError("RSASSA-PSS with SHA-1 as mask is not taken")
    mask_oid, mask_parameters = _mask_algorithm(reader.read(der.context(1)))
    if hash_oid not in _HASHES or hash_parameters not in _NO_PARAMETERS:
        raise DerError(f"RSASSA-PSS with the hash {hash_oid} is not taken")
    if mask_oid != hash_oid or mask_parameters not in _NO_PARAMETERS:
        raise DerError("RSASSA-PSS with two different hashes is not taken")
    salt_length = 20
    if reader.next_is(der.context(2)):
        salt_reader = reader.enter(der.context(2))
        salt_length = salt_reader.integer()
        salt_reader.finish()
    if reader.next_is(der.context(3)):
        # the default, written out all the same in AMD's older certificates
        trailer = reader.enter(der.context(3))
        if trailer.integer() != 1:
            raise DerError("RSASSA-PSS with another trailer than 1")
        trailer.finish()
    reader.finish()
    algorithm = _HASHES[hash_oid]()
    if salt_length != algorithm.digest_size:
        raise DerError(f"RSASSA-PSS with a salt of {salt_length} bytes is not taken")
    return algorithm, salt_length


def _mask_algorithm(identifier: bytes) -> tuple[str, bytes]:
    """Read the mask generation function, which must be MGF1; return its hash algorithm."""
    oid, parameters = _algorithm(identifier)
    if oid != _MGF1:
        raise DerError("RSASSA-PSS with another mask than MGF1")
    return _algorithm(parameters)


def verify_issued_by(
    certificate: Certificate,
    issuer: Certificate,
    *,
    understood: Collection[str] = (BASIC_CONSTRAINTS, KEY_USAGE),
) -> Certificate:
    """Check that a certificate was issued by another: name, right to issue, signature.

    Validity in time is not looked at: see :func:`verify_valid_at`. Nor is the path length that a CA
    is granted: chains here are of a fixed shape, and AMD's root of Turin grants 0 to itself though
    it signs an intermediate.

    Args:
        understood: extensions that may be critical, RFC 5280 section 4.2.

    Raises:
        EvidenceError: it was not, or it has a critical extension that is not understood.
    """
    for oid, extension in certificate.extensions.items():
        if extension.critical and oid not in understood:
            raise EvidenceError(
                f"{certificate.subject_cn!r} has the critical extension {oid}, which is not"
                " understood"
            )
    if certificate.issuer != issuer.subject:
        raise EvidenceError(
            f"{certificate.subject_cn!r} names {certificate.issuer_cn!r} as its issuer,"
            f" which is not {issuer.subject_cn!r}"
        )
    verify_may_issue(issuer)
    return verify_signed_by(certificate, issuer.public_key())


def verify_may_issue(certificate: Certificate) -> Certificate:
    """Check that a certificate may sign others, RFC 5280 sections 4.2.1.3 and 4.2.1.9.

    Raises:
        EvidenceError: basic constraints are missing or say no, or key usage says no.
    """
    name = certificate.subject_cn
    try:
        constraints = certificate.extensions.get(BASIC_CONSTRAINTS)
        if constraints is None:
            raise EvidenceError(f"{name!r} is not a CA certificate: no basic constraints")
        reader = DerReader(constraints.value).enter()
        if not (reader.next_is(der.BOOLEAN) and reader.boolean()):
            raise EvidenceError(f"{name!r} is not a CA certificate")
        usage = certificate.extensions.get(KEY_USAGE)
        if usage is not None:
            bits = DerReader(usage.value).read(der.BIT_STRING)
            # keyCertSign is bit 5, counted from the highest of the first byte
            if len(bits) < 2 or not bits[1] & 0x04:
                raise EvidenceError(f"{name!r} may not sign certificates by its key usage")
    except DerError as error:
        raise EvidenceError(f"an extension of {name!r}: {error}") from None
    return certificate


def verify_valid_at(certificate: Certificate, moment: datetime) -> Certificate:
    """Check that a moment lies in the validity of a certificate.

    Raises:
        EvidenceError: it does not.
    """
    moment = moment.astimezone(UTC)
    if moment < certificate.not_before:
        raise EvidenceError(
            f"{certificate.subject_cn!r} is not valid before {certificate.not_before.isoformat()}"
        )
    if moment > certificate.not_after:
        raise EvidenceError(
            f"{certificate.subject_cn!r} expired at {certificate.not_after.isoformat()}"
        )
    return certificate
