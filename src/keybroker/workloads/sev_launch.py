"""Launching a guest under SEV: the transport keys, the launch measurement, the launch secret.

The broker is the *guest owner* of the SEV API. It agrees on a secret with the platform's firmware,
of which the host in between learns nothing::

    z      = ECDH(own key, PDH)                                   48 bytes, big-endian
    master = KDF(z,      "sev-master-secret", nonce)
    KEK    = KDF(master, "sev-kek"),  KIK = KDF(master, "sev-kik")
    wrap   = AES-128-CTR(KEK, iv, TEK ‖ TIK),  wrap MAC = HMAC(KIK, wrap)
    policy MAC = HMAC(TIK, policy)

TEK and TIK, the transport keys, are random. The firmware proves under the TIK what it launched, and
takes a secret into the guest's memory that comes under both. HMAC is with SHA-256; all integers are
little-endian.

Specification: AMD 55766, Secure Encrypted Virtualization API, revision 3.24, sections 2.2 (keys),
6.2 (LAUNCH_START), 6.5 (LAUNCH_MEASURE) and 6.6 (LAUNCH_SECRET).
"""

import hmac
import os
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keybroker.model.errors import EvidenceError
from keybroker.workloads.sev_policy import SevPolicy

KEY_BYTES: Final = 16
_IV_BYTES: Final = 16
_NONCE_BYTES: Final = 16

#: First byte of what a MAC covers tells the MACs apart.
_MEASUREMENT: Final = b"\x04"
_SECRET: Final = b"\x01"

#: Size of a launch secret before encryption: guests read a buffer of this size, zero-padded.
SECRET_BYTES: Final = 512

#: Bit 0 would say that the secret is compressed.
_NO_FLAGS: Final = 0

_P384_BYTES = 48
_COORDINATE_BYTES = 72
_CERTIFICATE_VERSION = 1
_PDH, _ECDH_SHA256, _P384, _NO_SIGNATURE = 0x1003, 3, 2, 0x1000
_PUBLIC_KEY_BYTES = 1028
_SIGNATURE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Build:
    """Version of a platform's SEV firmware."""

    major: int
    minor: int
    build: int

    def encode(self) -> bytes:
        """Return the three bytes that the measurement covers."""
        return bytes((self.major, self.minor, self.build))


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """TEK (encryption) and TIK (integrity), 16 bytes each."""

    tek: bytes = field(repr=False)
    tik: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "TransportKeys":
        """Make new random keys."""
        return cls(os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class SessionBlock:
    """What LAUNCH_START is given: the wrapped transport keys and the authenticated policy."""

    nonce: bytes
    wrap_tk: bytes
    wrap_iv: bytes
    wrap_mac: bytes
    policy_mac: bytes


@dataclass(frozen=True, slots=True)
class LaunchStart:
    """Everything that a platform needs to begin a launch.

    Attributes:
        certificate: the broker's Diffie-Hellman certificate, 2084 bytes, unsigned.
    """

    policy: SevPolicy
    certificate: bytes = field(repr=False)
    session: SessionBlock = field(repr=False)


@dataclass(frozen=True, slots=True)
class LaunchMeasurement:
    """What the firmware answers to LAUNCH_MEASURE. Parsed, not trusted.

    Attributes:
        measure: HMAC under the TIK, 32 bytes.
        nonce: of the firmware, 16 bytes.
    """

    measure: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class LaunchSecret:
    """The packet of LAUNCH_SECRET."""

    flags: int
    iv: bytes
    mac: bytes
    ciphertext: bytes


def derive_key(key: bytes, label: str, context: bytes = b"") -> bytes:
    """Derive 16 bytes.

    Specification: NIST SP 800-108, section 5.1 (counter mode, HMAC-SHA-256), with counter and
    length little-endian as in AMD 55766, section 2.2.
    """
    length = (KEY_BYTES * 8).to_bytes(4, "little")
    counter = (1).to_bytes(4, "little")
    block = hmac.digest(key, counter + label.encode("ascii") + b"\0" + context + length, "sha256")
    return block[:KEY_BYTES]


def _aes_128_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def seal_transport_keys(
    keys: TransportKeys, policy: SevPolicy, *, shared_secret: bytes, nonce: bytes, iv: bytes
) -> SessionBlock:
    """Wrap the transport keys for the platform that shares a secret.

    Args:
        shared_secret: result of ECDH.
        nonce, iv: 16 random bytes each.
    """
    master = derive_key(shared_secret, "sev-master-secret", nonce)
    wrapped = _aes_128_ctr(derive_key(master, "sev-kek"), iv, keys.tek + keys.tik)
    return SessionBlock(
        nonce=nonce,
        wrap_tk=wrapped,
        wrap_iv=iv,
        wrap_mac=hmac.digest(derive_key(master, "sev-kik"), wrapped, "sha256"),
        policy_mac=hmac.digest(keys.tik, policy.encode(), "sha256"),
    )


def issue_launch_start(
    platform_key: ec.EllipticCurvePublicKey, policy: SevPolicy
) -> tuple[LaunchStart, TransportKeys]:
    """Open a secure channel to a platform's firmware.

    Args:
        platform_key: the verified PDH.
    """
    own_key = ec.generate_private_key(ec.SECP384R1())
    keys = TransportKeys.generate()
    session = seal_transport_keys(
        keys,
        policy,
        shared_secret=own_key.exchange(ec.ECDH(), platform_key),
        nonce=os.urandom(_NONCE_BYTES),
        iv=os.urandom(_IV_BYTES),
    )
    certificate = encode_diffie_hellman_certificate(own_key.public_key())
    return LaunchStart(policy, certificate, session), keys


def encode_diffie_hellman_certificate(key: ec.EllipticCurvePublicKey) -> bytes:
    """Put a P-384 key into an unsigned PDH certificate: 2084 bytes.

    Specification: AMD 55766, appendix C.1.
    """
    point = key.public_numbers()
    public_key = _P384.to_bytes(4, "little") + b"".join(
        number.to_bytes(_P384_BYTES, "little").ljust(_COORDINATE_BYTES, b"\0")
        for number in (point.x, point.y)
    )
    unsigned = _NO_SIGNATURE.to_bytes(4, "little") + bytes(4 + _SIGNATURE_BYTES)
    return (
        _CERTIFICATE_VERSION.to_bytes(4, "little")
        + bytes(4)
        + _PDH.to_bytes(4, "little")
        + _ECDH_SHA256.to_bytes(4, "little")
        + public_key.ljust(_PUBLIC_KEY_BYTES, b"\0")
        + unsigned
        + unsigned
    )


def measurement_mac(
    tik: bytes, build: Build, policy: SevPolicy, digest: bytes, nonce: bytes
) -> bytes:
    """Compute what the firmware must answer for a launch digest: 32 bytes.

    Specification: AMD 55766, section 6.5.
    """
    covered = _MEASUREMENT + build.encode() + policy.encode() + digest + nonce
    return hmac.digest(tik, covered, "sha256")


def verify_measurement(
    keys: TransportKeys,
    build: Build,
    policy: SevPolicy,
    digest: bytes,
    measurement: LaunchMeasurement,
) -> LaunchMeasurement:
    """Check that the firmware launched exactly what has a digest.

    Args:
        digest: the registered launch digest, 32 bytes.

    Raises:
        EvidenceError: it launched something else, under another policy or firmware, or the
            measurement is of another session.
    """
    expected = measurement_mac(keys.tik, build, policy, digest, measurement.nonce)
    if not hmac.compare_digest(expected, measurement.measure):
        raise EvidenceError("the launch measurement is not that of the registered digest")
    return measurement


def seal_launch_secret(
    keys: TransportKeys, secret: bytes, measure: bytes, *, iv: bytes | None = None
) -> LaunchSecret:
    """Encrypt a secret to the launch that was measured.

    Args:
        secret: at most :data:`SECRET_BYTES`; padded with zeros to that.
        measure: the measurement that verified, which the MAC covers.
        iv: 16 bytes that were never used with these keys; None: random.

    Raises:
        ValueError: the secret is too long.

    Specification: AMD 55766, section 6.6.
    """
    if len(secret) > SECRET_BYTES:
        raise ValueError(f"a launch secret has at most {SECRET_BYTES} bytes")
    iv = os.urandom(_IV_BYTES) if iv is None else iv
    ciphertext = _aes_128_ctr(keys.tek, iv, secret.ljust(SECRET_BYTES, b"\0"))
    flags = _NO_FLAGS.to_bytes(4, "little")
    length = len(ciphertext).to_bytes(4, "little")
    mac = hmac.digest(
        keys.tik, _SECRET + flags + iv + length + length + ciphertext + measure, "sha256"
    )
    return LaunchSecret(flags=_NO_FLAGS, iv=iv, mac=mac, ciphertext=ciphertext)
