"""TDX and SGX guests of software machines, over HTTP, against a broker in its own process."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import BrokerFactory, RunningBroker

from keybroker.client import AdminClient, AsyncGuestClient, GuestClient
from keybroker.client.attesters.softtee import SoftTeeAttester
from keybroker.client.errors import DeniedError, UnauthenticatedError
from keybroker.kbs.policies import resource_policy
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_eventlog import SoftwareEventLog
from keybroker.softtee.intel_pccs import Behaviour, SoftwarePccs
from keybroker.softtee.intel_quote import (
    DEFAULT_XFAM,
    TD_DEBUG,
    TD_SEPT_VE_DISABLE,
    SoftwareEnclave,
    SoftwareIntelPlatform,
    SoftwareTd,
)

PATH = "default/disk/key"
SECRET = b"the secret of a TD"
KERNEL = b"an approved kernel"
COMMAND_LINE = "console=hvc0 root=/dev/vda1"
MR_TD = hashlib.sha384(b"an approved firmware").digest()
MR_ENCLAVE = hashlib.sha256(b"an approved enclave").digest()
MR_SIGNER = hashlib.sha256(b"an approved signer").digest()

LOG = SoftwareEventLog.linux(KERNEL, COMMAND_LINE)
TD_REFERENCE_VALUES = {
    "mr_td": [MR_TD.hex()],
    "rtmr_1": [LOG.registers[2].hex()],
    "rtmr_2": [LOG.registers[3].hex()],
    "xfam": [DEFAULT_XFAM.hex()],
    "tdvfkernel": hashlib.sha384(KERNEL).hexdigest(),
    "tdvfkernelparams": SoftwareEventLog.command_line_digest(COMMAND_LINE).hex(),
}
ENCLAVE_REFERENCE_VALUES = {
    "sgx_mr_enclave": [MR_ENCLAVE.hex()],
    "sgx_mr_signer": [MR_SIGNER.hex()],
    "sgx_attributes_flags": ["0500000000000000"],
}


@pytest.fixture
def pccs(intel: SoftwareIntel, platform: SoftwareIntelPlatform) -> Iterator[SoftwarePccs]:
    with SoftwarePccs(intel, [platform]) as service:
        yield service


def settings(pccs: SoftwarePccs, root_file: Path, **more: Any) -> dict[str, Any]:
    dcap = {
        "collateral_service": pccs.url,
        "qcnl_conf": "",
        "extra_trusted_roots": [str(root_file)],
        **more,
    }
    return {"verifier_config": {"dcap_verifier": dcap}}


@pytest.fixture
def dcap_broker(start_broker: BrokerFactory, pccs: SoftwarePccs, root_file: Path) -> RunningBroker:
    broker = start_broker(attestation_service=settings(pccs, root_file, timeout_seconds=1.0))
    with AdminClient(broker.url, broker.admin_token) as administrator:
        administrator.set_resource(PATH, SECRET)
        administrator.set_resource_policy(resource_policy("affirming"))
        for name, value in {**TD_REFERENCE_VALUES, **ENCLAVE_REFERENCE_VALUES}.items():
            administrator.set_sample_reference_value(name, value)
    return broker


def td(platform: SoftwareIntelPlatform, **launch: Any) -> SoftTeeAttester:
    machine = SoftwareTd(platform, launch.pop("log", LOG), {"mr_td": MR_TD, **launch})
    return SoftTeeAttester(machine, tee=Tee.TDX)


def enclave(platform: SoftwareIntelPlatform, **launch: Any) -> SoftTeeAttester:
    launch = {"mr_enclave": MR_ENCLAVE, "mr_signer": MR_SIGNER, **launch}
    return SoftTeeAttester(SoftwareEnclave(platform, launch), tee=Tee.SGX)


def submodule(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    appraisal: dict[str, Any] = claims["submods"]["cpu0"]
    return appraisal


def test_a_td_that_is_known_gets_the_secret(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    for form in ({}, {"version": 5}, {"version": 5, "tdx_1_5": True}):
        with GuestClient(dcap_broker.url, td(platform, **form), devices=[]) as guest:
            appraisal = submodule(guest.attest())
            assert appraisal["ear.status"] == "affirming"
            vector = appraisal["ear.trustworthiness-vector"]
            assert (vector["executables"], vector["hardware"]) == (3, 2)
            assert vector["configuration"] == 2
            assert guest.get_resource(PATH) == SECRET


def test_an_enclave_that_is_known_gets_the_secret(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    for version in (3, 4):
        attester = enclave(platform, version=version)
        with GuestClient(dcap_broker.url, attester, devices=[]) as guest:
            assert submodule(guest.attest())["ear.status"] == "affirming"
            assert guest.get_resource(PATH) == SECRET


@pytest.mark.parametrize(
    ("launch", "claim"),
    [
        ({"mr_td": bytes(48)}, "hardware"),
        ({"log": SoftwareEventLog.linux(b"another kernel", COMMAND_LINE)}, "executables"),
        ({"log": SoftwareEventLog.linux(KERNEL, "init=/bin/sh")}, "executables"),
        ({"xfam": bytes(8)}, "configuration"),
        ({"attributes": TD_DEBUG | TD_SEPT_VE_DISABLE}, "configuration"),
    ],
    ids=["firmware", "kernel", "command line", "features", "debug mode"],
)
def test_a_td_that_is_not_known_gets_nothing(
    launch: dict[str, Any],
    claim: str,
    dcap_broker: RunningBroker,
    platform: SoftwareIntelPlatform,
) -> None:
    with GuestClient(dcap_broker.url, td(platform, **launch), devices=[]) as guest:
        appraisal = submodule(guest.attest())
        assert appraisal["ear.status"] in ("warning", "contraindicated")
        assert appraisal["ear.trustworthiness-vector"][claim] > 32
        with pytest.raises(DeniedError):
            guest.get_resource(PATH)


def test_a_log_that_is_a_megabyte_of_padding_is_taken(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    log = SoftwareEventLog.linux(KERNEL, COMMAND_LINE)
    log.pad(1024 * 1024)
    with GuestClient(dcap_broker.url, td(platform, log=log), devices=[]) as guest:
        assert submodule(guest.attest())["ear.status"] == "affirming"


@pytest.mark.parametrize(
    "launch", [{"mr_enclave": bytes(32)}, {"mr_signer": bytes(32)}, {"debug": True}]
)
def test_an_enclave_that_is_not_known_gets_nothing(
    launch: dict[str, Any], dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    with GuestClient(dcap_broker.url, enclave(platform, **launch), devices=[]) as guest:
        assert submodule(guest.attest())["ear.status"] != "affirming"
        with pytest.raises(DeniedError):
            guest.get_resource(PATH)


def test_a_platform_that_is_not_patched_is_contraindicated(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform, pccs: SoftwarePccs
) -> None:
    pccs.terms = Terms(tcb_status="OutOfDate", advisory_ids=["INTEL-SA-00837"])
    with GuestClient(dcap_broker.url, td(platform), devices=[]) as guest:
        appraisal = submodule(guest.attest())
        assert appraisal["ear.status"] == "contraindicated"
        evidence = appraisal["ear.veraison.annotated-evidence"]["tdx"]
        assert evidence["tcb_status"] == "OutOfDate"
        assert evidence["advisory_ids"] == ["INTEL-SA-00837"]


class _Changed:
    """An attester that changes what another made."""

    tee = Tee.TDX

    def __init__(self, attester: SoftTeeAttester, change: Any) -> None:
        self._attester = attester
        self._change = change

    def evidence(self, report_data: bytes) -> Any:
        return self._change(self._attester.evidence(report_data))


def test_a_swapped_log_and_a_replayed_quote_are_refused(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    other = SoftwareEventLog.linux(b"another kernel").raw

    def swap(evidence: dict[str, Any]) -> dict[str, Any]:
        return {**evidence, "cc_eventlog": base64.b64encode(other).decode()}

    recorded = td(platform).evidence(b"report data of another session")
    for change in (swap, lambda _: recorded):
        attester = _Changed(td(platform), change)
        with (
            GuestClient(dcap_broker.url, attester, devices=[]) as guest,
            pytest.raises(UnauthenticatedError) as refused,
        ):
            guest.attest()
        assert refused.value.detail == "the evidence could not be verified"


def test_without_its_log_a_td_is_known_by_its_registers_alone(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform
) -> None:
    def without(evidence: dict[str, Any]) -> dict[str, Any]:
        return {"quote": evidence["quote"]}

    with GuestClient(dcap_broker.url, _Changed(td(platform), without), devices=[]) as guest:
        vector = submodule(guest.attest())["ear.trustworthiness-vector"]
        assert vector["executables"] == 4


def test_no_collateral_is_401_for_the_guest_and_a_reason_for_the_administrator(
    dcap_broker: RunningBroker, platform: SoftwareIntelPlatform, pccs: SoftwarePccs
) -> None:
    pccs.behaviour = Behaviour.HANG
    with GuestClient(dcap_broker.url, td(platform), devices=[]) as guest:
        for _ in range(2):
            with pytest.raises(UnauthenticatedError) as refused:
                guest.attest()
            assert refused.value.detail == "the evidence could not be verified"
    answer = httpx.get(f"{dcap_broker.url}/readyz")
    assert answer.status_code == 503
    assert "tdx B0C06F000000 platform" in answer.json()["problems"]["attestation"]
    assert "127.0.0.1" not in answer.text
    dcap_broker.wait_for_log("no valid collateral for tdx B0C06F000000 platform")


def test_the_root_that_is_not_intels_is_in_the_log(dcap_broker: RunningBroker) -> None:
    dcap_broker.wait_for_log("Software SGX Root CA")


async def test_many_first_guests_of_two_workers_cause_one_fetch(
    start_broker: BrokerFactory,
    pccs: SoftwarePccs,
    root_file: Path,
    platform: SoftwareIntelPlatform,
) -> None:
    broker = start_broker(
        http_server={"worker_count": 2}, attestation_service=settings(pccs, root_file)
    )
    attester = td(platform)

    async def attest(number: int) -> None:
        async with AsyncGuestClient(broker.url, attester, devices=[]) as guest:
            await guest.attest()
            if number == 60:
                await asyncio.to_thread(pccs.stop)

    # the service goes away in the middle; nobody notices
    await asyncio.gather(*(attest(number) for number in range(60)))
    await attest(60)
    await asyncio.gather(*(attest(number) for number in range(61, 120)))
    assert len(pccs.requests) == 4
