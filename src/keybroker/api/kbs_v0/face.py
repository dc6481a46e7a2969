"""The ASGI application of ``/kbs/v0``: takes a request apart and hands it to its endpoint."""

from starlette.types import Receive, Scope, Send

from keybroker.api.exchange import BodyLimits, query, read_body, send
from keybroker.api.face import Face, segments_below
from keybroker.api.kbs_v0.endpoints import Endpoints, Exchange
from keybroker.api.metrics import Metrics
from keybroker.kbs.broker import Broker
from keybroker.kbs.plugins.interface import PluginRequest
from keybroker.model.errors import PolicyDenyError, PolicyEngineError

#: Where the face is mounted.
PREFIX = "/kbs/v0"

_BASE = PREFIX.encode("ascii")


class KbsFace(Face):
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
        super().__init__(metrics)
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

    async def _dispatch(self, scope: Scope, receive: Receive, out: Send) -> None:
        method = scope["method"]
        segments = segments_below(scope, _BASE)
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
