"""Verify attestation tokens: which key signed, why that key is trusted, and whether it is in time.

A token names its key in its header, and that key is trusted for one of these reasons, tried in
this order:

1. It is the key with which this broker's own attestation service signs. No configuration is
   needed for it: the broker made the key, keeps it, and nobody else has it.
2. The header's ``jwk`` carries an ``x5c`` chain whose first certificate is of the same key and
   which ends at one of ``trusted_certs_paths``.
3. One of ``trusted_jwk_sets`` holds it, by the header's ``kid`` or as the very key that the header
   shows. The key that is used is always that of the set.
4. ``insecure_header_jwk`` is on and the header shows a key. Then whoever can make a key can make
   tokens; for tests only, and said so at every start.

Everything else is refused, and so is a broker that could not trust any token at all.
"""

import hashlib
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography import x509

from keybroker.model.errors import ConfigError, MalformedError, TokenVerifierError
from keybroker.tokens.claims import parse_claims, verify_times
from keybroker.tokens.jwk import PublicKey, thumbprint
from keybroker.tokens.jws import (
    MAX_TOKEN_CHARS,
    CompactJws,
    JwsHeader,
    VerificationKey,
    parse_compact,
    parse_header,
    parse_verification_key,
    verify_signature,
)
from keybroker.tokens.key_sources import KeySource, find_keys
from keybroker.tokens.remembered import Remembered
from keybroker.tokens.signer import TokenSigner
from keybroker.tokens.verified import VerifiedToken, tee_key_pointers
from keybroker.tokens.x5c import leaf_key, load_trusted, parse_x5c, verify_chain
from keybroker.workbench import run

__all__ = ["TokenTrustConfig", "TokenVerifier", "VerifiedToken"]

logger = logging.getLogger(__name__)

#: Verified tokens remembered, and the most characters of them: decoded claims take some eight
#: times as much, and memory is counted per worker.
REMEMBERED_TOKENS = 2048
REMEMBERED_TOKEN_CHARS = 4 * 1024 * 1024

#: Headers remembered with the key that they lead to; an issuer has one header for all its tokens.
REMEMBERED_HEADERS = 64
REMEMBERED_HEADER_CHARS = 512 * 1024

#: Above this, hashing and decoding take longer than the event loop should be kept.
HEAVY_TOKEN_CHARS = 64 * 1024

_NEVER = float("inf")


class TokenTrustConfig(Protocol):
    """The ``attestation_token`` table."""

    @property
    def trusted_jwk_sets(self) -> Sequence[str]:
        """``https://``, ``file://`` or local paths of JWK sets, or of issuers to discover them."""
        ...

    @property
    def trusted_certs_paths(self) -> Sequence[str]:
        """Paths of PEM certificates at which an ``x5c`` chain may end."""
        ...

    @property
    def extra_teekey_paths(self) -> Sequence[str]:
        """JSON pointers to the TEE's public key in the claims, tried before the known ones."""
        ...

    @property
    def insecure_header_jwk(self) -> bool:
        """Whether a key that a header shows is trusted for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class _Trusted:
    """What a header leads to: its algorithm, and the keys that may have signed."""

    header: JwsHeader
    keys: Sequence[VerificationKey]
    expires_at: float = _NEVER


class TokenVerifier:
    """Decides which attestation tokens count here.

    Args:
        config: whom to trust.
        own_signer: the signer of the attestation service in this broker, if there is one.
        tls: whom to trust when fetching JWK sets; None: the authorities of the system.

    Raises:
        ConfigError: a certificate, a JWK set file or a path is wrong, or nothing is trusted.
    """

    def __init__(
        self,
        config: TokenTrustConfig,
        own_signer: TokenSigner | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._own = own_signer
        self._certificates = load_trusted(config.trusted_certs_paths)
        self._sources = [KeySource(source, tls=tls) for source in config.trusted_jwk_sets]
        self._insecure = config.insecure_header_jwk
        self._pointers = tee_key_pointers(config.extra_teekey_paths)
        if not (own_signer or self._certificates or self._sources or self._insecure):
            raise ConfigError(
                "cannot verify attestation tokens: no trusted verification materials; set"
                " trusted_certs_paths or trusted_jwk_sets in [attestation_token], or run the"
                " attestation service in this broker"
            )
        if self._insecure:
            logger.warning(
                "insecure_header_jwk is on: anyone can make tokens that this broker accepts;"
                " use it for tests only"
            )
        self._tokens: Remembered[bytes, VerifiedToken] = Remembered(
            REMEMBERED_TOKENS, REMEMBERED_TOKEN_CHARS
        )
        self._headers: Remembered[str, _Trusted] = Remembered(
            REMEMBERED_HEADERS, REMEMBERED_HEADER_CHARS
        )

    @classmethod
    async def create(
        cls,
        config: TokenTrustConfig,
        *,
        own_signer: TokenSigner | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> "TokenVerifier":
        """Make a verifier and begin to fetch its JWK sets, without waiting for their servers.

        Raises:
            ConfigError: as the constructor.
        """
        verifier = cls(config, own_signer, tls=tls)
        for source in verifier._sources:
            source.prefetch()
        return verifier

    async def close(self) -> None:
        """Give up fetches that are under way."""
        for source in self._sources:
            await source.close()

    async def verify(self, token: str) -> VerifiedToken:
        """Verify a token, or recognise one that was verified before and is still in time.

        Args:
            token: a JWT in compact serialisation.

        Raises:
            TokenVerifierError: malformed, signed by nobody who is trusted, or out of its time.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenVerifierError("the token is too long")
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = time.time()
        known = self._tokens.get(digest, now)
        if known is not None:
            return known
        try:
            jws = parse_compact(token)
            trusted = await self._trusted(jws.header_segment, now)
            check = trusted.header, trusted.keys, jws
            if trusted.header.algorithm.heavy or len(token) > HEAVY_TOKEN_CHARS:
                claims = await run(_verify_and_decode, *check)
            else:
                claims = _verify_and_decode(*check)
            expires_at = min(verify_times(claims, now), trusted.expires_at)
        except MalformedError as error:
            raise TokenVerifierError(error.diagnostics()) from None
        verified = VerifiedToken(claims, digest, expires_at, self._pointers)
        self._tokens.put(digest, verified, expires_at=expires_at, weight=len(token))
        return verified

    async def _trusted(self, header_segment: str, now: float) -> _Trusted:
        known = self._headers.get(header_segment, now)
        if known is not None:
            return known
        header = parse_header(header_segment)
        shown = parse_verification_key(header.jwk) if header.jwk is not None else None
        print_ = thumbprint(shown.key) if shown is not None else None
        trusted: _Trusted | None = None
        if shown is not None and self._own is not None and print_ == self._own.kid:
            trusted = _Trusted(header, (shown,))
        elif header.jwk is not None and shown is not None and self._certificates:
            trusted = await self._endorsed(header, shown)
        if trusted is None:
            keys = await find_keys(self._sources, header.kid, print_)
            if keys:
                # Not remembered: the set may change.
                return _Trusted(header, keys)
            if shown is None or not self._insecure:
                raise MalformedError("no trusted key signed the token")
            trusted = _Trusted(header, (shown,))
        self._headers.put(
            header_segment, trusted, expires_at=trusted.expires_at, weight=len(header_segment)
        )
        return trusted

    async def _endorsed(self, header: JwsHeader, shown: VerificationKey) -> _Trusted | None:
        x5c = header.jwk.get("x5c") if header.jwk is not None else None
        try:
            until = await run(_verify_endorsement, shown.key, x5c, self._certificates)
        except MalformedError as error:
            if self._sources or self._insecure:
                logger.debug("the key of a token is not endorsed: %s", error.diagnostics())
                return None
            raise
        return _Trusted(header, (shown,), until.timestamp())


def _verify_endorsement(
    key: PublicKey, x5c: object, certificates: Sequence[x509.Certificate]
) -> datetime:
    chain = parse_x5c(x5c)
    if leaf_key(chain[0]) != key:
        raise MalformedError("the token's jwk is not the key of its first certificate")
    return verify_chain(chain[0], chain[1:], certificates, datetime.now(UTC))


def _verify_and_decode(
    header: JwsHeader, keys: Sequence[VerificationKey], jws: CompactJws
) -> dict[str, object]:
    for key in keys[:-1]:
        try:
            verify_signature(jws, header.algorithm, key)
        except MalformedError:
            continue
        return parse_claims(jws.payload)
    verify_signature(jws, header.algorithm, keys[-1])
    return parse_claims(jws.payload)
