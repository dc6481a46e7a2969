"""The ASGI application of ``/kbs/v0``: takes a request apart and hands it to its endpoint."""

import asyncio
import logging
import os
import re
import time

from starlette.types import Message, Receive, Scope, Send

from keybroker.api.errors import send_error, send_internal_error
from keybroker.api.exchange import BodyLimits, query, read_body, send
from keybroker.api.kbs_v0.endpoints import Endpoints, Exchange
from keybroker.api.metrics import Metrics
from keybroker.kbs.broker import Broker
from keybroker.kbs.plugins.interface import PluginRequest
from keybroker.model.errors import (
    KeybrokerError,
    NotFoundError,
    PolicyDenyError,
    PolicyEngineError,
)

logger = logging.getLogger(__name__)

#: Where the face is mounted.
PREFIX = "/kbs/v0"

#: Segments that are neither empty nor ``.`` nor ``..``, of visible ASCII without escapes.
_PATH = re.compile(rb"/kbs/v0(?:/(?!\.{1,2}(?:/|$))[!-$&-.0-~]+)+")
_PREFIX_SEGMENTS = PREFIX.count("/") + 1

#: Longer than any path of the protocol: a plugin, and three names of a resource.
MAX_PATH_LENGTH = 1024


class KbsFace:
    """The Key Broker Service over HTTP.

    Args:
        broker: what answers.
        metrics: what counts.
        limits: size and time of a request's body.
        max_attestations: attestations in work at once in this process; more are told to come back.
        secure: whether clients reach this process by TLS (the cookie is then ``Secure``).
    """

    def __init__(
        self,
        broker: Broker,
        metrics: Metrics,
        *,
        limits: BodyLimits,
        max_attestations: int,
        secure: bool,
    ) -> None:
        self._broker = broker
        self._metrics = metrics
        self._limits = limits
        self._secure = secure
        endpoints = Endpoints(broker, metrics, max_attestations=max_attestations)
        self._endpoints = {
            "auth": endpoints.auth,
            "attest": endpoints.attest,
            "attestation-policy": endpoints.attestation_policy,
            "resource-policy": endpoints.resource_policy,
            "reference-value": endpoints.reference_value,
            "explain": endpoints.explain,
        }

    async def __call__(self, scope: Scope, receive: Receive, out: Send) -> None:
        """Handle one request."""
        metrics = self._metrics
        started = time.perf_counter()
        metrics.requests.inc()
        metrics.active.inc()
        answered = False

        async def counted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
            else:
                body = message.get("body", b"")
                metrics.response_size.observe(len(body) if isinstance(body, bytes) else 0)
            await out(message)

        try:
            await self._dispatch(scope, receive, counted)
        except KeybrokerError as error:
            if not answered:
                await send_error(counted, error, request_id=_request_id())
        except asyncio.CancelledError:
            raise
        except Exception:
            if not answered:
                await send_internal_error(counted, _request_id())
        finally:
            metrics.active.dec()
            metrics.duration.observe(time.perf_counter() - started)

    async def _dispatch(self, scope: Scope, receive: Receive, out: Send) -> None:
        method = scope["method"]
        segments = _segments(scope)
        body = await read_body(scope, receive, self._limits)
        self._metrics.request_size.observe(len(body))
        name, rest = segments[0], segments[1:]
        endpoint = self._endpoints.get(name)
        if endpoint is not None:
            await endpoint(Exchange(scope, out, method, rest, body, self._secure))
            return
        plugin = self._broker.plugin(name)
        exchange = Exchange(scope, out, method, rest, body, self._secure)
        request = PluginRequest(method, rest, query(scope), body)
        try:
            answer = await self._broker.call(plugin, request, exchange.credentials(), scope["path"])
        except PolicyDenyError:
            self._metrics.policy_evaluations.inc()
            self._metrics.policy_violations.inc()
            raise
        except PolicyEngineError:
            self._metrics.policy_evaluations.inc()
            self._metrics.policy_errors.inc()
            raise
        if answer.sealed:
            self._metrics.policy_evaluations.inc()
            self._metrics.policy_approvals.inc()
        if name == "resource" and rest:
            counter = self._metrics.resource(method, "/".join(rest))
            if counter is not None:
                counter.inc()
        await send(out, 200, answer.body, answer.media_type)


def _segments(scope: Scope) -> tuple[str, ...]:
    """Take the path apart as it was sent.

    No name of the protocol needs an escape, so an escaped path is a trick (``%2f``, ``%00``,
    ``%2e%2e``) or a mistake: there is nothing under it.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    if len(raw) > MAX_PATH_LENGTH or not _PATH.fullmatch(raw):
        raise NotFoundError("a path that no name of the protocol makes", detail="no such path")
    segments: list[str] = scope["path"].split("/")
    return tuple(segments[_PREFIX_SEGMENTS:])


def _request_id() -> str:
    return os.urandom(8).hex()
