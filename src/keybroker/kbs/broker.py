"""The broker: the way of a secret from a request to a sealed answer.

The HTTP face decodes and encodes; everything that matters happens here, in this order:

* ``auth``: a challenge and its cookie, no state;
* ``attest``: cookie → evidence → attestation service → token, kept under the session;
* ``call``: token (401), policy (403), plugin (404), seal.
"""

import hmac
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keybroker.attestation_service.request import VerificationRequest
from keybroker.kbs.admin import AdminAccess
from keybroker.kbs.attestation import AttestationBackend
from keybroker.kbs.decision import Decisions, ResourceRequest
from keybroker.kbs.plugins.interface import Access, Plugin, PluginAnswer, PluginRequest
from keybroker.kbs.sessions import Session, SessionError, Sessions, challenge_nonce
from keybroker.model.errors import (
    MalformedError,
    PluginNotFoundError,
    ProtocolVersionError,
    TokenNotFoundError,
)
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Attestation,
    Challenge,
    Request,
    device_runtime_data,
    parse_tee,
    primary_runtime_data,
)
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee
from keybroker.release.jwe import seal_to_tee
from keybroker.release.tee_key import TeePublicKey, parse_tee_key
from keybroker.tokens.verifier import TokenVerifier, VerifiedToken

logger = logging.getLogger(__name__)

#: The policy that built-in attestation appraises by, as in Trustee.
ATTESTATION_POLICY_IDS = ("default",)

#: More devices than any guest has; each costs a verification.
MAX_DEVICES = 32

#: TEE keys remembered by token, parsed.
REMEMBERED_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brought to prove who asks."""

    cookie: str | None = field(repr=False, default=None)
    authorization: str | None = field(repr=False, default=None)

    def bearer(self) -> str | None:
        """Return the token of ``Authorization: Bearer``, or None."""
        if self.authorization is None:
            return None
        scheme, _, token = self.authorization.partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token else None


class Broker:
    """The relying party.

    Args:
        attestation: the attestation service, or None for a broker that only releases (passport).
        sessions: likewise.
        token_verifier: decides which attestation tokens count.
        decisions: the resource policy.
        admin: who administrates.
        plugins: what is served, by name.
        allow_rsa1_5: whether RSA1_5 keys are encrypted to (deprecated, off by default).
    """

    def __init__(
        self,
        *,
        attestation: AttestationBackend | None,
        sessions: Sessions | None,
        token_verifier: TokenVerifier,
        decisions: Decisions,
        admin: AdminAccess,
        plugins: Mapping[str, Plugin],
        allow_rsa1_5: bool = False,
    ) -> None:
        self.attestation = attestation
        self.sessions = sessions
        self.token_verifier = token_verifier
        self.decisions = decisions
        self.admin = admin
        self.plugins = plugins
        self._allow_rsa1_5 = allow_rsa1_5
        self._tee_keys: dict[bytes, TeePublicKey] = {}

    async def auth(self, request: Request) -> tuple[Challenge, Session, str]:
        """Challenge a guest.

        Returns:
            The challenge, the session and the sealed cookie value.

        Raises:
            ProtocolVersionError: the guest speaks another version.
            MalformedError: unknown TEE, one that is not served, or no common hash algorithm.
        """
        attestation, sessions = self._attesting()
        if request.version != PROTOCOL_VERSION:
            raise ProtocolVersionError(
                f"KBS protocol version mismatch: this broker speaks {PROTOCOL_VERSION},"
                f" the request says {request.version[:32]!r}"
            )
        tee = parse_tee(request.tee)
        algorithm, extra_params = attestation.challenge_parameters(tee, request.extra_params)
        nonce = challenge_nonce(os.urandom(NONCE_BYTES))
        session, cookie = await sessions.issue(tee.value, nonce, algorithm.value)
        return Challenge(nonce=nonce, extra_params=extra_params), session, cookie

    async def open_session(self, cookie: str | None) -> Session:
        """Open the session a cookie holds.

        Raises:
            SessionError: there is none that is valid here.
        """
        _, sessions = self._attesting()
        return await sessions.open(cookie)

    async def session_token(self, session: Session) -> str | None:
        """Return the token of a session that has attested already."""
        _, sessions = self._attesting()
        return await sessions.token(session)

    async def attest(self, session: Session, attestation: Attestation) -> str:
        """Verify evidence and return the attestation token.

        Raises:
            EvidenceError: the evidence does not verify.
            SessionError: the nonce is not the session's.
            MalformedError: some part cannot be parsed.
        """
        backend, sessions = self._attesting()
        runtime_data = attestation.runtime_data
        if not hmac.compare_digest(runtime_data.nonce.encode(), session.nonce.encode()):
            raise SessionError("the nonce is not the one of this session's challenge")
        # A key that nothing can be encrypted to is refused now, not at the first release.
        parse_tee_key(runtime_data.tee_pubkey, allow_rsa1_5=self._allow_rsa1_5)
        requests = _verification_requests(session, attestation)
        token = await backend.evaluate(requests, ATTESTATION_POLICY_IDS)
        return await sessions.attested(session, token)

    def plugin(self, name: str) -> Plugin:
        """Return a plugin.

        Raises:
            PluginNotFoundError: none of that name is configured.
        """
        plugin = self.plugins.get(name)
        if plugin is None:
            raise PluginNotFoundError("no such plugin")
        return plugin

    async def call(
        self, plugin: Plugin, request: PluginRequest, credentials: Credentials, url_path: str
    ) -> PluginAnswer:
        """Let a request through to its plugin, or not; seal what must be sealed.

        Raises:
            AdminAuthError: an administrator's request without a valid administrator token.
            TokenNotFoundError, TokenVerifierError, SessionError: no valid attestation.
            PolicyDenyError: the resource policy, or an administrator's access rules, say no.
            NotFoundError: the plugin has nothing there.
        """
        if plugin.access(request) is Access.ADMINISTRATOR:
            await self.admin.authorize(credentials.authorization, request.method, url_path)
            return await plugin.handle(request)
        token = await self.verified_token(credentials)
        await self.decisions.require(
            token,
            ResourceRequest(
                plugin.name, request.path, tuple(sorted(request.query.items())), request.method
            ),
        )
        answer = await plugin.handle(
            PluginRequest(
                request.method, request.path, request.query, request.body, init_data_claims(token)
            )
        )
        if not answer.sealed:
            return answer
        sealed = seal_to_tee(self._tee_key(token), answer.body)
        return PluginAnswer(sealed, "application/json", sealed=True)

    async def verified_token(self, credentials: Credentials) -> VerifiedToken:
        """Verify the token of the session, or the bearer token.

        A session that has not attested (or no valid one) falls back to the bearer token, as guests
        rely on.

        Raises:
            TokenNotFoundError: neither is there.
            TokenVerifierError: the token does not verify here.
        """
        if credentials.cookie is not None and self.sessions is not None:
            token = None
            try:
                token = await self.sessions.token(await self.sessions.open(credentials.cookie))
            except SessionError:
                if credentials.bearer() is None:
                    raise
            if token is not None:
                return await self.token_verifier.verify(token)
        bearer = credentials.bearer()
        if bearer is None:
            raise TokenNotFoundError("neither an attested session nor a bearer token")
        return await self.token_verifier.verify(bearer)

    def _tee_key(self, token: VerifiedToken) -> TeePublicKey:
        key = self._tee_keys.get(token.digest)
        if key is None:
            key = parse_tee_key(token.tee_public_key(), allow_rsa1_5=self._allow_rsa1_5)
            if len(self._tee_keys) >= REMEMBERED_KEYS:
                self._tee_keys.pop(next(iter(self._tee_keys)))
            self._tee_keys[token.digest] = key
        return key

    def _attesting(self) -> tuple[AttestationBackend, Sessions]:
        if self.attestation is None or self.sessions is None:
            raise PluginNotFoundError(
                "no attestation service is configured",
                detail="this broker does not attest; bring a token of the one that does",
            )
        return self.attestation, self.sessions


def init_data_claims(token: VerifiedToken) -> Any:
    """Return the verified init-data claims of the primary device, or None."""
    value: Any = token.claims
    for name in ("submods", "cpu0", "ear.veraison.annotated-evidence", "init_data_claims"):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _verification_requests(session: Session, attestation: Attestation) -> list[VerificationRequest]:
    evidence = attestation.tee_evidence
    algorithm = HashAlgorithm(session.hash_algorithm)
    requests = [
        VerificationRequest(
            tee=Tee(session.tee),
            evidence=evidence.primary_evidence,
            runtime_data=primary_runtime_data(
                attestation.runtime_data, evidence.additional_evidence
            ),
            hash_algorithm=algorithm,
            init_data=attestation.init_data,
        )
    ]
    if evidence.additional_evidence:
        devices = parse_json(evidence.additional_evidence.encode("utf-8", "surrogatepass"))
        if not isinstance(devices, dict):
            raise MalformedError("additional_evidence must be a JSON object: tee → evidence")
        if len(devices) > MAX_DEVICES:
            raise MalformedError(f"additional_evidence holds more than {MAX_DEVICES} devices")
        runtime_data = device_runtime_data(attestation.runtime_data)
        requests += [
            VerificationRequest(
                tee=parse_tee(name),
                evidence=device_evidence,
                runtime_data=runtime_data,
                hash_algorithm=algorithm,
                init_data=None,
            )
            for name, device_evidence in devices.items()
        ]
    return requests
