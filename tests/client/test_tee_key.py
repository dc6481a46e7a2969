"""TEE keys against joserfc, an independent implementation of JOSE, and against bad answers."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

from keybroker.client import KeyKind, TeeKeyPair
from keybroker.client.errors import ProtocolError, SealedSecretError, TeeKeyError

SECRET = b"the secret of the guest"
KEYS = {kind: TeeKeyPair.generate(kind) for kind in (*list(KeyKind)[:4],)}


def seal(jwk: dict[str, str], plaintext: bytes = SECRET, **header: Any) -> dict[str, str]:
    """Encrypt as a broker does, with joserfc; its compact form protects the whole header."""
    registry = jwe.JWERegistry(
        algorithms=["RSA-OAEP-256", "RSA1_5", "ECDH-ES+A256KW", "A256GCM", "A128GCM"]
    )
    key = RSAKey.import_key(jwk) if jwk["kty"] == "RSA" else ECKey.import_key(jwk)
    compact = jwe.encrypt_compact(
        {"alg": jwk["alg"], "enc": "A256GCM", **header}, plaintext, key, registry=registry
    )
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    return dict(zip(names, compact.split("."), strict=True))


@pytest.mark.parametrize("kind", KEYS)
def test_a_secret_sealed_by_another_implementation_opens(kind: KeyKind) -> None:
    key = KEYS[kind]
    assert key.open_response(json.dumps(seal(key.public_jwk())).encode()) == SECRET


@pytest.mark.parametrize("kind", KEYS)
def test_the_public_key_has_the_members_that_guests_send(kind: KeyKind) -> None:
    jwk = KEYS[kind].public_jwk()
    if kind.startswith("RSA"):
        assert list(jwk) == ["kty", "alg", "n", "e"]
        assert jwk["alg"] == "RSA-OAEP-256"
    else:
        assert list(jwk) == ["kty", "crv", "alg", "x", "y"]
        assert (jwk["crv"], jwk["alg"]) == (kind.value, "ECDH-ES+A256KW")


def test_coordinates_keep_their_leading_zero_bytes() -> None:
    for scalar in range(1, 2000):
        key = ec.derive_private_key(scalar, ec.SECP256R1())
        if key.public_key().public_numbers().x < 1 << 248:
            break
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert len(TeeKeyPair.from_pem(pem).public_jwk()["x"]) == 43


@pytest.mark.parametrize("kind", [KeyKind.P384, KeyKind.RSA2048])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_is_read_from_either_pem_form(kind: KeyKind, form: PrivateFormat) -> None:
    key = KEYS[kind]
    pem = key._key.private_bytes(Encoding.PEM, form, NoEncryption())
    assert TeeKeyPair.from_pem(pem).public_jwk() == key.public_jwk()
    assert TeeKeyPair.from_pem(key.to_pem().decode()).public_jwk() == key.public_jwk()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a key",
        "-----BEGIN PRIVATE KEY-----\nÄ\n-----END PRIVATE KEY-----",
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        ec.generate_private_key(ec.SECP256K1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        rsa.generate_private_key(65537, 1024).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
        ),
    ],
    ids=["empty", "text", "non-ascii", "ed25519", "secp256k1", "rsa1024", "encrypted"],
)
def test_other_keys_are_refused(pem: bytes) -> None:
    with pytest.raises(TeeKeyError):
        TeeKeyPair.from_pem(pem)


def test_rsa1_5_is_taken_only_on_request() -> None:
    pem = KEYS[KeyKind.RSA2048].to_pem()
    old = TeeKeyPair.from_pem(pem, allow_rsa1_5=True)
    assert old.public_jwk()["alg"] == "RSA1_5"
    sealed = json.dumps(seal(old.public_jwk())).encode()
    assert old.open_response(sealed) == SECRET
    with pytest.raises(SealedSecretError):
        TeeKeyPair.from_pem(pem).open_response(sealed)


def test_party_information_goes_into_the_key_derivation() -> None:
    key = KEYS[KeyKind.P256]
    sealed = seal(key.public_jwk(), apu="QWxpY2U", apv="Qm9i")
    assert key.open_response(json.dumps(sealed).encode()) == SECRET


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_a_changed_member_is_refused(kind: KeyKind, member: str) -> None:
    key = KEYS[kind]
    sealed = seal(key.public_jwk())
    text = sealed[member]
    place = len(text) // 2
    sealed[member] = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    with pytest.raises(ProtocolError):
        key.open_response(json.dumps(sealed).encode())


def test_another_key_does_not_open_it_and_says_no_more() -> None:
    sealed = json.dumps(seal(KEYS[KeyKind.P256].public_jwk())).encode()
    for other in (TeeKeyPair.generate(), KEYS[KeyKind.P521], KEYS[KeyKind.RSA2048]):
        with pytest.raises(SealedSecretError):
            other.open_response(sealed)


def test_a_short_tag_is_refused() -> None:
    key = KEYS[KeyKind.P256]
    sealed = seal(key.public_jwk())
    sealed["tag"] = sealed["tag"][:16]
    with pytest.raises(ProtocolError, match="wrong length"):
        key.open_response(json.dumps(sealed).encode())


@pytest.mark.parametrize("enc", ["A128GCM"])
def test_another_content_encryption_is_refused(enc: str) -> None:
    key = KEYS[KeyKind.RSA2048]
    with pytest.raises(SealedSecretError):
        key.open_response(json.dumps(seal(key.public_jwk(), enc=enc)).encode())


def _with_header(sealed: dict[str, str], **changes: Any) -> bytes:
    header = json.loads(base64.urlsafe_b64decode(sealed["protected"] + "=="))
    header.update(changes)
    protected = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return json.dumps({**sealed, "protected": protected}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"crit": ["exp"]},
        {"zip": "DEF"},
        {"epk": None},
        {"epk": {"kty": "OKP", "crv": "X25519", "x": "AA"}},
        {"epk": {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}},
        {"epk": {"kty": "EC", "crv": "P-256", "x": 1, "y": "AA"}},
        {"epk": {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}},
        {"apu": 5},
        {"alg": ["ECDH-ES+A256KW"]},
        {"enc": None},
    ],
    ids=str,
)
def test_odd_headers_are_refused(changes: dict[str, Any]) -> None:
    key = KEYS[KeyKind.P256]
    with pytest.raises(ProtocolError):
        key.open_response(_with_header(seal(key.public_jwk()), **changes))


def test_the_header_member_outside_protected_is_not_looked_at() -> None:
    key = KEYS[KeyKind.P256]
    sealed = seal(key.public_jwk())
    with_header = {**sealed, "header": {"alg": "none", "enc": "none"}}
    assert key.open_response(json.dumps(with_header).encode()) == SECRET


def test_the_private_key_is_not_in_the_repr() -> None:
    for key in KEYS.values():
        assert "Private" not in repr(key)
        assert str(key) == repr(key) == "TeeKeyPair(allow_rsa1_5=False)"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([KeyKind.P256, KeyKind.RSA2048]),
    st.dictionaries(
        st.sampled_from(["protected", "encrypted_key", "iv", "ciphertext", "tag", "aad"]),
        json_values,
    ),
)
def test_no_answer_raises_anything_but_a_protocol_error(
    kind: KeyKind, changes: dict[str, Any]
) -> None:
    key = KEYS[kind]
    sealed = {**seal(key.public_jwk()), **changes}
    try:
        key.open_response(json.dumps(sealed).encode())
    except ProtocolError:
        return
    assert all(sealed.get(name) == changes[name] for name in changes)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "enc", "epk", "apu", "apv"]), json_values))
def test_no_header_raises_anything_but_a_protocol_error(changes: dict[str, Any]) -> None:
    key = KEYS[KeyKind.P256]
    try:
        key.open_response(_with_header(seal(key.public_jwk()), **changes))
    except ProtocolError:
        pass


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        KEYS[KeyKind.P256].open_response(raw)
