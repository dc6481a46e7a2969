"""Sealing to a TEE's key, opened by an independent JOSE implementation and as guests do it."""

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

from keybroker.model.errors import JweError
from keybroker.model.rcar import Response
from keybroker.model.strict_json import parse_struct
from keybroker.release.jwe import seal_to_tee
from keybroker.release.tee_key import RsaTeeKey, parse_tee_key
from keybroker.tokens.jwk import public_jwk

SECRET = b"a passphrase of no great length"

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
EC_KEYS = {crv: ec.generate_private_key(curve) for crv, curve in CURVES.items()}
RSA_KEYS = {bits: rsa.generate_private_key(65537, bits) for bits in (2048, 4096)}


def tee_jwk(key: Any, alg: str) -> dict[str, str]:
    return {**public_jwk(key.public_key()), "alg": alg}


EC_JWK = tee_jwk(EC_KEYS["P-256"], "ECDH-ES+A256KW")
RSA_JWK = tee_jwk(RSA_KEYS[2048], "RSA-OAEP-256")


def open_with_joserfc(sealed: bytes, key: Any, alg: str) -> bytes:
    kind = ECKey if isinstance(key, ec.EllipticCurvePrivateKey) else RSAKey
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    opened = jwe.decrypt_json(json.loads(sealed), kind.import_key(pem), algorithms=[alg, "A256GCM"])
    assert opened.plaintext is not None
    return opened.plaintext


def unb64(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("crv", CURVES)
@pytest.mark.parametrize("plaintext", [b"", SECRET, bytes(range(256)) * 150])
def test_joserfc_opens_what_is_sealed_to_an_ec_key(crv: str, plaintext: bytes):
    key = EC_KEYS[crv]
    sealed = seal_to_tee(parse_tee_key(tee_jwk(key, "ECDH-ES+A256KW")), plaintext)
    assert open_with_joserfc(sealed, key, "ECDH-ES+A256KW") == plaintext


@pytest.mark.parametrize("bits", RSA_KEYS)
def test_joserfc_opens_what_is_sealed_to_an_rsa_key(bits: int):
    key = RSA_KEYS[bits]
    sealed = seal_to_tee(parse_tee_key(tee_jwk(key, "RSA-OAEP-256")), SECRET)
    assert open_with_joserfc(sealed, key, "RSA-OAEP-256") == SECRET


def test_rsa1_5_is_sealed_to_where_the_configuration_allows_it():
    jwk = tee_jwk(RSA_KEYS[2048], "RSA1_5")
    sealed = seal_to_tee(parse_tee_key(jwk, allow_rsa1_5=True), SECRET)
    assert open_with_joserfc(sealed, RSA_KEYS[2048], "RSA1_5") == SECRET


def test_rsa1_5_is_refused_by_default():
    with pytest.raises(JweError, match="RSA1_5"):
        parse_tee_key(tee_jwk(RSA_KEYS[2048], "RSA1_5"))


@pytest.mark.parametrize("crv", CURVES)
def test_a_guest_that_knows_only_the_wire_format_opens_it(crv: str):
    """As guest-components does: one round of the KDF, and the header serialised anew as AAD."""
    key = EC_KEYS[crv]
    sealed = json.loads(seal_to_tee(parse_tee_key(tee_jwk(key, "ECDH-ES+A256KW")), SECRET))
    header = json.loads(unb64(sealed["protected"]))
    x, y = unb64(header["epk"]["x"]), unb64(header["epk"]["y"])
    size = (CURVES[crv].key_size + 7) // 8
    assert len(x) == len(y) == size
    epk = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[crv], b"\x04" + x + y)
    z = key.exchange(ec.ECDH(), epk)
    kek = hashlib.sha256(
        b"\0\0\0\x01" + z + b"\0\0\0\x0eECDH-ES+A256KW" + bytes(8) + b"\0\0\x01\0"
    ).digest()
    assert len(unb64(sealed["encrypted_key"])) == 40
    cek = aes_key_unwrap(kek, unb64(sealed["encrypted_key"]))
    # serde writes alg and enc, then the flattened map in alphabetical order, without spaces
    again = {"alg": header["alg"], "enc": header["enc"], "epk": dict(sorted(header["epk"].items()))}
    aad = base64.urlsafe_b64encode(json.dumps(again, separators=(",", ":")).encode()).rstrip(b"=")
    ciphertext = unb64(sealed["ciphertext"]) + unb64(sealed["tag"])
    assert AESGCM(cek).decrypt(unb64(sealed["iv"]), ciphertext, aad) == SECRET


def test_the_answer_is_the_response_of_the_protocol():
    response = parse_struct(seal_to_tee(parse_tee_key(EC_JWK), SECRET), Response)
    assert response.aad is None
    assert len(unb64(response.iv)) == 12
    assert len(unb64(response.tag)) == 16
    assert len(unb64(response.ciphertext)) == len(SECRET)


def test_two_sealings_share_nothing():
    key = parse_tee_key(EC_JWK)
    first, second = json.loads(seal_to_tee(key, SECRET)), json.loads(seal_to_tee(key, SECRET))
    assert all(first[member] != second[member] for member in first)


@pytest.mark.parametrize("member", ["protected", "iv", "ciphertext", "tag", "encrypted_key"])
def test_a_change_of_any_part_is_noticed(member: str):
    sealed = json.loads(seal_to_tee(parse_tee_key(RSA_JWK), SECRET))
    changed = bytearray(unb64(sealed[member]))
    changed[len(changed) // 2] ^= 1
    sealed[member] = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
    with pytest.raises(Exception):  # noqa: B017 - joserfc has one class a failure
        open_with_joserfc(json.dumps(sealed).encode(), RSA_KEYS[2048], "RSA-OAEP-256")


def test_another_key_does_not_open_it():
    sealed = seal_to_tee(parse_tee_key(EC_JWK), SECRET)
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises((InvalidTag, Exception)):
        open_with_joserfc(sealed, other, "ECDH-ES+A256KW")


def _flip(jwk: dict[str, str], member: str) -> dict[str, str]:
    raw = bytearray(unb64(jwk[member]))
    raw[-1] ^= 1
    return {**jwk, member: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}


def _small_rsa(bits: int) -> dict[str, str]:
    return tee_jwk(rsa.generate_private_key(65537, bits), "RSA-OAEP-256")


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA", "alg": "A256KW"},
        {**EC_JWK, "alg": "ECDH-ES"},
        {**EC_JWK, "alg": "ECDH-ES+A128KW"},
        {**EC_JWK, "alg": "RSA-OAEP-256"},
        {**EC_JWK, "alg": None},
        {**EC_JWK, "alg": ["ECDH-ES+A256KW"]},
        {k: v for k, v in EC_JWK.items() if k != "alg"},
        {**EC_JWK, "crv": "P-384"},
        {**EC_JWK, "crv": "secp256k1"},
        {**EC_JWK, "crv": ["P-256"]},
        _flip(EC_JWK, "y"),
        {**EC_JWK, "x": EC_JWK["x"] + "="},
        {**EC_JWK, "x": EC_JWK["x"][:-1]},
        {**EC_JWK, "x": _b64(b"\0" + unb64(EC_JWK["x"]))},
        {**EC_JWK, "x": 7},
        {**EC_JWK, "x": _b64(bytes(32)), "y": _b64(bytes(32))},
        {**EC_JWK, "d": EC_JWK["x"]},
        {**RSA_JWK, "alg": "RSA-OAEP"},
        {**RSA_JWK, "alg": "RSA-OAEP-512"},
        {**RSA_JWK, "alg": "ECDH-ES+A256KW"},
        {**RSA_JWK, "e": _b64(b"\x01")},
        {**RSA_JWK, "e": _b64(b"\x01\x00\x00")},
        {**RSA_JWK, "e": _b64(b"\x01" + bytes(7) + b"\x01")},
        {**RSA_JWK, "e": ""},
        {**RSA_JWK, "n": _b64(unb64(RSA_JWK["n"])[:-1])},
        {**RSA_JWK, "n": _b64(unb64(RSA_JWK["n"])[:-1] + b"\0")},
        {**RSA_JWK, "n": _b64(b"\xff" * 1025)},
        {**RSA_JWK, "n": "+" + RSA_JWK["n"][1:]},
        _small_rsa(1024),
        {"kty": "OKP", "crv": "X25519", "x": _b64(bytes(32)), "alg": "ECDH-ES+A256KW"},
        {
            **public_jwk(ed25519.Ed25519PrivateKey.generate().public_key()),
            "alg": "ECDH-ES+A256KW",
        },
    ],
)
def test_a_key_that_cannot_be_sealed_to_is_refused(jwk: dict[str, Any]):
    with pytest.raises(JweError) as refused:
        parse_tee_key(jwk)
    assert refused.value.status == 400
    assert refused.value.detail == JweError.default_detail


def test_an_rsa_modulus_with_a_sign_octet_is_the_same_key():
    key = parse_tee_key({**RSA_JWK, "n": _b64(b"\0" + unb64(RSA_JWK["n"]))})
    assert isinstance(key, RsaTeeKey)
    assert key.key == RSA_KEYS[2048].public_key()


_values = st.none() | st.booleans() | st.integers() | st.text(max_size=80) | st.lists(st.text())


@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "alg", "x", "y", "n", "e", "d"]) | st.text(max_size=4),
        st.sampled_from(["EC", "RSA", "OKP", "P-256", "ECDH-ES+A256KW", "RSA-OAEP-256", "AQAB"])
        | _values,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_object_is_a_key_or_refused(jwk: dict[str, Any]):
    try:
        parse_tee_key(jwk)
    except JweError:
        return


@given(
    st.sampled_from([EC_JWK, RSA_JWK]), st.sampled_from(["kty", "crv", "x", "y", "n", "e"]), _values
)
@settings(max_examples=200, deadline=None)
def test_any_change_of_a_member_is_a_key_or_refused(jwk: dict[str, str], member: str, value: Any):
    try:
        key = parse_tee_key({**jwk, member: value})
    except JweError:
        return
    seal_to_tee(key, SECRET)


@given(st.binary(max_size=2000))
@settings(max_examples=50, deadline=None)
def test_any_secret_comes_back(plaintext: bytes):
    sealed = seal_to_tee(parse_tee_key(EC_JWK), plaintext)
    assert open_with_joserfc(sealed, EC_KEYS["P-256"], "ECDH-ES+A256KW") == plaintext
