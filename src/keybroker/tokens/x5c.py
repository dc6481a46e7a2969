"""Certificate chains of token signing keys: from the leaf to a certificate the operator trusts.

The rules are those of RFC 5280, section 6.1, for chains that sign tokens: names and signatures
chain, every certificate is within its time, issuers are certificate authorities with room for the
path below them, and nothing critical is left unread. Names of hosts and revocation lists play no
part: the operator names the few certificates to trust and takes them away again.

A trusted certificate ends the search wherever it stands, so an intermediate authority, or the
signing certificate itself, may be trusted without the root above it.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID

from keybroker.model.errors import ConfigError, MalformedError
from keybroker.tokens.jwk import PublicKey, check_public_key

#: Certificates in one ``x5c``; real chains have two to four.
MAX_CERTIFICATES = 10

#: Certificates in one path, so that a tangle of cross-signed authorities cannot be walked for long.
MAX_PATH_LENGTH = 6

#: Signature checks spent on one chain, whatever its shape.
MAX_SIGNATURE_CHECKS = 32

#: Hashes that still resist collisions; None is Ed25519, which has its own.
_SIGNATURE_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

#: Critical extensions that the rules below read, or that say nothing about signing tokens.
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def parse_x5c(x5c: object) -> list[x509.Certificate]:
    """Read the ``x5c`` member of a JWK, the leaf first.

    Raises:
        MalformedError: not a list of base64 DER certificates, empty, or too long.

    Specification: RFC 7517, section 4.7.
    """
    if not isinstance(x5c, list) or not x5c:
        raise MalformedError("the JWK has no x5c chain")
    if len(x5c) > MAX_CERTIFICATES:
        raise MalformedError(f"an x5c chain has more than {MAX_CERTIFICATES} certificates")
    chain = []
    for entry in x5c:
        if not isinstance(entry, str):
            raise MalformedError("an x5c entry is not a string")
        try:
            # Line breaks are no part of base64, but issuers that cut PEM files leave them in.
            der = base64.b64decode(entry.replace("\n", ""), validate=True)
            chain.append(x509.load_der_x509_certificate(der))
        except (ValueError, binascii.Error):
            raise MalformedError("an x5c entry is not a certificate") from None
    return chain


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read all certificates of a PEM file, in its order.

    Raises:
        MalformedError: none, or one that cannot be read.
    """
    try:
        certificates = [x509.load_pem_x509_certificate(block) for block in _PEM_BLOCK.findall(pem)]
    except ValueError:
        raise MalformedError("a certificate cannot be read") from None
    if not certificates:
        raise MalformedError("there is no PEM certificate")
    return certificates


def load_trusted(paths: Iterable[str]) -> list[x509.Certificate]:
    """Read the certificates that an operator trusts.

    Raises:
        ConfigError: a file cannot be read or holds no certificate.
    """
    trusted: list[x509.Certificate] = []
    for path in paths:
        try:
            trusted.extend(load_certificates(Path(path).read_bytes()))
        except OSError as error:
            raise ConfigError(f"trusted certificate {path}: {error.strerror}") from None
        except MalformedError as error:
            raise ConfigError(f"trusted certificate {path}: {error.diagnostics()}") from None
    return trusted


def leaf_key(certificate: x509.Certificate) -> PublicKey:
    """Return the public key of a certificate.

    Raises:
        MalformedError: of a kind or size that tokens are not signed with.
    """
    try:
        return check_public_key(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedError("a certificate's key cannot be read") from None


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    at: datetime | None = None,
) -> datetime:
    """Find a path from the leaf to a trusted certificate.

    Args:
        leaf: the certificate of the signing key.
        intermediates: further certificates, in any order, needed or not.
        trusted: where a path may end.
        at: the moment to judge by, with its time zone; None: now.

    Returns:
        When the first certificate of the path expires.

    Raises:
        MalformedError: there is no path.
    """
    moment = at if at is not None else datetime.now(UTC)
    _check_leaf(leaf)
    search = _Search(intermediates, trusted, moment)
    expires_at = search.climb([leaf])
    if expires_at is None:
        raise MalformedError(search.reason)
    return expires_at


class _Search:
    """Depth first, trusted issuers before offered ones."""

    def __init__(
        self,
        intermediates: Sequence[x509.Certificate],
        trusted: Sequence[x509.Certificate],
        moment: datetime,
    ) -> None:
        self._candidates = [*trusted, *intermediates]
        self._trusted = trusted
        self._moment = moment
        self._checks = 0
        self.reason = "the certificate chain does not end at a trusted certificate"

    def climb(self, path: list[x509.Certificate]) -> datetime | None:
        """Return when the finished path expires, or None where the last of it leads nowhere."""
        certificate = path[-1]
        if not self._in_force(certificate):
            return None
        if certificate in self._trusted:
            return min(member.not_valid_after_utc for member in path)
        if len(path) == MAX_PATH_LENGTH:
            return None
        for issuer in self._candidates:
            if issuer.subject != certificate.issuer or issuer in path:
                continue
            if not self._may_issue(issuer, path) or not self._signed_by(certificate, issuer):
                continue
            expires_at = self.climb([*path, issuer])
            if expires_at is not None:
                return expires_at
        return None

    def _in_force(self, certificate: x509.Certificate) -> bool:
        if certificate.not_valid_before_utc <= self._moment <= certificate.not_valid_after_utc:
            return True
        self.reason = "a certificate of the chain is expired or not valid yet"
        return False

    def _may_issue(self, issuer: x509.Certificate, below: list[x509.Certificate]) -> bool:
        try:
            extensions = _extensions(issuer)
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        except (MalformedError, x509.ExtensionNotFound):
            self.reason = "an issuer in the chain is not a certificate authority"
            return False
        # The leaf does not count, nor do self-issued authorities (RFC 5280, section 4.2.1.9).
        authorities = sum(member.subject != member.issuer for member in below[1:])
        if not constraints.ca or (
            constraints.path_length is not None and authorities > constraints.path_length
        ):
            self.reason = "an issuer in the chain is not an authority for the path below it"
            return False
        usage = _key_usage(extensions)
        return usage is None or usage.key_cert_sign

    def _signed_by(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        self._checks += 1
        if self._checks > MAX_SIGNATURE_CHECKS:
            raise MalformedError("the certificate chain has too many possible paths")
        try:
            algorithm = certificate.signature_hash_algorithm
            if algorithm is not None and not isinstance(algorithm, _SIGNATURE_HASHES):
                self.reason = "a certificate of the chain is signed with a broken hash"
                return False
            leaf_key(issuer)
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, MalformedError):
            return False
        return True


def _check_leaf(leaf: x509.Certificate) -> None:
    usage = _key_usage(_extensions(leaf))
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        raise MalformedError("the signing certificate is not for signing")


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise MalformedError("the extensions of a certificate cannot be read") from None
    if any(item.critical and item.oid not in _UNDERSTOOD for item in extensions):
        raise MalformedError("a certificate has a critical extension that is not understood")
    return extensions


def _key_usage(extensions: x509.Extensions) -> x509.KeyUsage | None:
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
