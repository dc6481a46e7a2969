"""The way from claims to a signed result, with verifiers that vouch for whatever they are given."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keybroker.attestation_service.policies import builtin_policies
from keybroker.attestation_service.request import VerificationRequest
from keybroker.attestation_service.service import ENTRYPOINTS, MAX_REQUESTS, AttestationService
from keybroker.config.attestation import EarTokenConfig
from keybroker.model.errors import EvidenceError, MalformedError, PolicyEngineError, PolicyError
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import InitData
from keybroker.model.strict_json import canonical_json
from keybroker.model.tee import Tee, TeeClass
from keybroker.policy.store import PolicyStore
from keybroker.rvps.service import ReferenceValueService
from keybroker.storage.memory import MemoryStore
from keybroker.tokens.signer import TokenSigner
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence, Verifier

SNP = {
    "measurement": "ab" * 48,
    "platform_smt_enabled": True,
    "platform_tsme_enabled": False,
    "policy_abi_major": 0,
    "policy_abi_minor": 31,
    "policy_debug_allowed": False,
    "policy_migrate_ma": False,
    "policy_single_socket": False,
    "policy_smt_allowed": True,
    "reported_tcb_bootloader": 3,
    "reported_tcb_microcode": 115,
    "reported_tcb_snp": 8,
    "reported_tcb_tee": 0,
}

GOOD = {
    "snp_launch_measurement": ["cd" * 48, "ab" * 48],
    "snp_bootloader": [3],
    "snp_microcode": [115],
    "snp_snp_svn": [8],
    "snp_tee_svn": [0],
    "snp_smt_enabled": True,
    "snp_tsme_enabled": False,
    "snp_guest_abi_major": 0,
    "snp_guest_abi_minor": 31,
    "snp_single_socket": False,
    "snp_smt_allowed": True,
}


class Voucher:
    """A verifier of evidence that is a list of claims, one entry a device."""

    def __init__(self, tee: Tee, tee_class: TeeClass = TeeClass.CPU) -> None:
        self.tee = tee
        self.tee_class = tee_class
        self.expected: list[ExpectedBinding] = []
        self.closed = False
        self.arrivals: asyncio.Barrier | None = None

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        self.expected.append(expected)
        if self.arrivals is not None:
            await self.arrivals.wait()
        if not isinstance(evidence, list):
            raise EvidenceError("the evidence is not a list")
        bound = {
            "report_data": (expected.report_data or b"").hex(),
            "init_data": (expected.init_data or b"").hex(),
        }
        return [VerifiedEvidence(self.tee, self.tee_class, {**bound, **one}) for one in evidence]

    async def close(self) -> None:
        self.closed = True


class House:
    def __init__(self, **config: Any) -> None:
        self.cpu = Voucher(Tee.SNP)
        self.gpu = Voucher(Tee.NVIDIA, TeeClass.GPU)
        verifiers: Mapping[Tee, Verifier] = {Tee.SNP: self.cpu, Tee.NVIDIA: self.gpu}
        self.policies = PolicyStore(
            MemoryStore(), entrypoints=ENTRYPOINTS, builtins=builtin_policies()
        )
        self.values = ReferenceValueService(MemoryStore())
        self.signer = TokenSigner(ec.generate_private_key(ec.SECP256R1()))
        self.service = AttestationService(
            verifiers, self.policies, self.values, self.signer, EarTokenConfig(**config)
        )

    async def register(self, values: Mapping[str, Any]) -> None:
        payload = base64.b64encode(json.dumps(values).encode()).decode()
        message = {"version": "0.1.0", "type": "sample", "payload": payload}
        await self.service.register_reference_value(json.dumps(message).encode())

    async def evaluate(self, *requests: VerificationRequest, policy: str = "default") -> Any:
        token = await self.service.evaluate(requests, [policy])
        payload = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    async def appraise(self, **changed: Any) -> Any:
        request = VerificationRequest(Tee.SNP, [{**SNP, **changed}])
        return (await self.evaluate(request))["submods"]["cpu0"]


@pytest.fixture
async def house() -> House:
    house = House()
    await house.policies.seed()
    return house


async def test_a_known_guest_is_affirmed(house: House) -> None:
    await house.register(GOOD)
    appraisal = await house.appraise()
    assert appraisal["ear.status"] == "affirming"
    assert appraisal["ear.trustworthiness-vector"] == {
        "instance-identity": 0,
        "configuration": 2,
        "executables": 3,
        "file-system": 0,
        "hardware": 2,
        "runtime-opaque": 0,
        "storage-opaque": 0,
        "sourced-data": 0,
    }
    assert appraisal["ear.appraisal-policy-id"] == "default"
    assert appraisal["ear.trustee.identifiers"] == {"validated": {}}


@pytest.mark.parametrize(
    ("changed", "status", "claim", "value"),
    [
        ({"measurement": "00" * 48}, "warning", "executables", 33),
        ({"policy_debug_allowed": True}, "warning", "configuration", 36),
        ({"policy_migrate_ma": True}, "warning", "configuration", 36),
        ({"policy_abi_minor": 30}, "affirming", "configuration", 3),
        ({"reported_tcb_snp": 7}, "contraindicated", "hardware", 97),
        ({"reported_tcb_bootloader": "3"}, "contraindicated", "hardware", 97),
    ],
)
async def test_each_deviation_shows_in_its_trust_claim(
    house: House, changed: dict[str, Any], status: str, claim: str, value: int
) -> None:
    await house.register(GOOD)
    appraisal = await house.appraise(**changed)
    assert appraisal["ear.status"] == status
    assert appraisal["ear.trustworthiness-vector"][claim] == value


async def test_without_reference_values_nothing_is_affirmed(house: House) -> None:
    appraisal = await house.appraise()
    assert appraisal["ear.status"] == "contraindicated"
    assert appraisal["ear.trustworthiness-vector"]["hardware"] == 97


async def test_the_token_has_the_claims_of_an_ear(house: House) -> None:
    claims = await house.evaluate(VerificationRequest(Tee.SNP, [SNP]))
    assert claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert claims["iss"] == "CoCo-Attestation-Service"
    assert claims["exp"] - claims["iat"] == 300
    assert claims["ear.verifier-id"]["developer"] == "https://confidentialcontainers.org"
    assert claims["ear.verifier-id"]["build"].startswith("keybroker ")


async def test_runtime_data_is_bound_by_its_canonical_digest_and_stands_in_the_claims(
    house: House,
) -> None:
    runtime_data = {"tee-pubkey": {"kty": "EC"}, "nonce": "n", "additional-evidence": ""}
    for algorithm in (HashAlgorithm.SHA384, HashAlgorithm.SHA512):
        claims = await house.evaluate(VerificationRequest(Tee.SNP, [SNP], runtime_data, algorithm))
        digest = algorithm.digest(canonical_json(runtime_data))
        assert house.cpu.expected[-1] == ExpectedBinding(report_data=digest)
        evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
        assert evidence["runtime_data_claims"] == runtime_data
        assert evidence["report_data"] == digest.hex()
        assert evidence["snp"] == SNP
        assert evidence["init_data_claims"] is None


async def test_raw_runtime_data_and_an_init_data_digest_are_compared_as_they_are(
    house: House,
) -> None:
    request = VerificationRequest(Tee.SNP, [SNP], b"raw", init_data=b"digest")
    claims = await house.evaluate(request)
    assert house.cpu.expected == [ExpectedBinding(b"raw", b"digest")]
    evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"] is None


async def test_a_terse_token_leaves_out_the_evidence_of_devices() -> None:
    house = House(verbose_token=False)
    await house.policies.seed()
    runtime_data = {"nonce": "n", "additional-evidence": "large"}
    claims = await house.evaluate(VerificationRequest(Tee.SNP, [SNP], runtime_data))
    evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"] == {"nonce": "n"}
    assert runtime_data["additional-evidence"] == "large"


async def test_the_images_of_the_agent_policy_become_identifiers(house: House) -> None:
    containers = [
        {
            "OCI": {
                "Annotations": {"io.kubernetes.cri.image-name": image},
                "Process": {"User": {"UID": uid}},
            }
        }
        for image, uid in (("quay.io/a@sha256:1", 65535), ('evil"],"x', 0))
    ]
    policy = f"package agent_policy\npolicy_data := {json.dumps({'containers': containers})}"
    body = f"version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n\"policy.rego\" = '''{policy}'''\n"
    claims = await house.evaluate(
        VerificationRequest(Tee.SNP, [SNP], init_data=InitData("toml", body))
    )
    expected = hashlib.sha256(body.encode()).digest()
    assert house.cpu.expected == [ExpectedBinding(init_data=expected)]
    assert claims["submods"]["cpu0"]["ear.trustee.identifiers"] == {
        "validated": {
            "container_images": ["quay.io/a@sha256:1", 'evil"],"x'],
            "container_uids": [65535, 0],
        }
    }


async def test_devices_are_numbered_by_class(house: House) -> None:
    claims = await house.evaluate(
        VerificationRequest(Tee.SNP, [SNP]),
        VerificationRequest(Tee.NVIDIA, [{"measres": "success"}, {"measres": "fail"}]),
        VerificationRequest(Tee.NVIDIA, [{}]),
    )
    assert list(claims["submods"]) == ["cpu0", "gpu0", "gpu1", "gpu2"]
    evidence = claims["submods"]["gpu1"]["ear.veraison.annotated-evidence"]
    assert evidence["nvidia"] == {"measres": "fail"}


async def test_all_evidence_is_verified_at_the_same_time(house: House) -> None:
    house.cpu.arrivals = house.gpu.arrivals = asyncio.Barrier(3)
    async with asyncio.timeout(10):
        await house.evaluate(
            VerificationRequest(Tee.SNP, [SNP]),
            VerificationRequest(Tee.NVIDIA, [{}]),
            VerificationRequest(Tee.NVIDIA, [{}]),
        )


async def test_one_bad_device_refuses_all(house: House) -> None:
    with pytest.raises(EvidenceError):
        await house.evaluate(
            VerificationRequest(Tee.SNP, [SNP]), VerificationRequest(Tee.NVIDIA, "bad")
        )


async def test_the_policy_id_chooses_the_policy_by_class(house: House) -> None:
    source = (
        'package policy\ntrust_claims := {"hardware": 2}\n'
        'extensions := [{"name": "mine", "key": 7, "value": query_reference_value("v")}]'
    )
    await house.service.set_policy("strict_cpu", source)
    await house.register({"v": [1]})
    claims = await house.evaluate(VerificationRequest(Tee.SNP, [SNP]), policy="strict")
    appraisal = claims["submods"]["cpu0"]
    assert appraisal["ear.appraisal-policy-id"] == "strict"
    assert appraisal["ear.trustworthiness-vector"] == {"hardware": 2}
    assert appraisal["mine"] == [1]
    assert "strict_cpu" in await house.service.policies()
    assert await house.service.policy("strict_cpu") == source


async def test_a_policy_without_trust_claims_asserts_nothing(house: House) -> None:
    await house.service.set_policy("empty_cpu", "package policy")
    claims = await house.evaluate(VerificationRequest(Tee.SNP, [SNP]), policy="empty")
    appraisal = claims["submods"]["cpu0"]
    assert appraisal["ear.status"] == "none"
    assert set(appraisal["ear.trustworthiness-vector"].values()) == {0}


@pytest.mark.parametrize(
    "rules",
    [
        "trust_claims := {}",
        "trust_claims := [2]",
        "trust_claims := null",
        'trust_claims := {"hardware": 128}',
        'trust_claims := {"hardware": -129}',
        'trust_claims := {"hardware": 2.5}',
        'trust_claims := {"hardware": true}',
        'trust_claims := {"hardware": "2"}',
        'trust_claims := {"hardwear": 2}',
        'trust_claims := {"hardware": 2}\nextensions := {}',
        'trust_claims := {"hardware": 2}\nextensions := [{"name": "a", "key": 1}]',
        'trust_claims := {"hardware": 2}\nextensions := [{"name": "a", "key": "1", "value": 1}]',
        'trust_claims := {"hardware": 2}\nextensions := [{"name": 1, "key": 1, "value": 1}]',
        'trust_claims := {"hardware": 2}\n'
        'extensions := [{"name": "ear.status", "key": 1, "value": "affirming"}]',
        'trust_claims := {"hardware": 2}\n'
        'extensions := [{"name": "a", "key": 1, "value": 1}, {"name": "b", "key": 1, "value": 1}]',
    ],
)
async def test_an_answer_that_is_no_appraisal_fails_closed(house: House, rules: str) -> None:
    await house.service.set_policy("odd_cpu", f"package policy\n{rules}")
    with pytest.raises(PolicyEngineError) as failed:
        await house.evaluate(VerificationRequest(Tee.SNP, [SNP]), policy="odd")
    assert "odd_cpu" in failed.value.diagnostics()
    assert "odd_cpu" not in failed.value.detail


async def test_a_device_without_a_policy_is_not_appraised(house: House) -> None:
    with pytest.raises(PolicyEngineError, match="other_cpu"):
        await house.evaluate(VerificationRequest(Tee.SNP, [SNP]), policy="other")


async def test_a_policy_that_does_not_compile_leaves_the_old_one(house: House) -> None:
    with pytest.raises(PolicyError, match="line 2"):
        await house.service.set_policy("default_cpu", "package policy\nallow := }")
    assert (await house.appraise())["ear.status"] == "contraindicated"


async def test_an_evaluation_needs_evidence_a_policy_and_a_tee_that_is_served(
    house: House,
) -> None:
    request = VerificationRequest(Tee.SNP, [SNP])
    for requests, policy_ids in (
        ([], ["default"]),
        ([request], []),
        ([request] * (MAX_REQUESTS + 1), ["default"]),
        ([VerificationRequest(Tee.TDX, [{}])], ["default"]),
        ([VerificationRequest(Tee.SNP, [SNP], {"float": 1.5})], ["default"]),
        ([request], ["../default"]),
    ):
        with pytest.raises(MalformedError):
            await house.service.evaluate(requests, policy_ids)


async def test_defaults_are_written_only_where_nothing_is(house: House) -> None:
    await house.service.set_policy("default_cpu", "package policy")
    await house.policies.seed()
    assert await house.service.policy("default_cpu") == "package policy"
    assert await house.service.policies() == sorted(builtin_policies())


async def test_the_service_says_whether_it_is_ready_and_closes_its_verifiers(house: House) -> None:
    assert await house.service.readiness() is None
    await house.policies.delete("default_cpu")
    assert await house.service.readiness() is not None
    await house.service.close()
    assert house.cpu.closed
    assert house.gpu.closed


async def test_the_jwk_set_is_the_signers(house: House) -> None:
    assert house.service.jwks() == house.signer.jwks()


async def test_a_hundred_evaluations_at_once_keep_their_claims_apart(house: House) -> None:
    await house.register(GOOD)

    async def one(number: int) -> tuple[int, str]:
        measurement = "ab" * 48 if number % 2 else f"{number:096x}"
        appraisal = await house.appraise(measurement=measurement)
        evidence = appraisal["ear.veraison.annotated-evidence"]
        assert evidence["snp"]["measurement"] == measurement
        return number, appraisal["ear.status"]

    for number, status in await asyncio.gather(*(one(number) for number in range(100))):
        assert status == ("affirming" if number % 2 else "warning")


async def test_an_appraisal_is_explained_by_trust_claim(house: House) -> None:
    await house.register({**GOOD, "snp_microcode": [116]})
    traces = await house.service.explain("default_cpu", {"snp": SNP}, ["hardware"])
    assert [(trace.rule, trace.value, trace.reference_value) for trace in traces] == [
        ("hardware", 115, [116])
    ]
    assert await house.service.explain("default_cpu", {"snp": SNP}, []) == []
    assert await house.service.explain("absent_cpu", {"snp": SNP}, ["hardware"]) == []


async def test_a_policy_without_a_rule_for_each_trust_claim_is_explained_too(house: House) -> None:
    source = 'package policy\ntrust_claims := {"hardware": 97} { input.old }\n'
    await house.service.set_policy("flat_cpu", source)
    (trace,) = await house.service.explain("flat_cpu", {"snp": SNP}, ["hardware"])
    assert (trace.rule, trace.claim) == ("trust_claims", "input.old")


def test_every_class_of_device_has_a_policy() -> None:
    folder = Path(__file__).parents[2] / "src/keybroker/attestation_service/policies"
    assert {path.stem for path in folder.glob("*.rego")} == set(builtin_policies())
