"""The bare cryptography of each operation: what no broker can do without, and nothing else.

Straight calls of ``cryptography`` (OpenSSL), timed by the process's CPU clock in the same run as
the broker. Counted is what has to be done anew for every operation; what may be remembered from
one operation to the next, such as a verified certificate chain or a verified token, is not. For TDX
it is one call of the library that verifies quotes, which remembers nothing.
"""

import hashlib
import os
import time
from collections.abc import Callable
from functools import partial

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from benchmarks.scripts import Operation, Scenario
from keybroker.client import KeyKind
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel

#: CPU seconds for which each is repeated.
_SECONDS = 0.4

_SECRET = bytes(32)
_SESSION = bytes(160)
_REPORT = bytes(0x2A0)
_CLAIMS = bytes(4000)
_TOKEN = bytes(8000)


def crypto_seconds(scenario: Scenario) -> float:
    """Return the CPU time of the bare cryptography of one operation, in seconds."""
    return _time(_STEPS[scenario.operation](scenario))


def _auth(_: Scenario) -> Callable[[], None]:
    """Draw a nonce, seal the session into its cookie."""
    key = AESGCM(AESGCM.generate_key(256))

    def step() -> None:
        os.urandom(32)
        key.encrypt(os.urandom(12), _SESSION, None)

    return step


def _handshake(scenario: Scenario) -> Callable[[], None]:
    """``auth``; then what ``attest`` must do.

    Open the cookie, take the TEE's key (the point must be on its curve), hash the runtime data,
    verify the evidence, sign the token, and encrypt the session's record at rest.
    """
    auth = _auth(scenario)
    session_key = AESGCM(AESGCM.generate_key(256))
    nonce = os.urandom(12)
    cookie = session_key.encrypt(nonce, _SESSION, None)
    signing_key = ec.generate_private_key(ec.SECP256R1())
    es256 = ec.ECDSA(hashes.SHA256())
    vcek = ec.generate_private_key(ec.SECP384R1())
    es384 = ec.ECDSA(hashes.SHA384())
    point = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    )
    at_rest = AESGCM(AESGCM.generate_key(256))
    verify_evidence: Callable[[], object] = int
    if scenario.tee is Tee.SNP:
        verify_evidence = partial(
            vcek.public_key().verify, vcek.sign(_REPORT, es384), _REPORT, es384
        )
    elif scenario.tee is Tee.TDX:
        verify_evidence = _verify_td_quote()

    def step() -> None:
        auth()
        session_key.decrypt(nonce, cookie, None)
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        hashlib.sha384(_SESSION).digest()
        verify_evidence()
        signing_key.sign(_CLAIMS, es256)
        data_key = os.urandom(32)
        AESGCM(data_key).encrypt(os.urandom(12), _CLAIMS, None)
        at_rest.encrypt(os.urandom(12), data_key, None)

    return step


def _verify_td_quote() -> Callable[[], object]:
    """One call of ``dcap_qvl.verify``, collateral prepared: the library verifies it all anew."""
    intel = SoftwareIntel()
    machine = intel.platform()
    quote = machine.td_quote()
    collateral = dcap_qvl.QuoteCollateralV3.from_json(
        intel.collateral(machine, "tdx").to_json().decode()
    )
    root = load_pem_x509_certificate(intel.root_pem).public_bytes(Encoding.DER)
    now = int(time.time())
    return lambda: dcap_qvl.verify_with_root_ca(quote, collateral, root, now)


def _resource(scenario: Scenario) -> Callable[[], None]:
    """Hash the token (or open the cookie), decrypt the secret, encrypt it to the TEE's key."""
    seal = _seal_rsa() if scenario.key is KeyKind.RSA2048 else _seal_ec()
    at_rest, data_key, nonce = AESGCM(bytes(32)), os.urandom(32), os.urandom(12)
    wrapped = at_rest.encrypt(nonce, data_key, None)
    stored = AESGCM(data_key).encrypt(nonce, _SECRET, None)

    def step() -> None:
        hashlib.sha256(_TOKEN).digest()
        AESGCM(at_rest.decrypt(nonce, wrapped, None)).decrypt(nonce, stored, None)
        seal()

    return step


def _seal_ec() -> Callable[[], None]:
    """ECDH-ES+A256KW on P-256 with A256GCM."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()

    def seal() -> None:
        shared = ec.generate_private_key(ec.SECP256R1()).exchange(ec.ECDH(), public)
        wrapping_key = ConcatKDFHash(hashes.SHA256(), 32, b"ECDH-ES+A256KW").derive(shared)
        content_key = os.urandom(32)
        aes_key_wrap(wrapping_key, content_key)
        AESGCM(content_key).encrypt(os.urandom(12), _SECRET, b"protected header")

    return seal


def _seal_rsa() -> Callable[[], None]:
    """RSA-OAEP-256 with 2048 bits and A256GCM."""
    public = rsa.generate_private_key(65537, 2048).public_key()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

    def seal() -> None:
        content_key = os.urandom(32)
        public.encrypt(content_key, oaep)
        AESGCM(content_key).encrypt(os.urandom(12), _SECRET, b"protected header")

    return seal


_STEPS: dict[Operation, Callable[[Scenario], Callable[[], None]]] = {
    Operation.AUTH: _auth,
    Operation.HANDSHAKE: _handshake,
    Operation.COOKIE: _resource,
    Operation.BEARER: _resource,
}


def _time(step: Callable[[], None]) -> float:
    for _ in range(20):
        step()
    repeats = 0
    began = time.process_time()
    while (elapsed := time.process_time() - began) < _SECONDS:
        for _ in range(10):
            step()
        repeats += 10
    return elapsed / repeats
