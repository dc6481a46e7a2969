"""Keys that an issuer publishes, as a JWK set or in PEM: loaded, kept, refreshed, and found.

A set is used as long as it is fresh; then it is still used while it is fetched anew in the
background. A key that is not in it has the set fetched at once, though not more often than
:data:`MIN_INTERVAL_SECONDS`, however many tokens ask. When the issuer's server is down, the set
that is held serves on, up to :data:`STALE_SECONDS` after it was last seen.
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keybroker.model.errors import ConfigError, MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.tokens.fetch import MAX_DOCUMENT_BYTES, FetchError, fetch
from keybroker.tokens.jwk import check_public_key, thumbprint
from keybroker.tokens.jws import VerificationKey, parse_verification_key

logger = logging.getLogger(__name__)

#: How long a set is fresh where its server does not say; and the bounds of what it may say.
FRESH_SECONDS = 3600.0
MIN_FRESH_SECONDS = 60.0
MAX_FRESH_SECONDS = 24 * 3600.0

#: How long after its last fetch a set is used though its server has not answered since. Longer than
#: an outage, shorter than the time in which a stolen key must have stopped working.
STALE_SECONDS = 24 * 3600.0

#: Least time between two fetches of one set: tokens with invented key ids cannot make more.
MIN_INTERVAL_SECONDS = 30.0

#: Most keys in one set; issuers publish two to ten.
MAX_KEYS = 200

#: Time for loading a set with all its steps: what a token with an unknown key can be made to wait.
LOAD_SECONDS = 10.0

_DISCOVERY_SUFFIX = "/.well-known/openid-configuration"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class JwkSet:
    """Keys found by their ``kid`` or by their RFC 7638 thumbprint."""

    def __init__(self, keys: Iterable[tuple[str | None, VerificationKey]]) -> None:
        self._by_kid: dict[str, tuple[VerificationKey, ...]] = {}
        self._by_thumbprint: dict[str, VerificationKey] = {}
        for kid, key in keys:
            if kid is not None:
                self._by_kid[kid] = (*self._by_kid.get(kid, ()), key)
            self._by_thumbprint.setdefault(thumbprint(key.key), key)

    def __len__(self) -> int:
        return len(self._by_thumbprint)

    def find(self, kid: str | None, print_: str | None = None) -> tuple[VerificationKey, ...]:
        """Return the keys of that id; else the key of that thumbprint, alone; else nothing."""
        if kid is not None and kid in self._by_kid:
            return self._by_kid[kid]
        key = self._by_thumbprint.get(print_) if print_ is not None else None
        return () if key is None else (key,)


def parse_jwk_set(raw: bytes) -> JwkSet:
    """Read a JWK set.

    Keys that no accepted algorithm can use (symmetric ones, other curves, encryption keys) are
    passed over: sets hold keys for many purposes.

    Raises:
        MalformedError: not a JWK set, or too many keys.

    Specification: RFC 7517, section 5.
    """
    value = parse_json(raw)
    members = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(members, list):
        raise MalformedError("not a JWK set")
    if len(members) > MAX_KEYS:
        raise MalformedError(f"a JWK set has more than {MAX_KEYS} keys")
    return JwkSet(_usable(members))


def _usable(members: list[Any]) -> Iterable[tuple[str | None, VerificationKey]]:
    for jwk in members:
        if not isinstance(jwk, dict):
            continue
        try:
            key = parse_verification_key(jwk)
        except MalformedError:
            continue
        kid = jwk.get("kid")
        yield (kid if isinstance(kid, str) else None), key


class PemKey:
    """One public key that has no id: it may have signed any token."""

    def __init__(self, key: VerificationKey) -> None:
        self._keys = (key,)

    def __len__(self) -> int:
        return 1

    def find(self, kid: str | None, print_: str | None = None) -> tuple[VerificationKey, ...]:  # noqa: ARG002
        """Return the key."""
        return self._keys


def parse_pem_key(raw: bytes) -> PemKey:
    """Read a public key in PEM (SubjectPublicKeyInfo).

    Raises:
        MalformedError: not one, or of a kind or size that is not accepted.
    """
    try:
        key = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedError("not a public key in PEM") from None
    return PemKey(VerificationKey(check_public_key(key)))


def local_path(source: str) -> str | None:
    """Return the path of a source that is a file, or None where it is ``https://``.

    Raises:
        ConfigError: another scheme.
    """
    if source.lower().startswith("https://"):
        return None
    if source.lower().startswith("file://"):
        return unquote(urlsplit(source).path)
    if _SCHEME.match(source):
        raise ConfigError(f"{source}: only https://, file:// and local paths are read")
    return source


class KeySource:
    """One configured source of keys: an ``https://`` address, a ``file://`` one, or a local path.

    A file is read when this is made, so that a wrong path is found at start.

    Args:
        source: where the keys are.
        parse: reads what is found there; for JWK sets, an ``https://`` source may also be an issuer
            whose discovery document names the set.
        tls: whom to trust when fetching; None: the authorities of the system.

    Raises:
        ConfigError: another scheme, or a file that cannot be read or holds something else.
    """

    def __init__(
        self,
        source: str,
        parse: Callable[[bytes], JwkSet | PemKey] = parse_jwk_set,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.source = source
        self._parse = parse
        self._path = local_path(source)
        self._tls = tls
        self._set: JwkSet | PemKey | None = None
        self._loaded_at = 0.0
        self._fresh_until = 0.0
        self._tried_at = float("-inf")
        self._loading: asyncio.Task[None] | None = None
        if self._path is not None:
            try:
                self._keep(parse(_read(self._path)), None)
            except MalformedError as error:
                raise ConfigError(f"keys from {source}: {error.diagnostics()}") from None

    def held(self, kid: str | None, print_: str | None = None) -> Sequence[VerificationKey]:
        """Return the keys that may have signed a token with this ``kid`` or header key.

        Never waits; what is not fresh any more is fetched in the background.
        """
        if time.monotonic() > self._fresh_until and self._may_load():
            self._start_loading()
        held = self._held()
        return held.find(kid, print_) if held is not None else ()

    async def find(self, kid: str | None, print_: str | None = None) -> Sequence[VerificationKey]:
        """Return the keys as :meth:`held`, waiting for a fetch where no such key is held."""
        keys = self.held(kid, print_)
        if not keys and self._may_load():
            # Shielded: one impatient client must not cancel the fetch that others wait for.
            await asyncio.shield(self._start_loading())
            keys = self.held(kid, print_)
        return keys

    def prefetch(self) -> None:
        """Begin to load a set that is not held; a server that does not answer is only logged."""
        if self._held() is None:
            self._start_loading()

    async def close(self) -> None:
        """Give up a fetch that is under way."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    def _held(self) -> JwkSet | PemKey | None:
        if self._set is None or time.monotonic() > self._loaded_at + STALE_SECONDS:
            return None
        return self._set

    def _may_load(self) -> bool:
        # A fetch under way may always be joined.
        return (
            self._loading is not None or time.monotonic() >= self._tried_at + MIN_INTERVAL_SECONDS
        )

    def _start_loading(self) -> "asyncio.Task[None]":
        if self._loading is None:
            self._tried_at = time.monotonic()
            self._loading = asyncio.get_running_loop().create_task(self._refresh())
        return self._loading

    async def _refresh(self) -> None:
        try:
            if self._path is not None:
                raw = await asyncio.to_thread(_read, self._path)
                self._keep(self._parse(raw), None)
            else:
                async with asyncio.timeout(LOAD_SECONDS):
                    self._keep(*await self._fetch())
        except TimeoutError:
            logger.warning("keys from %s were not loaded: it took too long", self.source)
        except (FetchError, MalformedError, ConfigError) as error:
            logger.warning("keys from %s were not loaded: %s", self.source, error.diagnostics())
        finally:
            self._loading = None

    async def _fetch(self) -> tuple[JwkSet | PemKey, int | None]:
        try:
            document = await fetch(self.source, tls=self._tls)
            keys = self._parse(document.body)
            if len(keys):
                return keys, document.max_age
        except (FetchError, MalformedError) as error:
            if self._parse is not parse_jwk_set:
                raise
            logger.debug("%s is not a JWK set itself: %s", self.source, error.diagnostics())
        # OpenID Connect Discovery 1.0, section 4.
        address = self.source.rstrip("/") + _DISCOVERY_SUFFIX
        discovery = parse_json((await fetch(address, tls=self._tls)).body)
        target = discovery.get("jwks_uri") if isinstance(discovery, dict) else None
        if not isinstance(target, str):
            raise MalformedError("the discovery document names no jwks_uri")
        document = await fetch(target, tls=self._tls)
        return self._parse(document.body), document.max_age

    def _keep(self, keys: JwkSet | PemKey, max_age: int | None) -> None:
        fresh = FRESH_SECONDS if max_age is None else float(max_age)
        self._set = keys
        self._loaded_at = time.monotonic()
        self._fresh_until = self._loaded_at + min(max(fresh, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)


async def find_keys(
    sources: Sequence[KeySource], kid: str | None, print_: str | None = None
) -> Sequence[VerificationKey]:
    """Return the keys of all sources that may have signed a token.

    A source whose server is down holds nobody up whose key another source has: keys that are held
    are returned at once, else those of the first source that finds any.
    """
    if held := [key for source in sources for key in source.held(kid, print_)]:
        return held
    searches = [asyncio.ensure_future(source.find(kid, print_)) for source in sources]
    try:
        for search in asyncio.as_completed(searches):
            if keys := await search:
                return keys
    finally:
        for unfinished in searches:
            unfinished.cancel()
    return ()


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise ConfigError(f"{path}: too large")
    return raw
