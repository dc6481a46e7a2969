"""The endpoints below ``/kbs/v0`` that are not plugins.

Each is a method that is given an :class:`Exchange` and answers through it.
"""

import base64
import binascii
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import msgspec
from starlette.types import Scope, Send

from keybroker.api.exchange import (
    Headers,
    cookie,
    header,
    send,
    send_json,
)
from keybroker.api.metrics import Metrics
from keybroker.kbs.broker import Broker, Credentials
from keybroker.kbs.decision import RESOURCE_POLICY_ID
from keybroker.kbs.explain import explain
from keybroker.kbs.plugins.interface import PluginRequest
from keybroker.kbs.sessions import Session
from keybroker.model.errors import (
    KeybrokerError,
    MalformedError,
    MethodNotAllowedError,
    NotFoundError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from keybroker.model.rcar import SESSION_COOKIE, Attestation, Request, parse_attestation
from keybroker.model.strict_json import parse_json, parse_struct

#: A policy text longer than this is a mistake or an attack on the compiler.
MAX_POLICY_BYTES = 256 * 1024


class AttestationPolicyRequest(msgspec.Struct, frozen=True):
    """Body of ``POST /attestation-policy``; ``policy`` is base64 (URL-safe, no padding)."""

    policy_id: str
    policy: str
    type: str = "rego"


class ResourcePolicyRequest(msgspec.Struct, frozen=True):
    """Body of ``POST /resource-policy``."""

    policy: str


class ExplainRequest(msgspec.Struct, frozen=True):
    """Body of ``POST /explain``: a token and the request it would be used for."""

    token: str
    path: str = ""
    plugin: str = "resource"
    method: str = "GET"
    query: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the way to answer it."""

    scope: Scope
    out: Send
    method: str
    rest: tuple[str, ...]
    body: bytes
    secure: bool

    def credentials(self) -> Credentials:
        """Return what the request brought to prove who asks."""
        return Credentials(cookie(self.scope, SESSION_COOKIE), header(self.scope, b"authorization"))


class Endpoints:
    """``auth``, ``attest``, policies, reference values and explanations."""

    def __init__(self, broker: Broker, metrics: Metrics, *, max_attestations: int) -> None:
        self._broker = broker
        self._metrics = metrics
        self._max_attestations = max_attestations
        self._attestations = 0

    async def auth(self, exchange: Exchange) -> None:
        """``POST /auth``: Request → Challenge and cookie."""
        _only_post(exchange)
        self._metrics.auth_requests.inc()
        try:
            request = parse_struct(exchange.body, Request)
            challenge, session, value = await self._broker.auth(request)
        except KeybrokerError:
            self._metrics.auth_errors.inc()
            raise
        self._metrics.auth_successes.inc()
        await send_json(
            exchange.out, challenge, [_set_cookie(session, value, secure=exchange.secure)]
        )

    async def attest(self, exchange: Exchange) -> None:
        """``POST /attest``: Attestation and cookie → token."""
        _only_post(exchange)
        self._metrics.attestation_requests.inc()
        value = cookie(exchange.scope, SESSION_COOKIE) or ""
        try:
            session = await self._broker.open_session(value)
            attestation = parse_attestation(parse_json(exchange.body))
            token = await self._broker.session_token(session)
        except KeybrokerError:
            self._metrics.attestation_errors.inc()
            raise
        if token is None:
            try:
                token = await self._attest(session, attestation)
            except UnauthenticatedError:
                self._metrics.attestation_failures.labels(session.tee).inc()
                raise
            except KeybrokerError:
                self._metrics.attestation_errors.inc()
                raise
            self._metrics.attestation_successes.labels(session.tee).inc()
        await send_json(
            exchange.out, {"token": token}, [_set_cookie(session, value, secure=exchange.secure)]
        )

    async def _attest(self, session: Session, attestation: Attestation) -> str:
        if self._attestations >= self._max_attestations:
            raise TooManyRequestsError(f"{self._attestations} attestations in work")
        self._attestations += 1
        try:
            return await self._broker.attest(session, attestation)
        finally:
            self._attestations -= 1

    async def attestation_policy(self, exchange: Exchange) -> None:
        """``POST /attestation-policy``, ``GET /attestation-policy[/<id>]``."""
        _methods(exchange, *_COLLECTION)
        await self._authorize(exchange)
        attestation = self._attestation()
        if exchange.method == "POST":
            request = parse_struct(exchange.body, AttestationPolicyRequest)
            if request.type not in ("rego", "opa"):
                raise MalformedError(f"unknown policy type {request.type[:16]!r}: use rego")
            await attestation.set_policy(request.policy_id, decode_policy(request.policy))
            await send(exchange.out, 200)
        elif not exchange.rest:
            await send_json(exchange.out, await attestation.policies())
        else:
            await _send_policy(exchange, await attestation.policy("/".join(exchange.rest)))

    async def resource_policy(self, exchange: Exchange) -> None:
        """``POST /resource-policy``, ``GET /resource-policy[/<id>]``."""
        _methods(exchange, *_COLLECTION)
        await self._authorize(exchange)
        policies = self._broker.decisions.policies
        if exchange.method == "POST":
            request = parse_struct(exchange.body, ResourcePolicyRequest)
            await policies.set(RESOURCE_POLICY_ID, decode_policy(request.policy))
            await send(exchange.out, 200)
        elif not exchange.rest:
            await send_json(exchange.out, await policies.ids())
        else:
            await _send_policy(exchange, await policies.source("/".join(exchange.rest)))

    async def reference_value(self, exchange: Exchange) -> None:
        """``POST /reference-value``, ``GET /reference-value/<id>``."""
        _methods(exchange, "POST")
        await self._authorize(exchange)
        attestation = self._attestation()
        if exchange.method == "POST":
            await attestation.register_reference_value(exchange.body)
            await send(exchange.out, 200)
            return
        value = await attestation.query_reference_value("/".join(exchange.rest))
        if value is None:
            raise NotFoundError("no such reference value", detail="no such reference value")
        await send_json(exchange.out, value)

    async def explain(self, exchange: Exchange) -> None:
        """``POST /explain``: would this token get that, and which rule says so? (ours)"""
        _only_post(exchange)
        await self._authorize(exchange)
        request = parse_struct(exchange.body, ExplainRequest)
        await send_json(
            exchange.out,
            await explain(
                self._broker,
                token=request.token,
                plugin=request.plugin,
                request=PluginRequest(
                    request.method,
                    tuple(request.path.split("/")) if request.path else (),
                    request.query,
                ),
            ),
        )

    async def _authorize(self, exchange: Exchange) -> None:
        await self._broker.admin.authorize(
            header(exchange.scope, b"authorization"), exchange.method, exchange.scope["path"]
        )

    def _attestation(self) -> Any:
        if self._broker.attestation is None:
            raise NotFoundError(
                "no attestation service is configured",
                detail="this broker has no attestation service",
            )
        return self._broker.attestation


def decode_policy(encoded: str) -> str:
    """Decode a policy as it travels: base64, either alphabet, with or without padding.

    Raises:
        MalformedError: not base64, not UTF-8, empty, or longer than :data:`MAX_POLICY_BYTES`.
    """
    if len(encoded) > MAX_POLICY_BYTES * 4 // 3 + 4:
        raise MalformedError(f"the policy is longer than {MAX_POLICY_BYTES} bytes")
    text = encoded.rstrip("=").translate({ord("+"): "-", ord("/"): "_"})
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        policy = raw.decode("utf-8")
    except (binascii.Error, ValueError):
        raise MalformedError("policy must be base64url of UTF-8 text") from None
    if not policy.strip():
        raise MalformedError("the policy is empty")
    return policy


def _set_cookie(session: Session, value: str, *, secure: bool) -> tuple[bytes, bytes]:
    attributes = (
        f"{SESSION_COOKIE}={value}; Path=/kbs; HttpOnly; SameSite=Strict;"
        f" Expires={formatdate(session.expires_at, usegmt=True)}"
    )
    if secure:
        attributes += "; Secure"
    return b"set-cookie", attributes.encode("ascii")


async def _send_policy(exchange: Exchange, source: str | None) -> None:
    if source is None:
        raise NotFoundError("no such policy", detail="no such policy")
    headers: Headers = []
    await send(exchange.out, 200, source.encode(), "text/plain; charset=utf-8", headers)


#: What can be done with a collection, and not with one of its members, which are only read.
_COLLECTION = ("GET", "POST")


def _methods(exchange: Exchange, *methods: str) -> None:
    allowed = methods if not exchange.rest else ("GET",)
    if exchange.method not in allowed:
        raise MethodNotAllowedError(exchange.method, allowed=allowed)


def _only_post(exchange: Exchange) -> None:
    if exchange.rest:
        raise NotFoundError("a longer path than this endpoint has", detail="no such path")
    _methods(exchange, "POST")
