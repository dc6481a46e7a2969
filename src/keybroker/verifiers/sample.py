"""The verifier of sample evidence, which anybody can make and which proves nothing.

It stands in for a TEE while a deployment is built. The default policies give it no trust.
"""

import base64
import binascii
import hmac
from typing import Any

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence

#: Longest member of sample evidence in characters; the base64 of a digest has 88.
_MAX_CHARACTERS = 1024


class SampleVerifier:
    """Takes ``{"svn": …, "report_data": base64}``."""

    tee = Tee.SAMPLE

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`.

        ``init_data`` in the claims is what was expected: nothing in the evidence vouches for it.
        """
        claims: dict[str, Any] = {
            **verify_sample(evidence, expected),
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "debug": False,
        }
        if expected.init_data is not None:
            claims["init_data"] = base64.b64encode(expected.init_data).decode()
        return [VerifiedEvidence(Tee.SAMPLE, TeeClass.CPU, claims)]

    async def close(self) -> None:
        """There is nothing to release."""


def verify_sample(evidence: Any, expected: ExpectedBinding) -> dict[str, str]:
    """Check the report data that sample evidence repeats; return its two members.

    Raises:
        EvidenceError: not of the form, or the report data is another.
    """
    if not isinstance(evidence, dict):
        raise EvidenceError("sample evidence is not a JSON object")
    svn = _text(evidence.get("svn"))
    report_data = _text(evidence.get("report_data", ""))
    if expected.report_data is not None:
        try:
            bound = base64.b64decode(report_data, validate=True)
        except (binascii.Error, ValueError):
            raise EvidenceError("the report data of sample evidence is not base64") from None
        if not hmac.compare_digest(bound, expected.report_data):
            raise EvidenceError("the report data is not the digest of the runtime data")
    return {"svn": svn, "report_data": report_data}


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        raise EvidenceError("sample evidence needs the strings svn and report_data")
    return value
