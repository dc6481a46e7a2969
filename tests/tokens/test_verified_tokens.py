"""What is remembered of a verified token, and where its TEE key is found."""

import asyncio
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from token_pki import Trust, claims, header_with_jwk, token

from keybroker.model.errors import ConfigError, TokenVerifierError
from keybroker.tokens.signer import TokenSigner
from keybroker.tokens.verifier import TokenVerifier

SIGNER = TokenSigner(ec.generate_private_key(ec.SECP256R1()))


def own_verifier() -> TokenVerifier:
    return TokenVerifier(Trust(), SIGNER)


def insecure_verifier() -> TokenVerifier:
    return TokenVerifier(Trust(insecure_header_jwk=True))


def _now() -> int:
    return int(time.time())


async def test_a_verified_token_is_remembered_until_it_expires():
    verifier = own_verifier()
    signed = SIGNER.sign(claims())
    first = await verifier.verify(signed)
    assert await verifier.verify(signed) is first
    assert len(first.digest) == 32
    short = SIGNER.sign(claims(exp=time.time() + 0.05))
    await verifier.verify(short)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            await verifier.verify(short)
        except TokenVerifierError as error:
            assert "expired" in error.diagnostics()
            return
        await asyncio.sleep(0)
    pytest.fail("an expired token was still remembered")


async def test_a_refused_token_is_not_remembered():
    key = ec.generate_private_key(ec.SECP256R1())
    verifier = own_verifier()
    for _ in range(2):
        with pytest.raises(TokenVerifierError):
            await verifier.verify(token(key, header_with_jwk(key)))
    assert len(verifier._tokens) == len(verifier._headers) == 0


async def test_what_is_remembered_is_bounded():
    verifier = insecure_verifier()
    text = "x" * 50_000
    for number in range(150):
        await verifier.verify(SIGNER.sign(claims(number=number, text=text)))
    assert 0 < len(verifier._tokens) < 150


async def test_nothing_of_a_token_shows_in_its_repr():
    verified = await own_verifier().verify(SIGNER.sign(claims(secret="not to be shown")))
    assert "not to be shown" not in repr(verified)


# -- the key of the TEE ---------------------------------------------------------------------------

_KEY = {"kty": "EC", "crv": "P-256"}


def _at(path: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


@pytest.mark.parametrize(
    "path",
    [
        ["tdx", "attester_runtime_data", "tee-pubkey"],
        ["tdx", "attester_user_data", "tee-pubkey"],
        ["customized_claims", "runtime_data", "tee-pubkey"],
        [
            "submods",
            "cpu0",
            "ear.veraison.annotated-evidence",
            "runtime_data_claims",
            "tee-pubkey",
        ],
        ["tee-pubkey"],
    ],
)
async def test_the_tee_key_is_found_where_issuers_put_it(path: list[str]):
    made = {"exp": _now() + 300, **_at(path, _KEY)}
    assert (await own_verifier().verify(SIGNER.sign(made))).tee_public_key() == _KEY


async def test_configured_paths_come_first_and_are_json_pointers():
    verifier = TokenVerifier(Trust(extra_teekey_paths=["/list/1/a~1b/~0key"]), SIGNER)
    made = claims(list=[{}, {"a/b": {"~key": _KEY}}], **{"tee-pubkey": {"kty": "RSA"}})
    assert (await verifier.verify(SIGNER.sign(made))).tee_public_key() == _KEY


@pytest.mark.parametrize("value", [None, "text", [_KEY], 7])
async def test_a_tee_key_that_is_no_object_is_refused(value: Any):
    made = {"exp": _now() + 300, "tee-pubkey": value}
    verified = await own_verifier().verify(SIGNER.sign(made))
    with pytest.raises(TokenVerifierError):
        verified.tee_public_key()


async def test_a_token_without_a_tee_key_says_what_to_configure():
    verified = await own_verifier().verify(SIGNER.sign({"exp": _now() + 300}))
    with pytest.raises(TokenVerifierError, match="extra_teekey_paths"):
        verified.tee_public_key()


def test_a_path_that_is_no_json_pointer_is_a_configuration_error():
    with pytest.raises(ConfigError, match="JSON pointer"):
        TokenVerifier(Trust(extra_teekey_paths=["tee-pubkey"]), SIGNER)
