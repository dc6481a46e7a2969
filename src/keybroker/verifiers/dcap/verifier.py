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
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from keybroker.verifiers.dcap.pck import parse_pck_chain
from keybroker.verifiers.dcap.qcnl import settle
from keybroker.verifiers.dcap.quote import MAX_QUOTE_BYTES, Quote, parse_quote
from keybroker.verifiers.dcap.roots import load_roots
from keybroker.verifiers.dcap.source import make_source
from keybroker.verifiers.dcap.verification import QuoteVerdict, collateral_key, verify_quote
from keybroker.verifiers.eventlog import EventLog, parse_event_log_base64
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence
from keybroker.verifiers.x509 import Certificate, verify_issued_by

#: Registers of the event log (TCG index) → the field of a TD report that holds their value.
RTMRS: Final = {1: "rtmr_0", 2: "rtmr_1", 3: "rtmr_2", 4: "rtmr_3"}

#: PCK chains remembered as genuine: one a platform, 32 bytes each.
_REMEMBERED_CHAINS: Final = 4096

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
        log = verify_event_log(evidence.quote, parse_event_log_base64(evidence.event_log))
        claims["uefi_event_logs"] = log.claims()
    return verdict, VerifiedEvidence(evidence.quote.tee, TeeClass.CPU, claims)


class PckChains:
    """Tells genuine PCK certificates from made-up ones, each once."""

    def __init__(self, roots: Sequence[Certificate]) -> None:
        self._roots = tuple(roots)
        self._genuine: OrderedDict[bytes, None] = OrderedDict()

    def verify(self, pem: bytes) -> None:
        """Check the signatures of a chain. Time and revocation are looked at with the quote.

        Raises:
            EvidenceError: no trusted root issued it.
        """
        digest = hashlib.sha256(pem).digest()
        if digest in self._genuine:
            self._genuine.move_to_end(digest)
            return
        pck = parse_pck_chain(pem)
        verify_issued_by(pck.leaf, pck.ca)
        for root in self._roots:
            if root.subject != pck.ca.issuer:
                continue
            try:
                verify_issued_by(pck.ca, root)
            except EvidenceError:
                continue
            self._genuine[digest] = None
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
        await workbench.run(self._chains.verify, parsed.quote.pck_chain)
        collateral = await self._collateral.get(collateral_key(parsed.quote))
        _, verified = await workbench.run(verify_evidence, parsed, collateral, datetime.now(UTC))
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
