"""Seal a secret to the key in a TEE: JWE, flattened JSON serialisation, A256GCM.

Everything a guest needs stands in the protected header, the ephemeral key too: guests look nowhere
else. And its bytes are not free: guests parse the header and serialise it again to get the
additional data of the cipher, so it is compact JSON with ``alg`` and ``enc`` first and the members
of ``epk`` in alphabetical order, as their library writes them.

Specification: RFC 7516, sections 5.1 and 7.2.2; RFC 7518, sections 4.2, 4.3, 4.6 and 5.3.
"""

import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keybroker.model.errors import JweError
from keybroker.release.tee_key import EcTeeKey, KeyManagement, RsaTeeKey, TeePublicKey
from keybroker.tokens.base64url import encode

#: Content encryption key: AES-256.
_CEK_BYTES = 32

#: Initialisation vector of AES-GCM (RFC 7518, section 5.3).
_IV_BYTES = 12

#: Authentication tag of AES-GCM, at the end of what the cipher returns.
_TAG_BYTES = 16

#: Concat KDF input beside the shared secret, each part preceded by its length in 32 bits, big
#: endian: AlgorithmID; PartyUInfo and PartyVInfo, empty; SuppPubInfo, the key's bits (RFC 7518,
#: section 4.6.2). For key wrapping the AlgorithmID is ``alg``.
_OTHER_INFO = b"".join(
    (
        len(KeyManagement.ECDH_ES_A256KW).to_bytes(4),
        KeyManagement.ECDH_ES_A256KW.encode("ascii"),
        (0).to_bytes(4),
        (0).to_bytes(4),
        (8 * _CEK_BYTES).to_bytes(4),
    )
)

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_PKCS1V15 = padding.PKCS1v15()

#: The protected headers of RSA are always the same.
_RSA_PROTECTED = {
    alg: encode(b'{"alg":"%s","enc":"A256GCM"}' % alg.encode("ascii"))
    for alg in (KeyManagement.RSA_OAEP_256, KeyManagement.RSA1_5)
}


def seal_to_tee(key: TeePublicKey, plaintext: bytes) -> bytes:
    """Encrypt a secret so that only the TEE that holds the private key can read it.

    Costs CPU only: some 80 µs for P-256 and a kilobyte; P-384, P-521 and secrets of megabytes
    belong on the workbench.

    Args:
        key: from :func:`~keybroker.release.tee_key.parse_tee_key`.
        plaintext: the secret, of any length.

    Returns:
        The JWE as UTF-8 JSON: ``protected``, ``encrypted_key``, ``iv``, ``ciphertext``, ``tag``.

    Raises:
        JweError: the cipher refuses the key or the length.
    """
    cek, iv = os.urandom(_CEK_BYTES), os.urandom(_IV_BYTES)
    try:
        if isinstance(key, EcTeeKey):
            protected, encrypted_key = _agree(key, cek)
        else:
            protected, encrypted_key = _RSA_PROTECTED[key.alg], _encrypt_rsa(key, cek)
        sealed = memoryview(AESGCM(cek).encrypt(iv, plaintext, protected))
    except (ValueError, OverflowError) as error:
        # The exception's text names the check that failed, never a key.
        raise JweError(f"sealing failed: {error}") from None
    # Base64url needs no escaping in JSON.
    return b"".join(
        (
            b'{"protected":"',
            protected,
            b'","encrypted_key":"',
            encode(encrypted_key),
            b'","iv":"',
            encode(iv),
            b'","ciphertext":"',
            encode(sealed[:-_TAG_BYTES]),
            b'","tag":"',
            encode(sealed[-_TAG_BYTES:]),
            b'"}',
        )
    )


def _agree(key: EcTeeKey, cek: bytes) -> tuple[bytes, bytes]:
    """Wrap the content key under a key agreed with the TEE; return header and wrapped key."""
    ephemeral = ec.generate_private_key(key.key.curve)
    shared_secret = ephemeral.exchange(ec.ECDH(), key.key)
    wrapping_key = ConcatKDFHash(hashes.SHA256(), _CEK_BYTES, _OTHER_INFO).derive(shared_secret)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    size = len(point) // 2
    protected = encode(
        b'{"alg":"ECDH-ES+A256KW","enc":"A256GCM",'
        b'"epk":{"crv":"%s","kty":"EC","x":"%s","y":"%s"}}'
        % (key.crv.encode("ascii"), encode(point[1 : 1 + size]), encode(point[1 + size :]))
    )
    return protected, aes_key_wrap(wrapping_key, cek)


def _encrypt_rsa(key: RsaTeeKey, cek: bytes) -> bytes:
    return key.key.encrypt(cek, _OAEP if key.alg is KeyManagement.RSA_OAEP_256 else _PKCS1V15)
