"""The verifier of Intel TDX evidence: a quote, and the event log that explains its registers.

The way of evidence::

    JSON ──▶ quote, event log
               │ binding: report data, init-data (mr_config_id)
               ▼
           endorser ──▶ collateral ──▶ verify_quote ──▶ event log replayed ──▶ claims
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from keybroker import workbench
from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.dcap.claims import verdict_claims
from keybroker.verifiers.dcap.collateral import VerifiedCollateral
from keybroker.verifiers.dcap.endorser import DcapEndorser
from keybroker.verifiers.dcap.evidence import parse_quote_member, verify_binding
from keybroker.verifiers.dcap.quote import Quote
from keybroker.verifiers.dcap.verification import QuoteVerdict, verify_quote
from keybroker.verifiers.eventlog import EventLog, parse_event_log_base64
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence

#: Registers of the event log (TCG index) → the field of a TD report that holds their value.
RTMRS: Final = {1: "rtmr_0", 2: "rtmr_1", 3: "rtmr_2", 4: "rtmr_3"}

#: Event logs whose claims are remembered: one for each image of guests, some 200 KiB each.
_REMEMBERED_LOGS: Final = 64

#: Longest base64 text of a log that is remembered; longer ones are mostly padding, which would
#: cost more to compare than it saves.
_MAX_REMEMBERED_LOG: Final = 96 * 1024

#: Longest base64 text of a log that is explained without a visit to the workbench: some hundred
#: events, which take less than the quote.
_QUICK_LOG: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class TdxEvidence:
    """Evidence as it came: a quote, and perhaps the event log in base64."""

    quote: Quote
    event_log: str | None = field(default=None, repr=False)


def parse_tdx_evidence(evidence: Any) -> TdxEvidence:
    """Read ``{"quote": …, "cc_eventlog": …}``.

    Args:
        evidence: a parsed JSON value; both members are standard base64, the log may be absent.

    Raises:
        EvidenceError: it has another form, or the quote is not of a TD.
    """
    quote = parse_quote_member(evidence, Tee.TDX)
    log = evidence.get("cc_eventlog")
    if log is not None and not isinstance(log, str):
        raise EvidenceError("cc_eventlog is not a string")
    return TdxEvidence(quote, log or None)


@lru_cache(_REMEMBERED_LOGS)
def _explain_registers(log: str, registers: tuple[bytes, ...]) -> list[dict[str, Any]]:
    # guests of one image boot alike: the same log gives the same registers and says the same
    parsed = parse_event_log_base64(log)
    return parsed.verify_replay(dict(zip(RTMRS, registers, strict=True))).claims()


def explain_registers(quote: Quote, log: str) -> list[dict[str, Any]]:
    """Check that an event log gives the RTMRs of a quote, and return its claims.

    Args:
        quote: of a TD.
        log: in standard base64.

    Returns:
        ``uefi_event_logs``, which is shared with other guests and must not be changed.

    Raises:
        EvidenceError: the log is malformed, or gives other registers.
    """
    registers = tuple(quote.body[name] for name in RTMRS.values())
    if len(log) > _MAX_REMEMBERED_LOG:
        return _explain_registers.__wrapped__(log, registers)
    return _explain_registers(log, registers)


def verify_event_log(quote: Quote, log: EventLog) -> EventLog:
    """Check that an event log gives the four RTMRs of a verified TDX quote.

    Raises:
        EvidenceError: it does not.
    """
    return log.verify_replay({index: quote.body[name] for index, name in RTMRS.items()})


def verify_tdx(
    evidence: TdxEvidence, collateral: VerifiedCollateral, moment: datetime
) -> tuple[QuoteVerdict, VerifiedEvidence]:
    """Verify quote and event log with collateral that is at hand.

    Raises:
        EvidenceError: see :func:`verify_quote` and :func:`explain_registers`.
    """
    verdict = verify_quote(evidence.quote, collateral, moment)
    claims = verdict_claims(verdict)
    if evidence.event_log is not None:
        claims["uefi_event_logs"] = explain_registers(evidence.quote, evidence.event_log)
    return verdict, VerifiedEvidence(Tee.TDX, TeeClass.CPU, claims)


class TdxVerifier:
    """Verifies what TDs send."""

    tee = Tee.TDX

    def __init__(self, endorser: DcapEndorser) -> None:
        self._endorser = endorser

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`."""
        parsed = parse_tdx_evidence(evidence)
        # what costs nothing comes first
        verify_binding(parsed.quote, expected)
        collateral = await self._endorser.collateral_for(parsed.quote)
        now = datetime.now(UTC)
        # dcap-qvl keeps the interpreter's lock for all of its half millisecond: on the workbench it
        # would hold up the loop as long, and cost the visit besides
        if len(parsed.event_log or "") <= _QUICK_LOG:
            _, verified = verify_tdx(parsed, collateral, now)
        else:
            _, verified = await workbench.run(verify_tdx, parsed, collateral, now)
        return [verified]

    def lacking(self) -> Mapping[str, str]:
        """See :class:`keybroker.verifiers.interface.ReportsLack`."""
        return self._endorser.lacking(self.tee)

    async def close(self) -> None:
        """Release connections."""
        await self._endorser.close()
