"""The whole way over HTTP, against a broker in a process of its own."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import BrokerFactory, RunningBroker

from keybroker.client import AdminClient, GuestClient, KeyKind, TeeKeyPair
from keybroker.client.attesters.sample import SampleAttester, SampleDeviceAttester
from keybroker.client.attesters.softtee import SoftTeeAttester
from keybroker.client.errors import DeniedError, NotFoundError, UnauthenticatedError
from keybroker.kbs.policies import resource_policy
from keybroker.softtee.snp import Flaw, SoftwareSnpPlatform

PATH = "default/disk/key"
SECRET = b"\x00\xffnot text\r\n" * 7
GOOD = bytes.fromhex("a1" * 48)


@pytest.fixture(scope="module")
def platform() -> SoftwareSnpPlatform:
    return SoftwareSnpPlatform.create("Milan")


@pytest.fixture
def snp_broker(
    start_broker: BrokerFactory, tmp_path: Path, platform: SoftwareSnpPlatform
) -> RunningBroker:
    root = tmp_path / "ark.pem"
    root.write_bytes(platform.root_pem())
    return start_broker(
        attestation_service={
            "verifier_config": {"snp_verifier": {"extra_trusted_roots": [str(root)]}}
        }
    )


def admin(broker: RunningBroker) -> AdminClient:
    return AdminClient(broker.url, broker.admin_token)


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return claims


def snp_guest(broker: RunningBroker, platform: SoftwareSnpPlatform, **launch: Any) -> GuestClient:
    attester = SoftTeeAttester(platform, launch={"measurement": GOOD, **launch})
    return GuestClient(broker.url, attester, devices=[])


@pytest.mark.parametrize("kind", list(KeyKind))
def test_a_secret_reaches_an_attested_guest(
    snp_broker: RunningBroker, platform: SoftwareSnpPlatform, kind: KeyKind
) -> None:
    with admin(snp_broker) as administrator:
        administrator.set_resource(PATH, SECRET)
    attester = SoftTeeAttester(platform, launch={"measurement": GOOD})
    key = TeeKeyPair.generate(kind)
    with GuestClient(snp_broker.url, attester, devices=[], tee_key=key) as guest:
        assert guest.get_resource(PATH) == SECRET
        token = guest.attest()
    with GuestClient(snp_broker.url, attester, devices=[], tee_key=key, token=token) as guest:
        assert guest.get_resource(PATH) == SECRET


def test_the_default_policy_refuses_the_sample_tee_before_it_says_what_exists(
    broker: RunningBroker,
) -> None:
    with GuestClient(broker.url, SampleAttester(), devices=[]) as guest:
        guest.attest()
        for path in (PATH, "no/such/resource"):
            with pytest.raises(DeniedError):
                guest.get_resource(path)


def test_who_may_read_learns_that_a_resource_does_not_exist(broker: RunningBroker) -> None:
    with admin(broker) as administrator:
        administrator.set_resource_policy(resource_policy("allow_all"))
    with (
        GuestClient(broker.url, SampleAttester(), devices=[]) as guest,
        pytest.raises(NotFoundError),
    ):
        guest.get_resource(PATH)


def test_reference_values_decide_between_affirming_and_contraindicated(
    snp_broker: RunningBroker, platform: SoftwareSnpPlatform
) -> None:
    tcb = platform.evidence(bytes(64))["attestation_report"]["reported_tcb"]
    with admin(snp_broker) as administrator:
        administrator.set_resource(PATH, SECRET)
        administrator.set_resource_policy(resource_policy("affirming"))
        with snp_guest(snp_broker, platform) as guest, pytest.raises(DeniedError):
            guest.get_resource(PATH)
        for name, value in {
            "snp_launch_measurement": [GOOD.hex()],
            "snp_bootloader": [tcb["bootloader"]],
            "snp_microcode": [tcb["microcode"]],
            "snp_snp_svn": [tcb["snp"]],
            "snp_tee_svn": [tcb["tee"]],
        }.items():
            administrator.set_sample_reference_value(name, value)
        assert administrator.get_reference_value("snp_launch_measurement") == [GOOD.hex()]
        with snp_guest(snp_broker, platform) as guest:
            appraisal = claims_of(guest.attest())["submods"]["cpu0"]
            assert appraisal["ear.status"] == "affirming"
            assert appraisal["ear.trustworthiness-vector"]["executables"] == 3
            assert guest.get_resource(PATH) == SECRET
        with snp_guest(snp_broker, platform, measurement=bytes(48)) as other:
            token = other.attest()
            assert claims_of(token)["submods"]["cpu0"]["ear.status"] == "warning"
            with pytest.raises(DeniedError):
                other.get_resource(PATH)
        told = administrator.explain(PATH, token)
        assert not told.allowed
        (cpu,) = told.appraisal
        wanted = [rule for rule in cpu.rules if "snp_launch_measurement" in str(rule.expression)]
        assert [rule.reference_value for rule in wanted] == [[GOOD.hex()]]
        assert wanted[0].value == bytes(48).hex()


@pytest.mark.parametrize("flaw", [Flaw.BAD_SIGNATURE, Flaw.OTHER_ROOT, Flaw.OTHER_CHIP])
def test_evidence_with_a_flaw_is_refused_without_a_word_about_it(
    snp_broker: RunningBroker, platform: SoftwareSnpPlatform, flaw: Flaw
) -> None:
    with (
        snp_guest(snp_broker, platform, flaw=flaw) as guest,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        guest.attest()
    assert str(flaw.value) not in str(caught.value)
    assert caught.value.detail == "the evidence could not be verified"
    snp_broker.wait_for_log("request refused")


def test_evidence_of_another_session_is_refused(
    snp_broker: RunningBroker, platform: SoftwareSnpPlatform
) -> None:
    class Recorded:
        tee = SoftTeeAttester(platform).tee

        def __init__(self) -> None:
            self.first: Any = None

        def evidence(self, report_data: bytes) -> Any:
            if self.first is None:
                self.first = platform.evidence(report_data, measurement=GOOD)
            return self.first

    attester = Recorded()
    with GuestClient(snp_broker.url, attester, devices=[]) as guest:
        guest.attest()
    with (
        GuestClient(snp_broker.url, attester, devices=[]) as replaying,
        pytest.raises(UnauthenticatedError),
    ):
        replaying.attest()


INIT_DATA = """version = "0.1.0"
algorithm = "sha384"
[data]
"cdh.toml" = '''
[kbc]
name = "cc_kbc"
'''
"policy.rego" = '''
package agent_policy
policy_data := {"containers": [{"OCI": {"Annotations": {"io.kubernetes.cri.image-name": "img"}}}]}
'''
"""


def test_init_data_that_the_evidence_carries_stands_in_the_token(
    snp_broker: RunningBroker, platform: SoftwareSnpPlatform
) -> None:
    digest = hashlib.sha384(INIT_DATA.encode()).digest()[:32]
    attester = SoftTeeAttester(platform, launch={"host_data": digest})
    with GuestClient(snp_broker.url, attester, devices=[], init_data=INIT_DATA) as guest:
        appraisal = claims_of(guest.attest())["submods"]["cpu0"]
    claims = appraisal["ear.veraison.annotated-evidence"]["init_data_claims"]
    assert claims["cdh.toml"] == {"kbc": {"name": "cc_kbc"}}
    assert "policy.rego" not in claims
    assert appraisal["ear.trustee.identifiers"]["validated"]["container_images"] == ["img"]
    other = SoftTeeAttester(platform, launch={"host_data": bytes(32)})
    with (
        GuestClient(snp_broker.url, other, devices=[], init_data=INIT_DATA) as guest,
        pytest.raises(UnauthenticatedError),
    ):
        guest.attest()


def test_a_device_beside_the_cpu_has_an_appraisal_of_its_own(broker: RunningBroker) -> None:
    with GuestClient(broker.url, SampleAttester(), devices=[SampleDeviceAttester()]) as guest:
        submods = claims_of(guest.attest())["submods"]
    assert sorted(submods) == ["cpu0", "gpu0"]
    assert "sampledevice" in submods["gpu0"]["ear.veraison.annotated-evidence"]


def attest_by_hand(broker: RunningBroker) -> tuple[dict[str, Any], dict[str, str]]:
    """Make an Attestation for a new session; returns it with the session's cookie."""
    from keybroker.client.handshake import primary_report_data
    from keybroker.model.hashes import HashAlgorithm
    from keybroker.model.rcar import RuntimeData

    with broker.http() as http:
        answer = http.post(
            "/kbs/v0/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": {}}
        )
        assert answer.status_code == 200, answer.text
        cookies = {"kbs-session-id": answer.cookies["kbs-session-id"]}
    key = TeeKeyPair.generate().public_jwk()
    runtime_data = RuntimeData(nonce=answer.json()["nonce"], tee_pubkey=dict(key))
    report_data = primary_report_data(runtime_data, "", HashAlgorithm.SHA384)
    return {
        "runtime-data": {"nonce": runtime_data.nonce, "tee-pubkey": key},
        "tee-evidence": {
            "primary_evidence": SampleAttester().evidence(report_data),
            "additional_evidence": "",
        },
    }, cookies


def test_attesting_again_with_the_same_cookie_gives_the_same_token(
    broker: RunningBroker,
) -> None:
    attestation, cookies = attest_by_hand(broker)
    with broker.http(cookies=cookies) as http:
        first = http.post("/kbs/v0/attest", json=attestation)
        second = http.post("/kbs/v0/attest", json=attestation)
    assert first.status_code == second.status_code == 200
    assert first.json()["token"] == second.json()["token"]


def test_a_changed_or_foreign_cookie_is_401(
    broker: RunningBroker, start_broker: BrokerFactory
) -> None:
    attestation, cookies = attest_by_hand(broker)
    other, foreign = attest_by_hand(start_broker())
    value = cookies["kbs-session-id"]
    middle = "A" if value[60] != "A" else "B"
    for sent, body in (
        ({"kbs-session-id": value[:60] + middle + value[61:]}, attestation),
        (foreign, other),
        ({"kbs-session-id": "x"}, attestation),
        ({}, attestation),
    ):
        with broker.http(cookies=sent) as http:
            answer = http.post("/kbs/v0/attest", json=body)
        assert answer.status_code == 401, answer.text
        assert answer.json()["type"].endswith("/AttestationError")


def test_another_nonce_than_the_challenge_is_401(broker: RunningBroker) -> None:
    attestation, cookies = attest_by_hand(broker)
    attestation["runtime-data"]["nonce"] = base64.b64encode(bytes(32)).decode()
    with broker.http(cookies=cookies) as http:
        assert http.post("/kbs/v0/attest", json=attestation).status_code == 401


def test_the_token_verifies_with_the_published_keys(broker: RunningBroker) -> None:
    from joserfc import jwt
    from joserfc.jwk import KeySet

    with GuestClient(broker.url, SampleAttester(), devices=[]) as guest:
        token = guest.attest()
    with broker.http() as http:
        keys = http.get("/.well-known/jwks.json").json()
    decoded = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["ES256"])
    assert decoded.claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"


def test_a_second_broker_releases_on_the_first_ones_tokens(
    start_broker: BrokerFactory, tmp_path: Path
) -> None:
    from keybroker.cli.main import main

    assert main(["keygen", "token", "--out", str(tmp_path / "token")]) == 0
    first = start_broker(
        attestation_service={
            "attestation_token_broker": {
                "signer": {
                    "key_path": str(tmp_path / "token" / "token.key"),
                    "cert_path": str(tmp_path / "token" / "token-cert-chain.pem"),
                }
            }
        }
    )
    second = start_broker(
        attestation_service=None,
        attestation_token={"trusted_certs_paths": [str(tmp_path / "token" / "ca-cert.pem")]},
    )
    with admin(second) as administrator:
        administrator.set_resource(PATH, SECRET)
        administrator.set_resource_policy(resource_policy("allow_all"))
    with GuestClient(first.url, SampleAttester(), devices=[]) as guest:
        token = guest.attest()
        key = guest.tee_key
    with GuestClient(second.url, SampleAttester(), devices=[], tee_key=key, token=token) as guest:
        assert guest.get_resource(PATH) == SECRET
    with second.http() as http:
        answer = http.post("/kbs/v0/auth", json={"version": "0.4.0", "tee": "sample"})
        assert answer.status_code == 404
        strangers = start_broker()
    with GuestClient(strangers.url, SampleAttester(), devices=[]) as guest:
        token, key = guest.attest(), guest.tee_key
    with second.http(headers={"authorization": f"Bearer {token}"}) as http:
        answer = http.get(f"/kbs/v0/resource/{PATH}")
        assert answer.status_code == 401
        assert answer.json()["type"].endswith("/TokenVerifierError")
