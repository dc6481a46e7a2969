"""Intel Trust Authority: its nonces, its appraisal of evidence, and its tokens.

Tokens are signed with RS256 or PS384 by a key that the portal publishes (``<portal>/certs``, a JWK
set) or that an operator laid into a folder as a certificate. Which key signed is said by ``kid``;
a certificate has none, so every certificate of the folder is tried.

Specification: Intel Trust Authority REST API, ``/appraisal/v1`` and ``/appraisal/v2``.
"""

import asyncio
import base64
import hashlib
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keybroker.config.key_transfer import ApiVersion, TrustAuthorityConfig
from keybroker.key_transfer.errors import TrustAuthorityError
from keybroker.key_transfer.nonces import Nonce, parse_nonce
from keybroker.key_transfer.transfer_policy import SGX, TDX, TransferPolicy
from keybroker.model.errors import (
    ConfigError,
    EvidenceError,
    MalformedError,
    TokenVerifierError,
)
from keybroker.model.strict_json import parse_json
from keybroker.tokens.claims import parse_claims, verify_times
from keybroker.tokens.jws import (
    VerificationKey,
    parse_compact,
    parse_header,
    verify_signature,
)
from keybroker.tokens.key_sources import KeySource
from keybroker.tokens.remembered import Remembered
from keybroker.tokens.x5c import leaf_key, load_certificates, verify_chain
from keybroker.workbench import run

#: What its tokens are signed with; others that the token package knows are not its.
ALGORITHMS = ("RS256", "PS384")

#: Verified tokens remembered until they expire: a workload brings one for all its keys.
REMEMBERED_TOKENS = 2048
REMEMBERED_TOKEN_CHARS = 4 * 1024 * 1024

#: Answers of its API have a few KiB.
MAX_ANSWER_BYTES = 256 * 1024

#: Answers that say that the evidence or the nonce is at fault, not the service.
_REFUSALS = (400, 422)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a client sends in background mode.

    Attributes:
        quote: the TEE's evidence.
        user_data: what the attester holds, bound by the evidence after the nonce.
        event_log: of the TEE's boot; empty where there is none.
    """

    quote: bytes = field(repr=False)
    user_data: bytes = field(repr=False)
    event_log: bytes = field(default=b"", repr=False)


class TrustAuthority:
    """A client of Trust Authority and a verifier of its tokens.

    Raises:
        ConfigError: a folder of certificates cannot be read, or one in it is not trusted.
    """

    def __init__(self, config: TrustAuthorityConfig) -> None:
        self._config = config
        authorities = _read_folder(config.trusted_ca_certs, "trusted_ca_certs")
        self._tls = _tls_context(authorities)
        self._source: KeySource | None = None
        if config.portal_url:
            self._source = KeySource(f"{config.portal_url.rstrip('/')}/certs", tls=self._tls)
        signers = _read_folder(config.trusted_jwt_certs, "trusted_jwt_certs")
        self._signers = [(_key(signer, authorities), signer) for signer in signers]
        if self._source is None and not self._signers:
            raise ConfigError(
                "key_transfer.trust_authority: neither portal_url nor trusted_jwt_certs says"
                " whose tokens are trusted"
            )
        self._http: httpx.AsyncClient | None = None
        self._verified: Remembered[bytes, Mapping[str, Any]] = Remembered(
            REMEMBERED_TOKENS, REMEMBERED_TOKEN_CHARS
        )

    @property
    def attests(self) -> bool:
        """Whether evidence can be sent to it, rather than tokens of it verified alone."""
        return self._config.api_key is not None

    def start(self) -> None:
        """Begin to fetch the portal's keys, without waiting for them."""
        if self._source is not None:
            self._source.prefetch()

    async def close(self) -> None:
        """Release connections."""
        if self._source is not None:
            await self._source.close()
        if self._http is not None:
            await self._http.aclose()

    async def nonce(self, request_id: str) -> Nonce:
        """Get a nonce.

        Raises:
            TrustAuthorityError: the service failed.
        """
        answer = await self._call("GET", "nonce", request_id)
        try:
            return parse_nonce(answer)
        except MalformedError:
            raise TrustAuthorityError("the attestation service gives no nonce") from None

    async def appraise(
        self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy, request_id: str
    ) -> str:
        """Have evidence appraised; return the token, unverified.

        Raises:
            EvidenceError: the service refuses evidence or nonce.
            TrustAuthorityError: the service failed.
        """
        answer = await self._call(
            "POST", "attest", request_id, self._request(evidence, nonce, policy)
        )
        token = answer.get("token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise TrustAuthorityError("the attestation service gives no token")
        return token

    async def verify(self, token: str) -> Mapping[str, Any]:
        """Verify a token; return its claims.

        Raises:
            TokenVerifierError: malformed, out of its time, of another issuer, or signed by nobody
                who is trusted.
        """
        now = time.time()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest, now)
        if known is not None:
            return known
        try:
            jws = parse_compact(token)
            header = parse_header(jws.header_segment)
            if header.algorithm.name not in ALGORITHMS:
                raise MalformedError("the token is not signed with RS256 or PS384")
            if header.kid is None:
                raise MalformedError("the token names no key")
            keys = await self._keys(header.kid)
            if not keys:
                raise MalformedError("no trusted key signed the token")
            verified = False
            for key in keys:
                try:
                    await run(verify_signature, jws, header.algorithm, key)
                except MalformedError:
                    continue
                verified = True
                break
            if not verified:
                raise MalformedError("the token's signature is not valid")
            claims = parse_claims(jws.payload)
            expires_at = verify_times(claims, now)
            if self._config.issuers and claims.get("iss") not in self._config.issuers:
                raise MalformedError("the token is of another issuer")
        except MalformedError as error:
            raise TokenVerifierError(error.diagnostics()) from None
        self._verified.put(digest, claims, expires_at=expires_at, weight=len(token))
        return claims

    async def _keys(self, kid: str) -> Sequence[VerificationKey]:
        found: list[VerificationKey] = []
        if self._source is not None:
            found += await self._source.find(kid)
        moment = datetime.now(UTC)
        found += [
            key
            for key, signer in self._signers
            if signer.not_valid_before_utc <= moment <= signer.not_valid_after_utc
        ]
        return found

    def _request(self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy) -> dict[str, Any]:
        octets = {"quote": evidence.quote, "runtime_data": evidence.user_data}
        if evidence.event_log:
            octets["event_log"] = evidence.event_log
        own: dict[str, Any] = {name: _encode(value) for name, value in octets.items()}
        own["verifier_nonce"] = nonce.to_json()
        policy_ids = sorted(policy.policy_ids)
        if self._config.api_version is ApiVersion.V1:
            return {**own, "policy_ids": policy_ids} if policy_ids else own
        if policy.attestation_type not in (SGX, TDX):
            raise EvidenceError(f"Trust Authority attests no {policy.attestation_type}")
        request: dict[str, Any] = {policy.attestation_type.lower(): own}
        if policy_ids:
            request["policy_ids"] = policy_ids
        return request

    async def _call(self, method: str, name: str, request_id: str, body: Any = None) -> Any:
        config = self._config
        if config.api_key is None:
            raise TrustAuthorityError("no API key for the attestation service is configured")
        if self._http is None:
            self._http = httpx.AsyncClient(verify=self._tls, timeout=config.timeout_seconds)
        url = f"{config.api_url.rstrip('/')}/appraisal/{config.api_version.value}/{name}"
        headers = {
            "x-api-key": config.api_key.reveal(),
            "accept": "application/json",
            "accept-encoding": "identity",
            "request-id": request_id,
        }
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(config.timeout_seconds),
                self._http.stream(method, url, headers=headers, json=body) as response,
            ):
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise TrustAuthorityError("the attestation service answers too much")
        except (TimeoutError, httpx.TimeoutException):
            raise TrustAuthorityError("the attestation service does not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TrustAuthorityError(
                "the attestation service cannot be reached", f"{type(error).__name__}: {error}"
            ) from None
        if method == "POST" and response.status_code in _REFUSALS:
            raise EvidenceError(
                f"Trust Authority answers {response.status_code}: {_excerpt(answer)}"
            )
        if response.status_code != httpx.codes.OK:
            raise TrustAuthorityError(
                "the attestation service refuses the broker",
                f"Trust Authority answers {response.status_code}: {_excerpt(answer)}",
            )
        try:
            return parse_json(bytes(answer))
        except MalformedError:
            raise TrustAuthorityError("the attestation service answers nonsense") from None


def _encode(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _excerpt(answer: bytearray) -> str:
    text = bytes(answer[:200]).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text)


def _read_folder(path: str | None, name: str) -> list[x509.Certificate]:
    if path is None:
        return []
    found: list[x509.Certificate] = []
    try:
        for file in sorted(Path(path).iterdir()):
            if file.suffix.lower() in (".pem", ".crt", ".cer", ".cert") and file.is_file():
                found += load_certificates(file.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"key_transfer.trust_authority.{name}: {error.strerror}") from None
    except MalformedError as error:
        raise ConfigError(
            f"key_transfer.trust_authority.{name}: {file}: {error.diagnostics()}"
        ) from None
    return found


def _key(signer: x509.Certificate, authorities: Sequence[x509.Certificate]) -> VerificationKey:
    try:
        if authorities:
            verify_chain(signer, (), authorities)
        return VerificationKey(leaf_key(signer))
    except MalformedError as error:
        subject = signer.subject.rfc4514_string()
        raise ConfigError(
            f"key_transfer.trust_authority.trusted_jwt_certs: {subject}: {error.diagnostics()}"
        ) from None


def _tls_context(authorities: Sequence[x509.Certificate]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for authority in authorities:
        context.load_verify_locations(cadata=authority.public_bytes(Encoding.PEM).decode("ascii"))
    return context
