"""The verifier of Intel SGX evidence: a quote of an enclave."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.dcap.claims import verdict_claims
from keybroker.verifiers.dcap.collateral import VerifiedCollateral
from keybroker.verifiers.dcap.endorser import DcapEndorser
from keybroker.verifiers.dcap.evidence import parse_quote_member, verify_binding
from keybroker.verifiers.dcap.quote import Quote
from keybroker.verifiers.dcap.verification import QuoteVerdict, verify_quote
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence


def verify_sgx(
    quote: Quote, collateral: VerifiedCollateral, moment: datetime
) -> tuple[QuoteVerdict, VerifiedEvidence]:
    """Verify a quote with collateral that is at hand.

    Raises:
        EvidenceError: see :func:`verify_quote`.
    """
    verdict = verify_quote(quote, collateral, moment)
    return verdict, VerifiedEvidence(Tee.SGX, TeeClass.CPU, verdict_claims(verdict))


class SgxVerifier:
    """Verifies what enclaves send: ``{"quote": base64}``."""

    tee = Tee.SGX

    def __init__(self, endorser: DcapEndorser) -> None:
        self._endorser = endorser

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`."""
        quote = parse_quote_member(evidence, Tee.SGX)
        verify_binding(quote, expected)
        collateral = await self._endorser.collateral_for(quote)
        # here and not on the workbench, as for TDX: the library keeps the interpreter's lock
        _, verified = verify_sgx(quote, collateral, datetime.now(UTC))
        return [verified]

    def lacking(self) -> Mapping[str, str]:
        """See :class:`keybroker.verifiers.interface.ReportsLack`."""
        return self._endorser.lacking(self.tee)

    async def close(self) -> None:
        """Release connections."""
        await self._endorser.close()
