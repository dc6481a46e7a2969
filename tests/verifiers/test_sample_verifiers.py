"""Sample evidence, and the table of verifiers."""

import base64

import pytest

from keybroker.config.verifiers import SampleVerifierConfig, VerifierConfig
from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.interface import ExpectedBinding
from keybroker.verifiers.registry import make_verifiers
from keybroker.verifiers.sample import SampleVerifier
from keybroker.verifiers.sample_device import SampleDeviceVerifier

DIGEST = bytes(range(48))
EVIDENCE = {"svn": "1", "report_data": base64.b64encode(DIGEST).decode()}


async def test_sample_claims_are_those_that_users_know():
    (device,) = await SampleVerifier().verify(EVIDENCE, ExpectedBinding(DIGEST, b"init"))
    assert (device.tee, device.tee_class) == (Tee.SAMPLE, TeeClass.CPU)
    assert device.claims == {
        "svn": "1",
        "report_data": EVIDENCE["report_data"],
        "launch_digest": "abcde",
        "platform_version": {"major": 1, "minor": 4},
        "debug": False,
        "init_data": base64.b64encode(b"init").decode(),
    }


async def test_sample_device_claims_are_those_that_users_know():
    (device,) = await SampleDeviceVerifier().verify(EVIDENCE, ExpectedBinding(DIGEST, b"init"))
    assert (device.tee, device.tee_class) == (Tee.SAMPLE_DEVICE, TeeClass.GPU)
    assert device.claims == EVIDENCE


async def test_without_an_expectation_nothing_is_compared():
    (device,) = await SampleVerifier().verify({"svn": "1"}, ExpectedBinding())
    assert device.claims["report_data"] == ""
    assert "init_data" not in device.claims


@pytest.mark.parametrize("verifier", [SampleVerifier(), SampleDeviceVerifier()])
@pytest.mark.parametrize(
    "evidence",
    [
        None, [], "x", {}, {"svn": 1}, {"svn": "1"}, {"svn": "1", "report_data": "!"},
        {"svn": "1", "report_data": "é"}, {"svn": "1", "report_data": 5},
        {"svn": "1", "report_data": base64.b64encode(DIGEST + b"\0").decode()},
        {"svn": "1", "report_data": base64.b64encode(DIGEST[:-1]).decode()},
        {"svn": "x" * 2000, "report_data": EVIDENCE["report_data"]},
    ],
)  # fmt: skip
async def test_sample_evidence_that_does_not_repeat_the_digest_is_refused(verifier, evidence):
    with pytest.raises(EvidenceError):
        await verifier.verify(evidence, ExpectedBinding(DIGEST))


def test_each_verifier_stands_under_its_own_kind(storage):
    verifiers = make_verifiers(VerifierConfig(), storage)
    assert {Tee.SNP, Tee.SAMPLE, Tee.SAMPLE_DEVICE} <= set(verifiers)
    assert all(verifier.tee is tee for tee, verifier in verifiers.items())


def test_sample_evidence_can_be_switched_off(storage):
    config = VerifierConfig(sample_verifier=SampleVerifierConfig(enabled=False))
    assert not {Tee.SAMPLE, Tee.SAMPLE_DEVICE} & set(make_verifiers(config, storage))
