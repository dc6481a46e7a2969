"""The signing key of this broker's attestation tokens.

Unless a key is configured, one is made on first start and kept in the storage, so that every
worker and replica signs with the same key and a restart does not make tokens worthless.
"""

import base64
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from keybroker.model.errors import ConfigError, MalformedError, StorageError
from keybroker.storage.interface import KeyValueStore
from keybroker.storage.memory import MemoryStore
from keybroker.tokens import base64url
from keybroker.tokens.algorithms import PrivateKey, default_algorithm, load_private_key
from keybroker.tokens.fetch import FetchError, fetch
from keybroker.tokens.jwk import PublicKey, check_public_key, public_jwk, thumbprint
from keybroker.tokens.jws import issue_compact
from keybroker.tokens.x5c import MAX_CERTIFICATES, leaf_key, load_certificates
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: Namespace of the kept key.
NAMESPACE = "token_signer"

#: Key under which it is kept: PKCS #8 in PEM, encrypted at rest where the storage encrypts.
STORAGE_KEY = "signing-key.pem"


class SignerConfig(Protocol):
    """The ``signer`` table of ``attestation_token_broker``."""

    @property
    def key_path(self) -> str:
        """Path of the private key, PEM: EC P-256, P-384 or P-521, or RSA."""
        ...

    @property
    def cert_path(self) -> str | None:
        """Path of the certificate chain, PEM, the key's own certificate first."""
        ...

    @property
    def cert_url(self) -> str | None:
        """Where relying parties find the chain."""
        ...


class TokenSigner:
    """Signs tokens with one key.

    Args:
        key: EC P-256, P-384 or P-521, or RSA of at least 2048 bits.
        chain: certificates of the key, its own first; they go into every token.
        cert_url: where the chain is published (``x5u``).

    Raises:
        ConfigError: the key cannot sign tokens, or the first certificate is not the key's.
    """

    def __init__(
        self,
        key: PrivateKey,
        *,
        chain: Sequence[x509.Certificate] = (),
        cert_url: str | None = None,
    ) -> None:
        try:
            public_key = check_public_key(key.public_key())
            if chain and leaf_key(chain[0]) != public_key:
                raise ConfigError(
                    "the first certificate of the token signer's chain is not that of its key"
                )
        except MalformedError as error:
            raise ConfigError(f"token signer: {error.diagnostics()}") from None
        if len(chain) > MAX_CERTIFICATES:
            raise ConfigError(f"token signer: more than {MAX_CERTIFICATES} certificates")
        self._key = key
        self._algorithm = default_algorithm(public_key)
        self.public_key: PublicKey = public_key
        self.kid = thumbprint(public_key)
        self._jwk = self._published_jwk(chain, cert_url)
        header = {
            "typ": "JWT",
            "alg": self._algorithm.name,
            "kid": self.kid,
            "jwk": self._jwk,
        }
        self._header = base64url.encode(msgspec.json.encode(header))

    @classmethod
    async def create(
        cls, config: SignerConfig | None, store: KeyValueStore | None
    ) -> "TokenSigner":
        """Make the signer that the configuration asks for.

        Args:
            config: a configured key, or None for one of the broker's own.
            store: the namespace :data:`NAMESPACE`, where the own key is kept; None or a store in
                memory: the key lives as long as the process, and a warning says so.

        Raises:
            ConfigError: a configured file cannot be read or does not fit the key.
            StorageError: the store failed, or holds something else than a key.
        """
        if config is not None:
            return await _configured(config)
        if store is not None and not isinstance(store, MemoryStore):
            return cls(await _kept_key(store))
        logger.warning(
            "the token signing key is ephemeral: tokens lose their worth with this process and are"
            " not accepted by other workers; configure a signer or a storage that keeps"
        )
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def header_segment(self) -> str:
        """The header of every token, base64url."""
        return self._header.decode("ascii")

    @property
    def algorithm(self) -> str:
        """The ``alg`` of the tokens."""
        return self._algorithm.name

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Sign a claims set and return the token, a compact JWS.

        Costs CPU only: some 40 µs with P-256; RSA and larger curves cost a millisecond and more
        and belong on the workbench.
        """
        payload = msgspec.json.encode(dict(claims))
        return issue_compact(self._header, payload, self._algorithm, self._key)

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JWK set, for ``/.well-known/jwks.json``."""
        return {"keys": [dict(self._jwk)]}

    def _published_jwk(
        self, chain: Sequence[x509.Certificate], cert_url: str | None
    ) -> dict[str, Any]:
        jwk: dict[str, Any] = {
            **public_jwk(self.public_key),
            "alg": self._algorithm.name,
            "use": "sig",
            "kid": self.kid,
        }
        if chain:
            jwk["x5c"] = [
                _standard_base64(certificate.public_bytes(Encoding.DER)) for certificate in chain
            ]
        if cert_url is not None:
            jwk["x5u"] = cert_url
        return jwk


async def _kept_key(store: KeyValueStore) -> PrivateKey:
    pem = await store.get(STORAGE_KEY)
    if pem is None:
        fresh = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        # Of workers that start together one writes; the others read what it wrote.
        if await store.set(STORAGE_KEY, fresh, overwrite=False):
            pem = fresh
        else:
            pem = await store.get(STORAGE_KEY)
    if pem is None:
        raise StorageError("the token signing key vanished while it was being made")
    try:
        return _token_key(pem)
    except MalformedError as error:
        raise StorageError(f"the kept token signing key: {error.diagnostics()}") from None


async def _configured(config: SignerConfig) -> TokenSigner:
    key = await run(_read_key, config.key_path)
    chain: list[x509.Certificate] = []
    if config.cert_path:
        chain = await run(_read_chain, config.cert_path)
    elif config.cert_url:
        chain = await _fetch_chain(config.cert_url)
    return TokenSigner(key, chain=chain, cert_url=config.cert_url or None)


def _token_key(pem: bytes) -> PrivateKey:
    key = load_private_key(pem)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raise MalformedError("a token signing key must be EC or RSA")
    return key


def _read_key(path: str) -> PrivateKey:
    try:
        return _token_key(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"token signer key {path}: {error.strerror}") from None
    except MalformedError as error:
        raise ConfigError(f"token signer key {path}: {error.diagnostics()}") from None


def _read_chain(path: str) -> list[x509.Certificate]:
    try:
        return load_certificates(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"token signer chain {path}: {error.strerror}") from None
    except MalformedError as error:
        raise ConfigError(f"token signer chain {path}: {error.diagnostics()}") from None


async def _fetch_chain(url: str) -> list[x509.Certificate]:
    # The URL is told to relying parties; whether this machine can reach it is no reason not to
    # start, but a chain of another key would be.
    try:
        return load_certificates((await fetch(url)).body)
    except (FetchError, MalformedError) as error:
        logger.warning("the token signer's cert_url gives no chain: %s", error)
        return []


def _standard_base64(der: bytes) -> str:
    # x5c is the one member in plain base64 with padding (RFC 7517, section 4.7).
    return base64.b64encode(der).decode("ascii")
