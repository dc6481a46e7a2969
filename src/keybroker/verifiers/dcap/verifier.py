"""What the verifiers of TDX and SGX have in common.

The way of evidence::

    JSON ──▶ quote, event log
               │ binding: report data, init-data
               │ PCK chain up to a trusted root, so that strangers cause no fetching
               ▼
           collateral (kept or fetched) ──▶ verify_quote ──▶ event log replayed ──▶ claims
"""

import base64
import binascii
import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from keybroker import workbench
from keybroker.config.dcap import DcapVerifierConfig
from keybroker.model.errors import EvidenceError
from keybroker.model.hashes import fit
from keybroker.model.tee import Tee, TeeClass
from keybroker.storage.interface import StorageProvider
from keybroker.verifiers.dcap.cache import CollateralCache
from keybroker.verifiers.dcap.claims import verdict_claims
from keybroker.verifiers.dcap.collateral import VerifiedCollateral
from keybroker.verifiers.dcap.collateral_service import make_source
from keybroker.verifiers.dcap.pck import parse_pck_chain
from keybroker.verifiers.dcap.qcnl import settle
from keybroker.verifiers.dcap.quote import MAX_QUOTE_BYTES, Quote, parse_quote
from keybroker.verifiers.dcap.roots import load_roots
from keybroker.verifiers.dcap.verification import QuoteVerdict, collateral_key, verify_quote
from keybroker.verifiers.eventlog import EventLog, parse_event_log_base64
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence
from keybroker.verifiers.x509 import Certificate, verify_issued_by

#: Registers of the event log (TCG index) → the field of a TD report that holds their value.
RTMRS: Final = {1: "rtmr_0", 2: "rtmr_1", 3: "rtmr_2", 4: "rtmr_3"}

#: PCK chains remembered as genuine: one a platform, 4 KiB each.
_REMEMBERED_CHAINS: Final = 1024

#: Event logs whose claims are remembered: one for each image of guests, some 200 KiB each.
_REMEMBERED_LOGS: Final = 64

#: Longest base64 text of a log that is remembered; longer ones are mostly padding, which would
#: cost more to compare than it saves.
_MAX_REMEMBERED_LOG: Final = 96 * 1024

#: Longest base64 text of a log that is explained without a visit to the workbench: some hundred
#: events, which take less than the quote.
_QUICK_LOG: Final = 32 * 1024

_MAX_QUOTE_CHARACTERS: Final = 4 * MAX_QUOTE_BYTES // 3 + 4


@dataclass(frozen=True, slots=True)
class DcapEvidence:
    """Evidence as it came: a quote, and for TDX the event log in base64."""

    quote: Quote
    event_log: str | None = field(default=None, repr=False)


def parse_evidence(evidence: Any, tee: Tee) -> DcapEvidence:
    """Read ``{"quote": …, "cc_eventlog": …}``.

    Args:
        evidence: a parsed JSON value; both members are standard base64.
        tee: the kind that the quote must be of.

    Raises:
        EvidenceError: it has another form, or the quote is of another kind.
    """
    text = evidence.get("quote") if isinstance(evidence, dict) else None
    if not isinstance(text, str) or not text:
        raise EvidenceError(f"{tee.value} evidence is a JSON object with a quote in base64")
    if len(text) > _MAX_QUOTE_CHARACTERS:
        raise EvidenceError(f"the quote is larger than {MAX_QUOTE_BYTES} bytes")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceError("the quote is not base64") from None
    quote = parse_quote(raw)
    if quote.tee is not tee:
        raise EvidenceError(f"the quote is of {quote.tee.value}, not {tee.value}")
    log = evidence.get("cc_eventlog") if tee is Tee.TDX else None
    if log is not None and not isinstance(log, str):
        raise EvidenceError("cc_eventlog is not a string")
    return DcapEvidence(quote, log or None)


def verify_binding(quote: Quote, expected: ExpectedBinding) -> Quote:
    """Check what a quote binds.

    Raises:
        EvidenceError: report data or init-data is not the expected digest.
    """
    for what, digest, actual in (
        ("report data", expected.report_data, quote.report_data),
        ("field for init-data", expected.init_data, quote.init_data),
    ):
        if digest is not None and not hmac.compare_digest(fit(digest, len(actual)), actual):
            raise EvidenceError(f"the quote's {what} does not hold the expected digest")
    return quote


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


def verify_evidence(
    evidence: DcapEvidence, collateral: VerifiedCollateral, moment: datetime
) -> tuple[QuoteVerdict, VerifiedEvidence]:
    """Verify quote and event log with collateral that is at hand.

    Raises:
        EvidenceError: see :func:`verify_quote` and :func:`verify_event_log`.
    """
    verdict = verify_quote(evidence.quote, collateral, moment)
    claims = verdict_claims(verdict)
    if evidence.event_log is not None:
        claims["uefi_event_logs"] = explain_registers(evidence.quote, evidence.event_log)
    return verdict, VerifiedEvidence(evidence.quote.tee, TeeClass.CPU, claims)


class PckChains:
    """Tells genuine PCK certificates from made-up ones, each once."""

    def __init__(self, roots: Sequence[Certificate]) -> None:
        self._roots = tuple(roots)
        self._genuine: OrderedDict[bytes, None] = OrderedDict()

    def are_genuine(self, pem: bytes) -> bool:
        """Tell whether a chain was verified before."""
        known = pem in self._genuine
        if known:
            self._genuine.move_to_end(pem)
        return known

    def verify(self, pem: bytes) -> None:
        """Check the signatures of a chain. Time and revocation are looked at with the quote.

        Raises:
            EvidenceError: no trusted root issued it.
        """
        pck = parse_pck_chain(pem)
        verify_issued_by(pck.leaf, pck.ca)
        for root in self._roots:
            if root.subject != pck.ca.issuer:
                continue
            try:
                verify_issued_by(pck.ca, root)
            except EvidenceError:
                continue
            self._genuine[pem] = None
            if len(self._genuine) > _REMEMBERED_CHAINS:
                self._genuine.popitem(last=False)
            return
        raise EvidenceError("the PCK certificate is not issued under a trusted root")


class DcapVerifier:
    """Verifies what guests of one Intel TEE send. TDX and SGX share chains and collateral."""

    def __init__(self, tee: Tee, chains: PckChains, collateral: CollateralCache) -> None:
        self._tee = tee
        self._chains = chains
        self._collateral = collateral

    @property
    def tee(self) -> Tee:
        """The kind this verifier takes."""
        return self._tee

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`."""
        parsed = parse_evidence(evidence, self._tee)
        # what costs nothing comes first
        verify_binding(parsed.quote, expected)
        if not self._chains.are_genuine(parsed.quote.pck_chain):
            await workbench.run(self._chains.verify, parsed.quote.pck_chain)
        collateral = await self._collateral.get(collateral_key(parsed.quote))
        now = datetime.now(UTC)
        # dcap-qvl keeps the interpreter's lock for all of its half millisecond: on the workbench it
        # would hold up the loop as long, and cost the visit besides
        if len(parsed.event_log or "") <= _QUICK_LOG:
            _, verified = verify_evidence(parsed, collateral, now)
        else:
            _, verified = await workbench.run(verify_evidence, parsed, collateral, now)
        return [verified]

    def lacking(self) -> Mapping[str, str]:
        """See :class:`keybroker.verifiers.interface.ReportsLack`."""
        return {
            f"collateral for {key}": reason
            for key, reason in self._collateral.status().items()
            if key.startswith(f"{self._tee.value} ")
        }

    async def close(self) -> None:
        """Release connections."""
        await self._collateral.close()


def make_dcap_verifiers(
    config: DcapVerifierConfig, storage: StorageProvider
) -> tuple[DcapVerifier, DcapVerifier]:
    """Make the verifiers of TDX and SGX, which share their collateral.

    Raises:
        ConfigError: a root, the collateral service or Intel's settings file cannot be used.
    """
    settings = settle(config)
    roots = load_roots(config.extra_trusted_roots)
    collateral = CollateralCache(make_source(settings), storage, roots, settings.tcb_update_type)
    chains = PckChains(roots)
    return (
        DcapVerifier(Tee.TDX, chains, collateral),
        DcapVerifier(Tee.SGX, chains, collateral),
    )
