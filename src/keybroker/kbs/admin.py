"""Who administrates the broker: authentication by bearer token, authorisation by access rules."""

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from keybroker.config.admin import (
    AdminConfig,
    AuthenticatedAuthorization,
    IdentityProviderConfig,
    InsecureAllowAll,
)
from keybroker.kbs.acl import AccessRules
from keybroker.model.errors import AdminAuthError, AdminDeniedError, ConfigError, MalformedError
from keybroker.tokens.claims import parse_claims, verify_times
from keybroker.tokens.jws import (
    CompactJws,
    JwsHeader,
    VerificationKey,
    parse_compact,
    parse_header,
    verify_signature,
)
from keybroker.tokens.key_sources import KeySource, find_keys, parse_pem_key
from keybroker.tokens.remembered import Remembered
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: Longest administrator token; identity providers stay below a tenth of it.
MAX_ADMIN_TOKEN_CHARS = 16 * 1024

#: A verified token is taken as verified this long, so that a key taken out of a provider's set, or
#: an expiry, is in force soon.
REMEMBER_SECONDS = 60.0
REMEMBERED_TOKENS = 256

#: Longest role and subject; they appear in the audit log.
MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class Administrator:
    """Somebody who may make the request at hand.

    Attributes:
        subject: ``sub`` of the token, or empty.
        role: ``role`` of the token, or empty where everybody is an administrator.
        issuer: ``iss`` of the token, or empty.
    """

    subject: str
    role: str
    issuer: str


_ANYBODY = Administrator(subject="", role="", issuer="")


class AdminAccess:
    """Decides who administrates.

    Args:
        config: the ``admin`` table.
        tls: whom to trust when fetching keys; None: the authorities of the system.

    Raises:
        ConfigError: no identity provider, a provider without keys, a key that cannot be read, or
            a rule that cannot be used.
    """

    def __init__(self, config: AdminConfig, *, tls: ssl.SSLContext | None = None) -> None:
        self._everybody = isinstance(config, InsecureAllowAll)
        self._providers: Sequence[_IdentityProvider] = ()
        self._rules = AccessRules(())
        self._known: Remembered[bytes, Administrator] = Remembered(
            REMEMBERED_TOKENS, REMEMBERED_TOKENS
        )
        if self._everybody:
            logger.warning(
                "admin.authorization_mode is InsecureAllowAll: everybody who reaches this broker"
                " can read its policies and change its policies, reference values and secrets"
            )
        elif isinstance(config, AuthenticatedAuthorization):
            providers = config.authentication.bearer_jwt.identity_providers
            if not providers:
                raise ConfigError("admin.authentication.bearer_jwt names no identity_providers")
            self._providers = [
                _IdentityProvider(provider, position, tls)
                for position, provider in enumerate(providers)
            ]
            self._rules = AccessRules(config.authorization.regex_acl.acls)

    @classmethod
    async def create(
        cls, config: AdminConfig, *, tls: ssl.SSLContext | None = None
    ) -> "AdminAccess":
        """Make one and begin to fetch the providers' keys, without waiting for their servers.

        Raises:
            ConfigError: as the constructor.
        """
        access = cls(config, tls=tls)
        for provider in access._providers:
            provider.prefetch()
        return access

    async def close(self) -> None:
        """Give up fetches that are under way."""
        for provider in self._providers:
            await provider.close()

    async def authorize(
        self,
        authorization: str | None,
        method: str,  # noqa: ARG002 - access rules know paths only, as in Trustee
        path: str,
    ) -> Administrator:
        """Return who makes a request, if they may.

        Args:
            authorization: the header of that name.
            method: of the request.
            path: of the request, percent-decoded, without the query.

        Raises:
            AdminAuthError: no token, or one that is not valid.
            AdminDeniedError: a valid token whose role no rule allows the path, or nobody is an
                administrator.
        """
        if self._everybody:
            return _ANYBODY
        if not self._providers:
            raise AdminDeniedError("admin.authorization_mode is DenyAll")
        administrator = await self._authenticate(authorization)
        if not self._rules.allow(administrator.role, path):
            raise AdminDeniedError(f"no rule allows the role {administrator.role!r} this path")
        return administrator

    async def _authenticate(self, authorization: str | None) -> Administrator:
        if authorization is None:
            raise AdminAuthError("no Authorization header")
        scheme, _, token = authorization.partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token:
            raise AdminAuthError("the Authorization header is not Bearer with a token")
        if len(token) > MAX_ADMIN_TOKEN_CHARS:
            raise AdminAuthError("the administrator token is too long")
        now = time.time()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest, now)
        if known is not None:
            return known
        try:
            jws = parse_compact(token)
            header = parse_header(jws.header_segment)
        except MalformedError as error:
            raise AdminAuthError(error.diagnostics()) from None
        reasons = []
        async with aclosing(self._candidates(header)) as candidates:
            async for provider, keys in candidates:
                try:
                    claims, expires_at = await provider.verify(jws, header, keys, now)
                    administrator = _administrator(claims)
                except MalformedError as error:
                    reasons.append(f"{provider.name}: {error.diagnostics()}")
                    continue
                self._known.put(
                    digest, administrator, expires_at=min(expires_at, now + REMEMBER_SECONDS)
                )
                return administrator
        raise AdminAuthError("; ".join(reasons) or "no key that could have signed the token")

    async def _candidates(
        self, header: JwsHeader
    ) -> AsyncGenerator[tuple["_IdentityProvider", Sequence[VerificationKey]], None]:
        """Give the providers with keys that may have signed, those first that need no fetch."""
        waiting = []
        for provider in self._providers:
            keys = provider.held(header)
            if keys:
                yield provider, keys
            else:
                waiting.append(provider)
        found = await asyncio.gather(*(provider.find(header) for provider in waiting))
        for provider, keys in zip(waiting, found, strict=True):
            if keys:
                yield provider, keys


class _IdentityProvider:
    """One issuer of administrator tokens, with its keys."""

    def __init__(
        self, config: IdentityProviderConfig, position: int, tls: ssl.SSLContext | None
    ) -> None:
        self.name = config.issuer or f"identity_providers[{position}]"
        self._issuer = config.issuer or None
        self._audience = config.audience or None
        self._sources = []
        if config.public_key_uri:
            self._sources.append(KeySource(config.public_key_uri, parse_pem_key, tls=tls))
        if config.jwk_set_uri:
            self._sources.append(KeySource(config.jwk_set_uri, tls=tls))
        if not self._sources:
            raise ConfigError(
                f"identity_providers[{position}] must name public_key_uri or jwk_set_uri"
            )
        for member, value in (("issuer", self._issuer), ("audience", self._audience)):
            if value is None:
                logger.warning(
                    "administrator tokens of %s are accepted whatever their %s", self.name, member
                )

    def prefetch(self) -> None:
        for source in self._sources:
            source.prefetch()

    async def close(self) -> None:
        for source in self._sources:
            await source.close()

    def held(self, header: JwsHeader) -> Sequence[VerificationKey]:
        """Return the keys that are held and may have signed a token with this header.

        A key that the header itself shows proves nothing and is not looked at.
        """
        keys = [key for source in self._sources for key in source.held(header.kid)]
        return [key for key in keys if key.allows(header.algorithm)]

    async def find(self, header: JwsHeader) -> Sequence[VerificationKey]:
        """Return the keys as :meth:`held`, waiting for a fetch where there are none."""
        keys = await find_keys(self._sources, header.kid)
        return [key for key in keys if key.allows(header.algorithm)]

    async def verify(
        self, jws: CompactJws, header: JwsHeader, keys: Sequence[VerificationKey], now: float
    ) -> tuple[dict[str, Any], float]:
        """Return the claims of a token of this provider, and when it expires.

        Raises:
            MalformedError: another provider's token, or one that is not valid.
        """
        claims = await run(_verify, jws, header, keys)
        expires_at = verify_times(claims, now)
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise MalformedError("the token is of another issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._audience is not None and self._audience not in audiences:
            raise MalformedError("the token is for another audience")
        return claims, expires_at


def _verify(jws: CompactJws, header: JwsHeader, keys: Sequence[VerificationKey]) -> dict[str, Any]:
    for key in keys:
        try:
            verify_signature(jws, header.algorithm, key)
        except MalformedError:
            continue
        return parse_claims(jws.payload)
    raise MalformedError("the token's signature is not valid")


def _administrator(claims: dict[str, Any]) -> Administrator:
    role, subject, issuer = (claims.get(name, "") for name in ("role", "sub", "iss"))
    if not isinstance(role, str) or not role:
        raise MalformedError("the token has no role")
    if not isinstance(subject, str) or not isinstance(issuer, str):
        raise MalformedError("the token's sub or iss is not a string")
    if max(len(role), len(subject), len(issuer)) > MAX_NAME_CHARS:
        raise MalformedError("the token's role, sub or iss is too long")
    return Administrator(subject=subject, role=role, issuer=issuer)
