"""Why a token would, or would not, get a resource: told to an administrator, never to a guest.

Two policies stand between evidence and a secret. The attestation policy turned the claims into a
trust vector; the resource policy decided on that. Both are asked again, with the claims that the
token carries, and each rule that did not hold names the first of its expressions that failed.
"""

from collections.abc import Mapping
from typing import Any

from keybroker.kbs.broker import Broker
from keybroker.kbs.decision import RESOURCE_POLICY_ID, ResourceRequest
from keybroker.kbs.plugins.interface import Access, PluginRequest
from keybroker.model.errors import (
    MalformedError,
    NotFoundError,
    PolicyDenyError,
    UnauthenticatedError,
)
from keybroker.model.tee import Tee
from keybroker.policy.explain import RuleTrace
from keybroker.policy.explain import explain as explain_policy

#: Trust claims of these values assert nothing bad (AR4SI: none and affirming tiers).
_FINE = range(-32, 32)


async def explain(
    broker: Broker, *, token: str, plugin: str, request: PluginRequest
) -> dict[str, Any]:
    """Explain what would happen to a request with a token.

    Returns:
        ``allowed``; ``exists`` (null where the request is not allowed or not a read);
        ``appraisal`` by submodule: status, trust vector, and the rules of the attestation policy
        at fault; ``rules`` of the resource policy at fault.

    Raises:
        MalformedError: the token is not valid here.
        PluginNotFoundError: no such plugin.
    """
    served = broker.plugin(plugin)
    try:
        verified = await broker.token_verifier.verify(token)
    except UnauthenticatedError as error:
        raise MalformedError(
            error.diagnostics(), detail=f"the token is not valid here: {error.diagnostics()}"
        ) from None
    asked = ResourceRequest(
        plugin, request.path, tuple(sorted(request.query.items())), request.method
    )
    allowed = True
    rules: list[RuleTrace] = []
    try:
        await broker.decisions.require(verified, asked)
    except PolicyDenyError:
        allowed = False
        source = await broker.decisions.policies.source(RESOURCE_POLICY_ID)
        traces = await explain_policy(source or "", verified.claims, request=asked.as_data())
        rules = [trace for trace in traces if trace.at_fault]
    exists = None
    if allowed and served.access(request) is Access.ATTESTED and request.method == "GET":
        exists = True
        try:
            await served.handle(request)
        except NotFoundError:
            exists = False
    return {
        "allowed": allowed,
        "exists": exists,
        "appraisal": await _appraisal(broker, verified.claims),
        "rules": [trace.as_json() for trace in rules],
    }


async def _appraisal(broker: Broker, claims: Mapping[str, Any]) -> dict[str, Any]:
    submods = claims.get("submods")
    found: dict[str, Any] = {}
    if not isinstance(submods, Mapping):
        return found
    for name, submod in submods.items():
        if not isinstance(submod, Mapping):
            continue
        vector = submod.get("ear.trustworthiness-vector")
        evidence = submod.get("ear.veraison.annotated-evidence")
        traces: list[RuleTrace] = []
        if broker.attestation is not None and isinstance(evidence, Mapping):
            below = [
                claim
                for claim, value in (vector.items() if isinstance(vector, Mapping) else ())
                if value not in _FINE
            ]
            traces = await broker.attestation.explain(
                f"{submod.get('ear.appraisal-policy-id')}_{str(name).rstrip('0123456789')}",
                evidence,
                below,
            )
        found[str(name)] = {
            "status": submod.get("ear.status"),
            "trustworthiness-vector": vector,
            "tee": _tee(evidence),
            "rules": [trace.as_json() for trace in traces],
        }
    return found


def _tee(evidence: Any) -> str | None:
    if isinstance(evidence, Mapping):
        for tee in Tee:
            if tee.value in evidence:
                return tee.value
    return None
