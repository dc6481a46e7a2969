"""The public key that lives in a TEE, as a guest presents it: the key that a secret is sealed to.

Parsing is apart from sealing, so that a key is parsed once a session and used for every secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keybroker.model.errors import JweError, MalformedError
from keybroker.tokens.jwk import parse_public_jwk


class KeyManagement(StrEnum):
    """How the content encryption key reaches the TEE: ``alg`` of RFC 7518, section 4.1."""

    ECDH_ES_A256KW = "ECDH-ES+A256KW"
    RSA_OAEP_256 = "RSA-OAEP-256"
    RSA1_5 = "RSA1_5"


@dataclass(frozen=True, slots=True)
class EcTeeKey:
    """An EC key, used with ECDH-ES+A256KW.

    Attributes:
        key: a point on the curve.
        crv: ``P-256``, ``P-384`` or ``P-521``.
    """

    key: ec.EllipticCurvePublicKey
    crv: str


@dataclass(frozen=True, slots=True)
class RsaTeeKey:
    """An RSA key of 2048 to 8192 bits, with the padding that its guest asked for."""

    key: rsa.RSAPublicKey
    alg: KeyManagement


TeePublicKey = EcTeeKey | RsaTeeKey


def parse_tee_key(jwk: Mapping[str, Any], *, allow_rsa1_5: bool = False) -> TeePublicKey:
    """Read a ``tee-pubkey``.

    Args:
        jwk: ``kty`` EC with ``alg`` ECDH-ES+A256KW, or RSA with RSA-OAEP-256.
        allow_rsa1_5: take ``alg`` RSA1_5 too, for old guests. Its padding lets whoever can make a
            guest decrypt chosen messages learn the content key bit by bit (Bleichenbacher 1998).

    Raises:
        JweError: another ``alg`` or ``kty``, a point that is not on its curve, or an RSA key that
            is too small, too large or malformed.
    """
    alg = jwk.get("alg")
    try:
        key = parse_public_jwk(jwk)
    except MalformedError as error:
        raise JweError(error.diagnostics()) from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if alg != KeyManagement.ECDH_ES_A256KW:
            raise JweError("the alg of an EC tee-pubkey must be ECDH-ES+A256KW")
        return EcTeeKey(key, jwk["crv"])
    if isinstance(key, rsa.RSAPublicKey):
        if alg == KeyManagement.RSA_OAEP_256:
            return RsaTeeKey(key, KeyManagement.RSA_OAEP_256)
        if alg == KeyManagement.RSA1_5:
            if not allow_rsa1_5:
                raise JweError("RSA1_5 is not allowed by the configuration")
            return RsaTeeKey(key, KeyManagement.RSA1_5)
        raise JweError("the alg of an RSA tee-pubkey must be RSA-OAEP-256")
    raise JweError("the kty of a tee-pubkey must be EC or RSA")
