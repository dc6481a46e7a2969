"""A software AMD SEV platform: its certificate chain, and the firmware's side of a launch.

The platform has its own root (ARK), which a broker trusts only if its configuration names the file
that :meth:`SoftwareSevPlatform.root` gives. The firmware does what real firmware does with what the
guest owner sends, and refuses what real firmware refuses::

    platform = SoftwareSevPlatform.create()
    Path("ark.cert").write_bytes(platform.root())
    launch = platform.launch_start(start)               # unwraps the transport keys
    launch.update_data(kernel)
    measurement = launch.measure()
    passphrase = launch.secret(packet)

Specification: AMD 55766, Secure Encrypted Virtualization API, revision 3.24.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: AMD's own keys have 2048 bits (Naples) or 4096, which take seconds to make.
DEFAULT_RSA_BITS: Final = 2048

ARK, ASK, UNUSED, OCA, PEK, PDH, CEK = 0x0000, 0x0013, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004
_RSA_SHA256, _ECDSA_SHA256, _ECDH_SHA256, _RSA_SHA384 = 0x0001, 0x0002, 0x0003, 0x0101

_P384 = 2
_KEY_BYTES = 1028
_SIGNATURE_BYTES = 512
_PART_BYTES = 72
_X_AT = 20
_CERTIFICATE_BYTES = 2084


class FirmwareError(Exception):
    """The firmware refuses a command."""


@dataclass(frozen=True, slots=True)
class SevChainBytes:
    """The six certificates of a platform in AMD's binary forms."""

    pdh: bytes
    pek: bytes
    oca: bytes
    cek: bytes
    ask: bytes
    ark: bytes

    def as_json(self) -> dict[str, Any]:
        """Return the chain as clients send it."""
        return {
            "ca": {"ask": list(self.ask), "ark": list(self.ark)},
            "sev": {name: list(getattr(self, name)) for name in ("pdh", "pek", "oca", "cek")},
        }


class SoftwareSevPlatform:
    """One host: a chip under a root of its own, and the keys that its firmware made."""

    def __init__(
        self,
        chain: SevChainBytes,
        diffie_hellman: ec.EllipticCurvePrivateKey,
        *,
        api: tuple[int, int],
        build: int,
    ) -> None:
        self.chain = chain
        self.api = api
        self.build = build
        self._diffie_hellman = diffie_hellman

    @classmethod
    def create(
        cls,
        *,
        rsa_bits: int = DEFAULT_RSA_BITS,
        api: tuple[int, int] = (1, 55),
        build: int = 21,
        amd: "SoftwareAmd | None" = None,
    ) -> "SoftwareSevPlatform":
        """Make a platform with new keys.

        Args:
            rsa_bits: of ARK and ASK, 2048 or 4096.
            api: version of the firmware's API; ``build`` of its build.
            amd: who certifies the chip; None: an authority of its own.
        """
        amd = amd or SoftwareAmd.create(rsa_bits)
        keys = {usage: ec.generate_private_key(ec.SECP384R1()) for usage in (OCA, PEK, PDH, CEK)}
        bodies = {usage: certificate_body(usage, key.public_key()) for usage, key in keys.items()}
        chain = SevChainBytes(
            pdh=signed_certificate(bodies[PDH], (PEK, keys[PEK])),
            pek=signed_certificate(bodies[PEK], (OCA, keys[OCA]), (CEK, keys[CEK])),
            oca=signed_certificate(bodies[OCA], (OCA, keys[OCA])),
            cek=amd.certify_chip(bodies[CEK]),
            ask=amd.ask,
            ark=amd.ark,
        )
        return cls(chain, keys[PDH], api=api, build=build)

    def root(self) -> bytes:
        """Return the ARK: what a broker has to be told to trust."""
        return self.chain.ark

    def build_json(self) -> dict[str, Any]:
        """Return the firmware's version as clients send it."""
        major, minor = self.api
        return {"version": {"major": major, "minor": minor}, "build": self.build}

    def launch_start(self, start: dict[str, Any]) -> "SoftwareLaunch":
        """Begin a launch: the command LAUNCH_START.

        Args:
            start: ``start`` of a challenge: policy, certificate and session block, as JSON.

        Raises:
            FirmwareError: a MAC does not verify, or the firmware is older than the policy demands.
        """
        session = {name: bytes(value) for name, value in start["session"].items()}
        shared = self._diffie_hellman.exchange(ec.ECDH(), read_public_key(bytes(start["cert"])))
        master = _derive(shared, b"sev-master-secret", session["nonce"])
        wrapped = session["wrap_tk"]
        _check(_derive(master, b"sev-kik"), wrapped, session["wrap_mac"], "the wrapped keys")
        keys = _aes_128_ctr(_derive(master, b"sev-kek"), session["wrap_iv"], wrapped)
        tek, tik = keys[:16], keys[16:]
        policy = encode_policy(start["policy"])
        _check(tik, policy, session["policy_mac"], "the policy")
        if self.api < (policy[2], policy[3]):
            raise FirmwareError("the policy demands newer firmware")
        return SoftwareLaunch((*self.api, self.build), policy, tek, tik)


class SoftwareLaunch:
    """A guest that is being launched."""

    def __init__(
        self, version: tuple[int, int, int], policy: bytes, tek: bytes, tik: bytes
    ) -> None:
        self._version = version
        self._policy = policy
        self._tek = tek
        self._tik = tik
        self._digest = hashlib.sha256()
        self._measure: bytes | None = None

    def update_data(self, memory: bytes) -> None:
        """Put memory into the guest and into its digest: the command LAUNCH_UPDATE_DATA.

        Raises:
            FirmwareError: the launch was measured already.
        """
        self._check_not_measured()
        self._digest.update(memory)

    @property
    def digest(self) -> bytes:
        """The launch digest so far: what the guest owner registers, 32 bytes."""
        return self._digest.digest()

    def measure(self) -> dict[str, Any]:
        """Prove what was launched, as clients send it: the command LAUNCH_MEASURE.

        Raises:
            FirmwareError: the launch was measured already.
        """
        self._check_not_measured()
        nonce = secrets.token_bytes(16)
        covered = b"\x04" + bytes(self._version) + self._policy + self.digest + nonce
        self._measure = hmac.digest(self._tik, covered, "sha256")
        return {"measure": list(self._measure), "mnonce": list(nonce)}

    def _check_not_measured(self) -> None:
        if self._measure is not None:
            raise FirmwareError("the launch was measured already")

    def secret(self, packet: dict[str, Any]) -> bytes:
        """Unwrap a secret into the guest: the command LAUNCH_SECRET.

        Returns:
            The secret as the guest finds it, padded with zeros.

        Raises:
            FirmwareError: nothing was measured yet, the MAC does not verify, or the length is none
                that the firmware takes.
        """
        if self._measure is None:
            raise FirmwareError("the launch was not measured")
        header = packet["header"]
        iv, mac, ciphertext = bytes(header["iv"]), bytes(header["mac"]), bytes(packet["ciphertext"])
        if not ciphertext or len(ciphertext) % 16 or len(ciphertext) > 16 * 1024:
            raise FirmwareError("the length of the secret")
        flags = int(header["flags"]["bits"]).to_bytes(4, "little")
        length = len(ciphertext).to_bytes(4, "little")
        covered = b"\x01" + flags + iv + length + length + ciphertext + self._measure
        _check(self._tik, covered, mac, "the secret")
        return _aes_128_ctr(self._tek, iv, ciphertext)


@dataclass(frozen=True, slots=True)
class SoftwareAmd:
    """AMD, who certifies chips: the keys and certificates of ARK and ASK."""

    ark: bytes
    ask: bytes
    ask_key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def create(cls, rsa_bits: int = DEFAULT_RSA_BITS) -> "SoftwareAmd":
        """Make an authority with new keys of 2048 or 4096 bits."""
        ark_key = rsa.generate_private_key(65537, rsa_bits)
        ask_key = rsa.generate_private_key(65537, rsa_bits)
        ark_id, ask_id = os.urandom(16), os.urandom(16)
        return cls(
            ark=_amd_certificate(ARK, ark_key, ark_id, ark_key, ark_id),
            ask=_amd_certificate(ASK, ask_key, ask_id, ark_key, ark_id),
            ask_key=ask_key,
        )

    def certify_chip(self, body: bytes) -> bytes:
        """Sign a CEK."""
        algorithm = _RSA_SHA384 if self.ask_key.key_size == 4096 else _RSA_SHA256
        return body + _slot(ASK, algorithm, _sign_pss(self.ask_key, body)) + _slot()


def certificate_body(
    usage: int, key: ec.EllipticCurvePublicKey, *, api: tuple[int, int] = (1, 55)
) -> bytes:
    """Make the part of a platform certificate that is signed: 1044 bytes."""
    point = key.public_numbers()
    algorithm = _ECDH_SHA256 if usage == PDH else _ECDSA_SHA256
    public_key = _u32(_P384) + b"".join(
        number.to_bytes(_PART_BYTES, "little") for number in (point.x, point.y)
    )
    head = _u32(1) + bytes((*api, 0, 0)) + _u32(usage) + _u32(algorithm)
    return head + public_key.ljust(_KEY_BYTES, b"\0")


def signed_certificate(body: bytes, *signers: tuple[int, ec.EllipticCurvePrivateKey]) -> bytes:
    """Sign a platform certificate by one or two keys, each with its usage."""
    slots = [
        _slot(
            usage,
            _ECDSA_SHA256,
            b"".join(
                number.to_bytes(_PART_BYTES, "little")
                for number in decode_dss_signature(key.sign(body, ec.ECDSA(hashes.SHA256())))
            ),
        )
        for usage, key in signers
    ]
    return body + b"".join((*slots, _slot(), _slot())[:2])


def read_public_key(certificate: bytes) -> ec.EllipticCurvePublicKey:
    """Read the P-384 key of a platform certificate.

    Raises:
        FirmwareError: it holds none.
    """
    if len(certificate) != _CERTIFICATE_BYTES:
        raise FirmwareError("the size of the certificate")
    x, y = (
        int.from_bytes(certificate[at : at + _PART_BYTES], "little")
        for at in (_X_AT, _X_AT + _PART_BYTES)
    )
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    except ValueError:
        raise FirmwareError("the key of the certificate") from None


def encode_policy(policy: dict[str, Any]) -> bytes:
    """Return the four bytes of a guest policy that came as JSON."""
    flags = int(policy["flags"]["bits"]).to_bytes(2, "little")
    return flags + bytes((policy["minfw"]["major"], policy["minfw"]["minor"]))


def _amd_certificate(
    usage: int, key: rsa.RSAPrivateKey, key_id: bytes, issuer: rsa.RSAPrivateKey, issuer_id: bytes
) -> bytes:
    numbers, size = key.public_key().public_numbers(), key.key_size // 8
    body = b"".join(
        (
            _u32(1) + key_id + issuer_id + _u32(usage) + bytes(16),
            _u32(key.key_size) * 2,
            numbers.e.to_bytes(size, "little"),
            numbers.n.to_bytes(size, "little"),
        )
    )
    return body + _sign_pss(issuer, body)


def _sign_pss(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    hash_ = hashes.SHA384() if key.key_size == 4096 else hashes.SHA256()
    signature = key.sign(data, padding.PSS(padding.MGF1(hash_), hash_.digest_size), hash_)
    return signature[::-1]


def _slot(usage: int = UNUSED, algorithm: int = 0, signature: bytes = b"") -> bytes:
    return _u32(usage) + _u32(algorithm) + signature.ljust(_SIGNATURE_BYTES, b"\0")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _derive(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    return hmac.digest(key, _u32(1) + label + b"\0" + context + _u32(128), "sha256")[:16]


def _aes_128_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def _check(key: bytes, data: bytes, mac: bytes, what: str) -> None:
    if not hmac.compare_digest(hmac.digest(key, data, "sha256"), mac):
        raise FirmwareError(f"the MAC of {what}")
