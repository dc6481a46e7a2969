"""Which attestation tokens count, and which forgeries do not."""

import asyncio
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey
from token_pki import (
    Trust,
    certify,
    claims,
    header_with_jwk,
    key_for,
    pem,
    private_pem,
    public_pem,
    segment,
    token,
    write,
    x5c,
)

from keybroker.model.errors import ConfigError, TokenVerifierError
from keybroker.tokens import base64url
from keybroker.tokens.algorithms import ALGORITHMS
from keybroker.tokens.claims import CLOCK_LEEWAY_SECONDS
from keybroker.tokens.jwk import public_jwk
from keybroker.tokens.jws import MAX_TOKEN_CHARS
from keybroker.tokens.signer import TokenSigner
from keybroker.tokens.verifier import TokenVerifier

SIGNER = TokenSigner(ec.generate_private_key(ec.SECP256R1()))
ROOT = certify("root")
LEAF = certify("leaf", ROOT, ca=False)


def own_verifier() -> TokenVerifier:
    return TokenVerifier(Trust(), SIGNER)


def chain_verifier(path: Path, *trusted: Any) -> TokenVerifier:
    return TokenVerifier(Trust(trusted_certs_paths=[write(path / "trusted.pem", pem(*trusted))]))


def insecure_verifier() -> TokenVerifier:
    return TokenVerifier(Trust(insecure_header_jwk=True))


def jwks_verifier(path: Path, *jwks: dict[str, Any]) -> TokenVerifier:
    return TokenVerifier(
        Trust(
            trusted_jwk_sets=[write(path / "keys.jwks", json.dumps({"keys": list(jwks)}).encode())]
        )
    )


async def refused(verifier: TokenVerifier, forged: str) -> str:
    with pytest.raises(TokenVerifierError) as error:
        await verifier.verify(forged)
    assert error.value.status == 401
    assert error.value.detail == TokenVerifierError.default_detail
    return error.value.diagnostics()


# -- whom is trusted ------------------------------------------------------------------------------


def test_a_verifier_that_could_trust_nobody_is_a_configuration_error():
    with pytest.raises(ConfigError, match="no trusted verification materials"):
        TokenVerifier(Trust())


async def test_tokens_of_the_own_signer_are_trusted_without_configuration():
    made = claims(submods={"cpu0": {"ear.status": "affirming"}})
    verified = await own_verifier().verify(SIGNER.sign(made))
    assert verified.claims == made
    assert verified.expires_at == made["exp"]


async def test_tokens_of_the_own_key_under_an_older_header_are_trusted():
    older = TokenSigner(SIGNER._key, cert_url="https://keys.example/chain.pem")
    await own_verifier().verify(older.sign(claims()))


async def test_the_own_key_id_on_another_key_is_not_trusted():
    key = ec.generate_private_key(ec.SECP256R1())
    header = {**header_with_jwk(key, kid=SIGNER.kid), "kid": SIGNER.kid}
    await refused(own_verifier(), token(key, header))


async def test_the_own_header_with_another_signature_is_not_trusted():
    key = ec.generate_private_key(ec.SECP256R1())
    header = base64url.decode(SIGNER.header_segment)
    assert "signature" in await refused(own_verifier(), token(key, header))


async def test_a_token_that_joserfc_signed_under_a_chain_is_trusted(tmp_path: Path):
    header = header_with_jwk(LEAF.key, x5c=x5c(LEAF, ROOT))
    made = claims()
    signed = jwt.encode(header, made, ECKey.import_key(private_pem(LEAF.key)))
    verified = await chain_verifier(tmp_path, ROOT).verify(signed)
    assert verified.claims == made


@pytest.mark.parametrize("alg", ALGORITHMS)
async def test_every_accepted_algorithm_verifies(alg: str):
    key = key_for(alg)
    await insecure_verifier().verify(token(key, header_with_jwk(key, alg), alg=alg))


async def test_an_unendorsed_header_key_is_refused_unless_configured():
    key = ec.generate_private_key(ec.SECP256R1())
    signed = token(key, header_with_jwk(key))
    await refused(own_verifier(), signed)
    await insecure_verifier().verify(signed)


def test_insecure_header_jwk_is_warned_of(caplog: pytest.LogCaptureFixture):
    insecure_verifier()
    assert "insecure_header_jwk" in caplog.text


@pytest.mark.parametrize("kid", ["one", None])
async def test_a_key_set_in_a_file_is_trusted_by_kid_or_by_the_very_key(
    tmp_path: Path, kid: str | None
):
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**public_jwk(key.public_key()), "alg": "ES256"}
    verifier = jwks_verifier(tmp_path, {**jwk, "kid": kid} if kid else jwk)
    await verifier.verify(token(key, {"alg": "ES256", "kid": kid} if kid else header_with_jwk(key)))


async def test_the_key_of_the_set_is_used_whatever_the_header_shows(tmp_path: Path):
    key, attacker = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    jwk = {**public_jwk(key.public_key()), "alg": "ES256", "kid": "one"}
    forged = token(attacker, {**header_with_jwk(attacker), "kid": "one"})
    assert "signature" in await refused(jwks_verifier(tmp_path, jwk), forged)


async def test_an_unknown_kid_is_refused(tmp_path: Path):
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**public_jwk(key.public_key()), "kid": "one"}
    await refused(jwks_verifier(tmp_path, jwk), token(key, {"alg": "ES256", "kid": "two"}))


async def test_of_two_keys_with_one_kid_either_may_have_signed(tmp_path: Path):
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    jwks = [{**public_jwk(key.public_key()), "kid": "one"} for key in keys]
    verifier = jwks_verifier(tmp_path, *jwks)
    for key in keys:
        await verifier.verify(token(key, {"alg": "ES256", "kid": "one"}))


async def test_keys_for_other_purposes_in_a_set_are_passed_over(tmp_path: Path):
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**public_jwk(key.public_key()), "kid": "one"}
    verifier = jwks_verifier(
        tmp_path,
        {"kty": "oct", "alg": "HS256", "kid": "one", "k": "Zm9vYmFy"},
        {**jwk, "use": "enc"},
        {**jwk, "alg": "RS256"},
        {**jwk, "key_ops": ["deriveKey"]},
        {**jwk, "crv": "secp256k1"},
    )
    await refused(verifier, token(key, {"alg": "ES256", "kid": "one"}))


@pytest.mark.parametrize(
    "source",
    ["http://issuer.example/jwks", "ftp://issuer.example", "/absent/keys.jwks", "file:///absent"],
)
def test_a_key_set_that_cannot_be_read_is_a_configuration_error(source: str):
    with pytest.raises(ConfigError):
        TokenVerifier(Trust(trusted_jwk_sets=[source]))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"keys":{}}', b"\xff", b'{"keys":[],"keys":[]}']
)
def test_a_file_that_is_no_key_set_is_a_configuration_error(tmp_path: Path, content: bytes):
    with pytest.raises(ConfigError):
        TokenVerifier(Trust(trusted_jwk_sets=[write(tmp_path / "keys.jwks", content)]))


@pytest.mark.parametrize("content", [b"", b"not a certificate", public_pem(LEAF.key)])
def test_a_file_without_a_certificate_is_a_configuration_error(tmp_path: Path, content: bytes):
    with pytest.raises(ConfigError):
        TokenVerifier(Trust(trusted_certs_paths=[write(tmp_path / "ca.pem", content)]))


# -- forged headers -------------------------------------------------------------------------------


def _unsigned(header: Any, signature: bytes = b"") -> str:
    return f"{segment(header)}.{segment(claims())}.{base64url.encode_text(signature)}"


async def test_no_algorithm_is_no_token():
    for alg in ("none", "None", "NONE", ""):
        header = {**header_with_jwk(LEAF.key), "alg": alg}
        await refused(insecure_verifier(), _unsigned(header))
        await refused(insecure_verifier(), _unsigned(header, b"x"))


async def test_a_public_key_is_never_an_hmac_secret(tmp_path: Path):
    jwk = {**public_jwk(LEAF.key.public_key()), "kid": "one"}
    for secret in (public_pem(LEAF.key), json.dumps(jwk).encode(), base64url.decode(jwk["x"])):
        for alg, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            unsigned = f"{segment({'alg': alg, 'kid': 'one'})}.{segment(claims())}"
            mac = hmac.digest(secret, unsigned.encode(), digest)
            forged = f"{unsigned}.{base64url.encode_text(mac)}"
            await refused(jwks_verifier(tmp_path, jwk), forged)


@pytest.mark.parametrize(
    ("key", "key_alg", "alg"),
    [
        (key_for("RS256"), "RS256", "PS256"),
        (key_for("RS256"), "PS256", "RS256"),
        (key_for("RS256"), "RS256", "RS512"),
    ],
)
async def test_a_key_that_names_its_algorithm_is_used_with_no_other(
    key: Any, key_alg: str, alg: str
):
    header = {**header_with_jwk(key, key_alg), "alg": alg}
    assert "alg" in await refused(insecure_verifier(), token(key, header, alg=alg))


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("key", [key_for("ES256"), key_for("RS256"), key_for("EdDSA")])
async def test_an_algorithm_that_does_not_fit_the_key_is_refused(key: Any, alg: str):
    if ALGORITHMS[alg].fits(key.public_key()):
        return
    header = {"alg": alg, "jwk": public_jwk(key.public_key())}
    await refused(insecure_verifier(), _unsigned(header, bytes(64)))


@pytest.mark.parametrize(
    "header",
    [
        {**header_with_jwk(LEAF.key), "crit": ["exp"]},
        {**header_with_jwk(LEAF.key), "crit": []},
        {**header_with_jwk(LEAF.key), "crit": ["b64"], "b64": False},
        {**header_with_jwk(LEAF.key), "kid": 7},
        {**header_with_jwk(LEAF.key), "kid": "k" * 257},
        {**header_with_jwk(LEAF.key), "jwk": "key"},
        {**header_with_jwk(LEAF.key), "jwk": [public_jwk(LEAF.key.public_key())]},
        {**header_with_jwk(LEAF.key), "alg": ["ES256"]},
        {"jwk": public_jwk(LEAF.key.public_key())},
        {**header_with_jwk(LEAF.key, d="AAAA")},
        {**header_with_jwk(LEAF.key, use="enc")},
        {**header_with_jwk(LEAF.key, key_ops=["sign"])},
        {**header_with_jwk(LEAF.key, key_ops="verify")},
        {"alg": "ES256", "jwk": {"kty": "oct", "k": "AAAA"}},
        {"alg": "ES256", "jwk": {}},
        {"alg": "ES256"},
        {"alg": "ES256", "jku": "https://attacker.example/jwks", "kid": "one"},
        b"[]",
        b"null",
        b"",
        b"\xff\xfe",
        b'{"alg":"ES256","alg":"ES256"}',
        b"{" + b'"a":{' * 40 + b"}" * 41,
    ],
)
async def test_a_header_with_a_fault_is_refused(header: Any):
    await refused(insecure_verifier(), token(LEAF.key, header))


async def test_members_written_twice_are_refused_in_header_and_claims():
    good = json.dumps(header_with_jwk(LEAF.key)).encode()
    twice = good[:-1] + b',"alg":"ES256"}'
    await refused(insecure_verifier(), token(LEAF.key, twice))
    exp = int(time.time()) + 300
    payload = b'{"exp":%d,"role":"guest","role":"admin"}' % exp
    assert "twice" in await refused(
        insecure_verifier(), token(LEAF.key, header_with_jwk(LEAF.key), payload)
    )


async def test_claims_nested_too_deeply_are_refused():
    nested: Any = {}
    for _ in range(33):
        nested = {"a": [nested]}
    for compact in (True, False):
        separators = (",", ":") if compact else (", ", ": ")
        payload = json.dumps(claims(deep=nested), separators=separators).encode()
        signed = token(LEAF.key, header_with_jwk(LEAF.key), payload)
        assert "nested" in await refused(insecure_verifier(), signed)
    bomb = b'{"exp":1,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    await refused(insecure_verifier(), token(LEAF.key, header_with_jwk(LEAF.key), bomb))


# -- time -----------------------------------------------------------------------------------------


def _now() -> int:
    return int(time.time())


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": _now() - 1},
        {"exp": 0},
        {"exp": -(10**30)},
        {"exp": "9999999999"},
        {"exp": True},
        {"exp": [9999999999]},
        {"exp": 10**400},
        {"nbf": _now() + CLOCK_LEEWAY_SECONDS + 300},
        {"nbf": "0"},
        {"iat": _now() + CLOCK_LEEWAY_SECONDS + 300},
        {"iat": {}},
    ],
)
async def test_a_token_out_of_its_time_is_refused(changes: dict[str, Any]):
    signed = token(LEAF.key, header_with_jwk(LEAF.key), claims(**changes))
    await refused(insecure_verifier(), signed)


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"1e999"])
async def test_an_expiry_that_is_no_number_is_refused(constant: bytes):
    payload = b'{"exp":' + constant + b"}"
    await refused(insecure_verifier(), token(LEAF.key, header_with_jwk(LEAF.key), payload))


async def test_clocks_may_differ_a_little_at_the_start():
    signed = token(
        LEAF.key,
        header_with_jwk(LEAF.key),
        claims(iat=_now() + 20, nbf=_now() + 20, exp=_now() + 300.5),
    )
    assert (await insecure_verifier().verify(signed)).expires_at % 1 == 0.5


@pytest.mark.parametrize("payload", [b"[]", b"7", b"null", b'"text"', b"", b"{", b"\xff", b"{} {}"])
async def test_claims_that_are_no_object_are_refused(payload: bytes):
    await refused(insecure_verifier(), token(LEAF.key, header_with_jwk(LEAF.key), payload))


async def test_claims_need_not_be_written_compactly():
    payload = json.dumps(claims(text="\u00e9\u20ac", number=1.50), indent=1).encode()
    signed = token(LEAF.key, header_with_jwk(LEAF.key), payload)
    verified = await insecure_verifier().verify(signed)
    assert verified.claims == json.loads(payload)


# -- tampering ------------------------------------------------------------------------------------


@given(position=st.integers(0), replacement=st.characters(max_codepoint=0x17F))
@settings(max_examples=300, deadline=None)
def test_a_change_of_any_character_is_refused(position: int, replacement: str):
    verifier = own_verifier()
    signed = SIGNER.sign({"exp": 4102444800, "submods": {"cpu0": {"x": "y" * 20}}})
    position %= len(signed)
    changed = signed[:position] + replacement + signed[position + 1 :]
    if changed != signed:
        with pytest.raises(TokenVerifierError):
            asyncio.run(verifier.verify(changed))


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_token_or_refused(text: str):
    with pytest.raises(TokenVerifierError):
        asyncio.run(insecure_verifier().verify(text))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["alg", "kid", "jwk", "kty", "crv", "x", "y", "x5c", "exp"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(header=_json, payload=_json)
@settings(max_examples=300, deadline=None)
def test_any_json_in_header_and_claims_is_a_token_or_refused(header: Any, payload: Any):
    raw_header = json.dumps(header).encode()
    with pytest.raises(TokenVerifierError):
        asyncio.run(
            insecure_verifier().verify(token(LEAF.key, raw_header, json.dumps(payload).encode()))
        )


@given(payload=_json)
@settings(max_examples=200, deadline=None)
def test_any_signed_claims_are_read_as_json_reads_them_or_refused(payload: Any):
    raw = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    try:
        octets = raw.encode()
    except UnicodeEncodeError:
        return
    signed = token(LEAF.key, header_with_jwk(LEAF.key), octets)
    try:
        verified = asyncio.run(insecure_verifier().verify(signed))
    except TokenVerifierError:
        return
    assert verified.claims == json.loads(raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + ".",
        lambda t: t + "=",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t.rpartition(".")[0],
        lambda t: t.rpartition(".")[0] + ".",
        lambda t: t.replace(".", ".."),
        lambda t: t + ".AAAA.AAAA",
        lambda t: "." + t.partition(".")[2],
        lambda t: t.rpartition(".")[0] + "." + "A" * 86,
        lambda t: t.rpartition(".")[0] + "." + "_" * 86,
        lambda t: t.rpartition(".")[0] + "." + "A" * 4,
        lambda t: t + "\udcff",
        lambda t: "x" * (MAX_TOKEN_CHARS + 1),
    ],
)
async def test_a_token_of_another_shape_is_refused(change: Any):
    await refused(own_verifier(), change(SIGNER.sign(claims())))


async def test_a_token_of_200_kib_verifies():
    made = claims(evidence="x" * 200 * 1024)
    assert (await own_verifier().verify(SIGNER.sign(made))).claims == made


def test_ed25519_issuers_are_known():
    assert ALGORITHMS["EdDSA"].fits(ed25519.Ed25519PrivateKey.generate().public_key())
