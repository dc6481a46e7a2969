"""The attestation service itself: verify, appraise, sign."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keybroker.attestation_service.appraisals import AppraisalMemory, Question
from keybroker.attestation_service.challenge import agree_on_hash
from keybroker.attestation_service.ear import (
    TRUST_CLAIMS,
    annotate,
    appraisal,
    parse_extensions,
    parse_trust_claims,
)
from keybroker.attestation_service.init_data import parse_init_data
from keybroker.attestation_service.policies import builtin_policies
from keybroker.attestation_service.request import (
    BoundData,
    VerificationRequest,
    bind_runtime_data,
)
from keybroker.config.attestation import (
    BuiltInAttestationConfig,
    BuiltInRvpsConfig,
    EarTokenConfig,
)
from keybroker.model.errors import (
    ConfigError,
    KeybrokerError,
    MalformedError,
    NotFoundError,
    PolicyEngineError,
)
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.tee import Tee
from keybroker.policy.engine import CompiledPolicy
from keybroker.policy.explain import RuleTrace, explain
from keybroker.policy.store import VERDICT_NAMESPACE, PolicyStore
from keybroker.rvps.service import ReferenceValueService
from keybroker.storage.interface import StorageProvider
from keybroker.tokens.signer import NAMESPACE as SIGNER_NAMESPACE
from keybroker.tokens.signer import TokenSigner
from keybroker.verifiers.interface import ExpectedBinding, ReportsLack, VerifiedEvidence, Verifier
from keybroker.verifiers.registry import make_verifiers
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: Namespaces, by the names of Trustee's.
POLICY_NAMESPACE = "attestation_service_policy"
REFERENCE_VALUE_NAMESPACE = "reference_value"

#: What an attestation policy is asked.
TRUST_CLAIMS_RULE = "policy/trust_claims"
EXTENSIONS_RULE = "policy/extensions"
ENTRYPOINTS = (TRUST_CLAIMS_RULE, EXTENSIONS_RULE)

#: Requests in one evaluation: the CPU and its devices. A server holds sixteen GPUs.
MAX_REQUESTS = 64

#: Longer lists of claims (event logs, measurements) are encoded and signed on the workbench.
_FEW = 32


@dataclass(frozen=True, slots=True)
class _Device:
    """A device whose evidence verified, with the policy of its class."""

    evidence: VerifiedEvidence
    runtime_data: Any
    init_data: Any
    policy: CompiledPolicy


@dataclass(frozen=True, slots=True)
class _Annotated:
    """A device with its claims as the result will show them, and what its policy is asked."""

    of: _Device
    annotated: dict[str, Any]
    question: Question


class AttestationService:
    """Verifies evidence, appraises its claims by policy, signs the result.

    Args:
        verifiers: by the kind of evidence that they take.
        policies: attestation policies, asked for :data:`ENTRYPOINTS`.
        reference_values: what policies hold claims against.
        signer: signs the results.
        config: what a result says about itself.
    """

    def __init__(
        self,
        verifiers: Mapping[Tee, Verifier],
        policies: PolicyStore,
        reference_values: ReferenceValueService,
        signer: TokenSigner,
        config: EarTokenConfig,
    ) -> None:
        self.signer = signer
        self._verifiers = verifiers
        self._policies = policies
        self._reference_values = reference_values
        self._config = config
        self._appraisals = AppraisalMemory()

    def challenge_parameters(self, tee: Tee, extra_params: Any) -> tuple[HashAlgorithm, Any]:
        """Choose the hash for the report data, and what the challenge's extra-params say.

        Raises:
            MalformedError: the TEE is not served, or shares no hash with the broker.
        """
        self._verifier(tee)
        return agree_on_hash(tee, extra_params)

    async def evaluate(
        self, requests: Sequence[VerificationRequest], policy_ids: Sequence[str]
    ) -> str:
        """Return the signed attestation result of all devices together.

        Args:
            requests: evidence of the CPU first, then of its devices.
            policy_ids: the first names the policies: ``<id>_<class>`` appraises a device.

        Raises:
            EvidenceError: some evidence did not verify.
            MalformedError: a TEE is not served; init-data or runtime data cannot be parsed.
            TooLargeError: too many requests, or an init-data too long.
            PolicyEngineError: there is no policy for a device, or it gave no appraisal.
            StorageError: policies or reference values cannot be read.
        """
        if not requests or not policy_ids:
            raise MalformedError("an evaluation needs evidence and a policy id")
        if len(requests) > MAX_REQUESTS:
            raise MalformedError(f"more than {MAX_REQUESTS} pieces of evidence")
        if len(policy_ids) > 1:
            logger.warning("an attestation result has one policy; only the first is used")
        policy_id = policy_ids[0]
        devices = [
            device for found in await self._verify_all(requests, policy_id) for device in found
        ]
        reference_values = (await self._reference_values.snapshot()).values
        appraised = [self._prepare(device, reference_values) for device in devices]
        if all(self._is_quick(device) for device in appraised):
            return self._issue(appraised, policy_id)
        return await run(self._issue, appraised, policy_id)

    async def set_policy(self, policy_id: str, source: str) -> None:
        """Put an attestation policy in force.

        Raises:
            PolicyError: it does not compile; what was in force stays so.
            MalformedError: the id is not a name.
        """
        await self._policies.set(policy_id, source)

    async def policy(self, policy_id: str) -> str | None:
        """Return the text of a policy, or None where there is none."""
        return await self._policies.source(policy_id)

    async def policies(self) -> list[str]:
        """Return the ids of all policies, sorted."""
        return await self._policies.ids()

    async def register_reference_value(self, message: bytes) -> None:
        """Take in a message of reference values.

        Raises:
            MalformedError: it is not one.
            TooLargeError: it is too long.
        """
        await self._reference_values.register(message)

    async def query_reference_value(self, reference_value_id: str) -> Any | None:
        """Return a reference value, or None where there is none or it has expired."""
        return await self._reference_values.query(reference_value_id)

    async def explain(
        self, policy_id: str, claims: Mapping[str, Any], trust_claims: Sequence[str]
    ) -> list[RuleTrace]:
        """Say because of which rules these trust claims are as they are.

        Args:
            policy_id: the policy that appraised, with its class (``default_cpu``).
            claims: the annotated evidence, as the policy saw it.
            trust_claims: ``executables``, ``hardware`` and so on; only these are explained.
        """
        source = await self._policies.source(policy_id)
        if source is None or not trust_claims:
            return []
        values = (await self._reference_values.snapshot()).values
        # Most policies have a rule for each trust claim; a rule's name cannot hold the hyphens.
        rules = [claim.replace("-", "_") for claim in trust_claims]
        traces = await explain(source, claims, reference_values=values, rules=rules)
        if not traces:
            traces = await explain(source, claims, reference_values=values, rules=["trust_claims"])
        return [trace for trace in traces if trace.at_fault]

    @property
    def reference_values(self) -> ReferenceValueService:
        """The reference values, for administration."""
        return self._reference_values

    def jwks(self) -> Mapping[str, Any]:
        """Return the JWK set that verifies the results."""
        return self.signer.jwks()

    async def readiness(self) -> str | None:
        """Say why nothing can be attested now, or None where all is well."""
        try:
            await self._policies.get("default_cpu")
            await self._reference_values.snapshot()
        except KeybrokerError as error:
            logger.warning("the attestation service is not ready: %s", error.diagnostics())
            return "the default attestation policy or the reference values cannot be used"
        # why is in the log: it may name a service of the inner network
        lacking = [
            what
            for verifier in self._verifiers.values()
            if isinstance(verifier, ReportsLack)
            for what in verifier.lacking()
        ]
        return f"not to be had: {', '.join(sorted(lacking))}" if lacking else None

    async def close(self) -> None:
        """Release what the verifiers hold."""
        for verifier in self._verifiers.values():
            await verifier.close()

    def _verifier(self, tee: Tee) -> Verifier:
        verifier = self._verifiers.get(tee)
        if verifier is None:
            raise MalformedError(f"evidence of {tee.value} is not served here")
        return verifier

    async def _verify_all(
        self, requests: Sequence[VerificationRequest], policy_id: str
    ) -> list[list[_Device]]:
        if len(requests) == 1:
            return [await self._verify(requests[0], policy_id)]
        tasks = [asyncio.create_task(self._verify(request, policy_id)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _verify(self, request: VerificationRequest, policy_id: str) -> list[_Device]:
        verifier = self._verifier(request.tee)
        runtime_data = bind_runtime_data(request)
        init_data = await _bind_init_data(request)
        verified = await verifier.verify(
            request.evidence, ExpectedBinding(runtime_data.digest, init_data.digest)
        )
        return [
            _Device(
                evidence,
                runtime_data.claims,
                init_data.claims,
                await self._policy(f"{policy_id}_{evidence.tee_class.value}"),
            )
            for evidence in verified
        ]

    async def _policy(self, policy_id: str) -> CompiledPolicy:
        try:
            return await self._policies.get(policy_id)
        except NotFoundError as error:
            raise PolicyEngineError(error.diagnostics()) from None

    def _prepare(self, device: _Device, reference_values: Mapping[str, Any]) -> _Annotated:
        evidence = device.evidence
        annotated = annotate(
            evidence.tee.value,
            evidence.claims,
            device.init_data,
            device.runtime_data,
            verbose=self._config.verbose_token,
        )
        question = self._appraisals.question(device.policy, annotated, reference_values)
        return _Annotated(device, annotated, question)

    def _is_quick(self, device: _Annotated) -> bool:
        """Whether signing what is known costs less than a visit to the workbench."""
        if self._appraisals.recall(device.question) is None:
            return False
        lists = [value for value in device.of.evidence.claims.values() if type(value) is list]
        return not lists or max(map(len, lists)) <= _FEW

    def _issue(self, devices: Sequence[_Annotated], policy_id: str) -> str:
        indices: Counter[str] = Counter()
        submods: dict[str, Any] = {}
        for device in devices:
            tee_class = device.of.evidence.tee_class.value
            submods[f"{tee_class}{indices[tee_class]}"] = self._appraise(device, policy_id)
            indices[tee_class] += 1
        config = self._config
        now = int(time.time())
        return self.signer.sign(
            {
                "eat_profile": config.profile_name,
                "iat": now,
                "ear.verifier-id": {
                    "developer": config.developer_name,
                    "build": config.build_name,
                },
                "submods": submods,
                "exp": now + config.duration_min * 60,
                "iss": config.issuer_name,
            }
        )

    def _appraise(self, device: _Annotated, policy_id: str) -> dict[str, Any]:
        answers = self._appraisals.ask(device.question)
        try:
            if TRUST_CLAIMS_RULE in answers:
                trust_claims = parse_trust_claims(answers[TRUST_CLAIMS_RULE])
            else:
                # A policy that says nothing asserts nothing: no tier, so not affirming either.
                trust_claims = dict.fromkeys(TRUST_CLAIMS, 0)
            extensions = parse_extensions(answers.get(EXTENSIONS_RULE, []))
        except PolicyEngineError as error:
            raise PolicyEngineError(
                f"policy {device.of.policy.name!r}: {error.diagnostics()}"
            ) from None
        return appraisal(trust_claims, extensions, device.annotated, policy_id)


async def _bind_init_data(request: VerificationRequest) -> BoundData:
    if request.init_data is None:
        return BoundData()
    if isinstance(request.init_data, bytes):
        return BoundData(digest=request.init_data)
    return await run(parse_init_data, request.init_data)


async def open_attestation_service(
    config: BuiltInAttestationConfig, storage: StorageProvider
) -> AttestationService:
    """Make the service that a configuration asks for; the default policies are written if absent.

    Raises:
        ConfigError: the reference values are kept elsewhere, which the built-in service cannot
            use; or the verifiers or the signer cannot be made.
        StorageError: the storage failed.
    """
    if not isinstance(config.rvps_config, BuiltInRvpsConfig):
        raise ConfigError(
            "attestation_service.rvps_config: the built-in service keeps its own reference values"
            ' (type = "BuiltIn")'
        )
    kept = config.storage_type.value if config.storage_type is not None else None
    values_kept = config.rvps_config.storage_type
    policies = PolicyStore(
        await storage.namespace(POLICY_NAMESPACE, kept),
        entrypoints=ENTRYPOINTS,
        builtins=builtin_policies(),
        verdicts=await storage.namespace(VERDICT_NAMESPACE),
    )
    await policies.seed()
    token_config = config.attestation_token_broker
    return AttestationService(
        make_verifiers(config.verifier_config, storage),
        policies,
        ReferenceValueService(
            await storage.namespace(
                REFERENCE_VALUE_NAMESPACE, values_kept.value if values_kept is not None else kept
            )
        ),
        await TokenSigner.create(token_config.signer, await storage.namespace(SIGNER_NAMESPACE)),
        token_config,
    )
