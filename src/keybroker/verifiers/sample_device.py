"""The verifier of sample device evidence, the device's counterpart of :mod:`.sample`."""

from typing import Any

from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence
from keybroker.verifiers.sample import verify_sample


class SampleDeviceVerifier:
    """Takes the evidence of :class:`keybroker.verifiers.sample.SampleVerifier`, as of a GPU."""

    tee = Tee.SAMPLE_DEVICE

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`. Init-data is not looked at."""
        claims = verify_sample(evidence, expected)
        return [VerifiedEvidence(Tee.SAMPLE_DEVICE, TeeClass.GPU, dict(claims))]

    async def close(self) -> None:
        """There is nothing to release."""
