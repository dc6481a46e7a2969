"""The appraisal of evidence that ``keybroker verify`` found genuine.

What a broker would make of it: the same policies and the same code as in the attestation service,
with reference values from a file in place of the broker's.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keybroker.attestation_service.ear import (
    annotate,
    appraisal,
    parse_extensions,
    parse_trust_claims,
    tier,
)
from keybroker.attestation_service.policies import builtin_policies
from keybroker.attestation_service.service import (
    ENTRYPOINTS,
    EXTENSIONS_RULE,
    TRUST_CLAIMS_RULE,
)
from keybroker.cli.verify_outcome import UsageError
from keybroker.model.errors import PolicyError
from keybroker.policy.engine import CompiledPolicy, compile_policy
from keybroker.verifiers.interface import VerifiedEvidence


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a policy made of the claims of one device.

    Attributes:
        policy: which policy.
        status: ``affirming``, ``warning``, ``contraindicated`` or ``none``.
        trust_claims: values of the trustworthiness vector.
        extensions: what the policy said beside it.
    """

    policy: str
    status: str
    trust_claims: Mapping[str, int]
    extensions: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Return the appraisal as lines of text."""
        width = max(map(len, self.trust_claims), default=0)
        return [
            f"{self.status}, by {self.policy}",
            *(
                f"  {name:<{width}}  {value:>4}  {tier(value)}"
                for name, value in self.trust_claims.items()
            ),
            *(f"  {name}: {value}" for name, value in self.extensions.items()),
        ]

    def document(self) -> dict[str, Any]:
        """Return the appraisal as JSON, with the member names of an attestation result."""
        return {
            "policy": self.policy,
            "ear.status": self.status,
            "ear.trustworthiness-vector": dict(self.trust_claims),
            "extensions": dict(self.extensions),
        }


def appraise(
    devices: Sequence[VerifiedEvidence],
    *,
    policy: str | None,
    reference_values: Mapping[str, Any],
    init_data_claims: Any,
) -> list[Appraisal]:
    """Appraise every device.

    Args:
        policy: Rego; None: the built-in policy of each device's class.
        reference_values: by the names that the policies ask for.
        init_data_claims: contents of the init-data that the evidence binds, or None.

    Raises:
        UsageError: the policy does not compile.
        PolicyEngineError: it gives no appraisal.
    """
    return [_appraise(device, policy, reference_values, init_data_claims) for device in devices]


def _appraise(
    device: VerifiedEvidence,
    source: str | None,
    reference_values: Mapping[str, Any],
    init_data_claims: Any,
) -> Appraisal:
    if source is None:
        name = f"default_{device.tee_class}"
        policy, label = _compile(builtin_policies()[name], name), f"the built-in policy {name}"
    else:
        policy, label = _compile(source, "policy"), "the policy given"
    annotated = annotate(device.tee, device.claims, init_data_claims, None, verbose=True)
    answers = policy.evaluate(annotated, reference_values=reference_values)
    trust_claims = parse_trust_claims(answers.get(TRUST_CLAIMS_RULE))
    extensions = parse_extensions(answers.values.get(EXTENSIONS_RULE, []))
    status = appraisal(trust_claims, extensions, annotated, "")["ear.status"]
    return Appraisal(label, status, trust_claims, extensions)


def _compile(source: str, name: str) -> CompiledPolicy:
    try:
        return asyncio.run(compile_policy(source, entrypoints=ENTRYPOINTS, name=name))
    except PolicyError as error:
        raise UsageError(f"the policy does not compile: {error.diagnostics()}") from None
