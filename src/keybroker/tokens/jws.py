"""Tokens in JWS compact serialisation, taken apart strictly and checked against a key.

Reading a token decides nothing: :func:`parse_compact` gives what somebody wrote. Only
:func:`verify_signature`, with a key that is trusted for a reason of its own, makes the payload
worth reading.

Specification: RFC 7515, section 7.1; RFC 8725 (best current practices).
"""

from dataclasses import dataclass, field
from typing import Any

from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.tokens import base64url
from keybroker.tokens.algorithms import ALGORITHMS, PrivateKey, SignatureAlgorithm
from keybroker.tokens.jwk import PublicKey, parse_public_jwk

#: Longest token. Several GPUs with their measurements need more than 128 KiB, an event log as much.
MAX_TOKEN_CHARS = 1024 * 1024

#: Longest header: a certificate chain of ten RSA-4096 certificates fits.
MAX_HEADER_CHARS = 32 * 1024

#: Longest ``kid``; it is looked up and appears in diagnostics.
MAX_KID_CHARS = 256


@dataclass(frozen=True, slots=True)
class CompactJws:
    """A token in its parts; nothing of it is verified.

    Attributes:
        header_segment: the header as it was sent, base64url.
        payload: decoded octets.
        signature: decoded octets.
        signing_input: ASCII of header and payload segments with the dot between them.
    """

    header_segment: str
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    signing_input: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwsHeader:
    """What a header says that matters here. ``jku`` and ``x5u`` are never followed."""

    algorithm: SignatureAlgorithm
    kid: str | None
    jwk: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key and what it may verify.

    Attributes:
        key: the key.
        algorithm: the only algorithm to use with it; None: any that fits its kind.
    """

    key: PublicKey
    algorithm: SignatureAlgorithm | None = None

    def allows(self, algorithm: SignatureAlgorithm) -> bool:
        """Return whether a signature by this algorithm may be verified with the key."""
        return algorithm.fits(self.key) and self.algorithm in (None, algorithm)


def parse_compact(token: str) -> CompactJws:
    """Take a token apart.

    Raises:
        MalformedError: too long, not three segments, or a segment that is not base64url.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise MalformedError("the token is too long")
    header_segment, dot, rest = token.partition(".")
    payload_segment, second_dot, signature_segment = rest.partition(".")
    if not dot or not second_dot or not header_segment or not signature_segment:
        raise MalformedError("a token has three parts")
    signature = base64url.decode(signature_segment)
    payload = base64url.decode(payload_segment)
    signing_input = token[: len(header_segment) + 1 + len(payload_segment)]
    try:
        return CompactJws(header_segment, payload, signature, signing_input.encode("ascii"))
    except UnicodeEncodeError:
        raise MalformedError("a token is ASCII") from None


def parse_header(header_segment: str) -> JwsHeader:
    """Read a token's header.

    Raises:
        MalformedError: too long, not a JSON object, a member twice, an algorithm that is not
            accepted, an extension marked critical, or a member of the wrong type.
    """
    if len(header_segment) > MAX_HEADER_CHARS:
        raise MalformedError("the token's header is too long")
    header = parse_json(base64url.decode(header_segment))
    if not isinstance(header, dict):
        raise MalformedError("the token's header is not a JSON object")
    # No extension is implemented, and one that is critical must be understood (section 4.1.11).
    if "crit" in header:
        raise MalformedError("the token's header marks an extension critical")
    kid, jwk = header.get("kid"), header.get("jwk")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID_CHARS):
        raise MalformedError("the token's kid is not a short string")
    if jwk is not None and not isinstance(jwk, dict):
        raise MalformedError("the token's jwk is not a JSON object")
    return JwsHeader(_algorithm(header.get("alg")), kid, jwk)


def parse_verification_key(jwk: dict[str, Any]) -> VerificationKey:
    """Read a JWK that is meant to verify signatures.

    Raises:
        MalformedError: as :func:`~keybroker.tokens.jwk.parse_public_jwk`, or the key says that it
            is for something else, or its ``alg`` does not fit its kind.
    """
    if jwk.get("use", "sig") != "sig":
        raise MalformedError("a JWK is not for signatures")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise MalformedError("a JWK is not for verifying")
    key = parse_public_jwk(jwk)
    if jwk.get("alg") is None:
        return VerificationKey(key)
    algorithm = _algorithm(jwk["alg"])
    if not algorithm.fits(key):
        raise MalformedError("the alg of a JWK does not fit its kind")
    return VerificationKey(key, algorithm)


def verify_signature(jws: CompactJws, algorithm: SignatureAlgorithm, key: VerificationKey) -> None:
    """Check that the token was signed with the key.

    Raises:
        MalformedError: the algorithm may not be used with the key, or the signature is another's.
    """
    if not key.allows(algorithm):
        raise MalformedError("the token's alg does not fit the key")
    if not algorithm.verify(key.key, jws.signature, jws.signing_input):
        raise MalformedError("the token's signature is not valid")


def issue_compact(
    header_segment: bytes, payload: bytes, algorithm: SignatureAlgorithm, key: PrivateKey
) -> str:
    """Sign a payload under a header that is encoded already.

    Args:
        header_segment: the header, base64url; encoded once for all tokens of a signer.
        payload: octets of the claims set.
        algorithm: the one that the header names.
        key: fits the algorithm.
    """
    signing_input = b"%s.%s" % (header_segment, base64url.encode(payload))
    signature = base64url.encode(algorithm.sign(key, signing_input))
    return (signing_input + b"." + signature).decode("ascii")


def _algorithm(name: object) -> SignatureAlgorithm:
    algorithm = ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None:
        raise MalformedError("a signature algorithm is not accepted")
    return algorithm
