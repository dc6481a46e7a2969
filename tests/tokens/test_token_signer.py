"""The signer of attestation tokens, judged by an independent JOSE implementation."""

import asyncio
import base64
import json
import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jwt
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from token_pki import Signer, certify, claims, pem, private_pem, write

from keybroker.model.errors import ConfigError, StorageError
from keybroker.storage.memory import MemoryStore
from keybroker.tokens.jwk import thumbprint
from keybroker.tokens.signer import STORAGE_KEY, TokenSigner


class Store:
    """A namespace in memory in which other workers get their turn at every step."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.values.get(key)

    async def version(self, key: str) -> object | None:
        return self.values.get(key)

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        await asyncio.sleep(0)
        if not overwrite and key in self.values:
            return False
        self.values[key] = value
        return True

    async def delete(self, key: str) -> bool:
        return self.values.pop(key, None) is not None

    async def keys(self) -> list[str]:
        return sorted(self.values)

    async def items(self) -> dict[str, bytes]:
        return dict(self.values)

    async def revision(self) -> object:
        return len(self.values)


def _keys():
    return [
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("ES384", ec.generate_private_key(ec.SECP384R1())),
        ("ES512", ec.generate_private_key(ec.SECP521R1())),
        ("RS256", rsa.generate_private_key(65537, 2048)),
    ]


def test_joserfc_verifies_tokens_of_every_kind_of_key():
    for alg, key in _keys():
        signer = TokenSigner(key)
        made = claims(submods={"cpu0": {"ear.status": "affirming"}})
        registry = JWSRegistry(algorithms=[alg])
        registry.max_header_length = 4096
        keys = KeySet.import_key_set(signer.jwks())
        decoded = jwt.decode(signer.sign(made), keys, registry=registry)
        assert decoded.claims == made
        assert decoded.header["alg"] == alg
        assert decoded.header["typ"] == "JWT"
        assert decoded.header["kid"] == thumbprint(key.public_key())


def test_the_header_shows_the_public_key_alone():
    signer = TokenSigner(ec.generate_private_key(ec.SECP256R1()))
    header = json.loads(base64.urlsafe_b64decode(signer.header_segment + "=="))
    assert header["jwk"] == signer.jwks()["keys"][0]
    assert set(header["jwk"]) == {"kty", "crv", "x", "y", "alg", "use", "kid"}


def test_the_thumbprint_is_that_of_joserfc():
    for _, key in _keys():
        signer = TokenSigner(key)
        assert KeySet.import_key_set(signer.jwks()).keys[0].thumbprint() == signer.kid


async def test_a_configured_chain_goes_into_every_token(tmp_path: Path):
    root = certify("root")
    leaf = certify("leaf", root, ca=False)
    config = Signer(
        write(tmp_path / "key.pem", private_pem(leaf.key)),
        write(tmp_path / "chain.pem", pem(leaf, root)),
        "https://keys.example/chain.pem",
    )
    signer = await TokenSigner.create(config, None)
    (jwk,) = signer.jwks()["keys"]
    assert [base64.b64decode(entry) for entry in jwk["x5c"]] == [
        leaf.certificate.public_bytes(Encoding.DER),
        root.certificate.public_bytes(Encoding.DER),
    ]
    assert jwk["x5u"] == "https://keys.example/chain.pem"


async def test_a_chain_of_another_key_is_a_configuration_error(tmp_path: Path):
    config = Signer(
        write(tmp_path / "key.pem", private_pem(ec.generate_private_key(ec.SECP256R1()))),
        write(tmp_path / "chain.pem", pem(certify("leaf"))),
    )
    with pytest.raises(ConfigError, match="not that of its key"):
        await TokenSigner.create(config, None)


async def test_an_unreachable_cert_url_does_not_keep_the_broker_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = Signer(
        write(tmp_path / "key.pem", private_pem(ec.generate_private_key(ec.SECP256R1()))),
        cert_url="https://127.0.0.1:1/chain.pem",
    )
    signer = await TokenSigner.create(config, None)
    assert signer.jwks()["keys"][0]["x5u"] == "https://127.0.0.1:1/chain.pem"
    assert "cert_url gives no chain" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        private_pem(ed25519.Ed25519PrivateKey.generate()),
        private_pem(ec.generate_private_key(ec.SECP256K1())),
        private_pem(rsa.generate_private_key(65537, 1024)),
        pem(certify("a certificate")),
    ],
)
async def test_a_key_that_cannot_sign_tokens_is_a_configuration_error(
    tmp_path: Path, content: bytes
):
    with pytest.raises(ConfigError):
        await TokenSigner.create(Signer(write(tmp_path / "key.pem", content)), None)


async def test_a_missing_key_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        await TokenSigner.create(Signer(str(tmp_path / "absent.pem")), None)


async def test_workers_that_start_together_share_one_key():
    store = Store()
    signers = await asyncio.gather(*(TokenSigner.create(None, store) for _ in range(20)))
    assert len({signer.kid for signer in signers}) == 1
    assert (await TokenSigner.create(None, store)).header_segment == signers[0].header_segment


async def test_a_damaged_kept_key_is_not_replaced():
    store = Store()
    await store.set(STORAGE_KEY, b"damaged")
    with pytest.raises(StorageError):
        await TokenSigner.create(None, store)
    assert store.values[STORAGE_KEY] == b"damaged"


@pytest.mark.parametrize("store", [None, MemoryStore()])
async def test_an_ephemeral_key_is_warned_of(
    caplog: pytest.LogCaptureFixture, store: MemoryStore | None
):
    with caplog.at_level(logging.WARNING):
        signer = await TokenSigner.create(None, store)
    assert signer.algorithm == "ES256"
    assert "ephemeral" in caplog.text
    assert store is None or not await store.keys()


def test_nothing_shows_the_private_key():
    key = ec.generate_private_key(ec.SECP256R1())
    signer = TokenSigner(key)
    secret = key.private_numbers().private_value
    assert str(secret) not in repr(signer)
    assert "d" not in signer.jwks()["keys"][0]
