"""What the broker asks of an attestation service, wherever that runs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from keybroker.attestation_service.request import VerificationRequest
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.tee import Tee
from keybroker.policy.explain import RuleTrace


class AttestationBackend(Protocol):
    """Verifies, appraises and signs; keeps attestation policies and reference values.

    The built-in service is one; remote ones answer to the same calls.
    """

    def challenge_parameters(self, tee: Tee, extra_params: Any) -> tuple[HashAlgorithm, Any]:
        """Choose the hash for the report data, and what goes into the challenge's extra-params.

        Raises:
            MalformedError: this TEE is not served, or shares no hash algorithm with the broker.
        """
        ...

    async def evaluate(
        self, requests: Sequence[VerificationRequest], policy_ids: Sequence[str]
    ) -> str:
        """Return the signed attestation result.

        Raises:
            EvidenceError: some evidence did not verify.
            MalformedError: init-data or runtime data cannot be parsed.
        """
        ...

    async def set_policy(self, policy_id: str, source: str) -> None:
        """Put an attestation policy in force; PolicyError leaves the old one as it is."""
        ...

    async def policy(self, policy_id: str) -> str | None:
        """Return the text of a policy."""
        ...

    async def policies(self) -> list[str]:
        """Return the ids of all policies."""
        ...

    async def register_reference_value(self, message: bytes) -> None:
        """Take a reference-value message (``version``, ``type``, ``payload``)."""
        ...

    async def query_reference_value(self, reference_value_id: str) -> Any | None:
        """Return a reference value, or None where there is none or it has expired."""
        ...

    async def explain(
        self, policy_id: str, claims: Mapping[str, Any], trust_claims: Sequence[str]
    ) -> list[RuleTrace]:
        """Say which rules for these trust claims did not hold, and why.

        Args:
            policy_id: the policy that appraised, with its class (``default_cpu``).
            claims: the annotated evidence, as the policy saw it.
            trust_claims: ``executables``, ``hardware`` and so on; only these are explained.
        """
        ...

    def jwks(self) -> Mapping[str, Any]:
        """Return the JWK set that verifies the service's tokens."""
        ...
