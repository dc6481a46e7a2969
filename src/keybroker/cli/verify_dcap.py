"""``keybroker verify --tee tdx|sgx``: a quote or a guest's evidence, in a file."""

import argparse
import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from keybroker.cli.verify_outcome import Link, Outcome, Question, UsageError
from keybroker.config.dcap import INTEL_PCS_URL, DcapVerifierConfig, TcbUpdateType
from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee
from keybroker.verifiers.dcap.collateral import (
    CollateralKey,
    CollateralParts,
    VerifiedCollateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.collateral_service import make_source
from keybroker.verifiers.dcap.evidence import parse_quote_member, verify_binding, verify_kind
from keybroker.verifiers.dcap.offline import OfflineSource
from keybroker.verifiers.dcap.qcnl import settle
from keybroker.verifiers.dcap.quote import parse_quote
from keybroker.verifiers.dcap.roots import INTEL_SGX_ROOT_CA_SHA256, load_roots
from keybroker.verifiers.dcap.source import CollateralSource, SourceError
from keybroker.verifiers.dcap.verification import (
    CLOCK_SKEW,
    QuoteVerdict,
    collateral_key,
    is_debug,
)
from keybroker.verifiers.sgx import verify_sgx
from keybroker.verifiers.tdx import TdxEvidence, parse_tdx_evidence, verify_tdx
from keybroker.verifiers.x509 import Certificate

#: Event logs have a few MiB at most, base64 a third more.
_MAX_LOG_BYTES = 12 * 1024 * 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only TDX and SGX have."""
    group = parser.add_argument_group("options of --tee tdx and sgx (and --root as for snp)")
    group.add_argument(
        "--eventlog", metavar="FILE", type=Path,
        help="event log of a TD, as /sys/firmware/acpi/tables/data/CCEL has it",
    )  # fmt: skip
    sources = group.add_mutually_exclusive_group()
    sources.add_argument(
        "--collateral", metavar="FILE|DIR", type=Path,
        help="collateral: what 'keybroker collateral fetch' writes, or a file of Intel's PCS"
        " Client Tool; or a folder of both",
    )  # fmt: skip
    sources.add_argument(
        "--collateral-service", metavar="URL", nargs="?", const=INTEL_PCS_URL,
        help=f"fetch the collateral from Intel PCS or a PCCS (default {INTEL_PCS_URL})",
    )  # fmt: skip
    group.add_argument(
        "--tcb-update-type", choices=[type_.value for type_ in TcbUpdateType],
        default=TcbUpdateType.EARLY.value, help="which TCB evaluation (default: early)",
    )  # fmt: skip


def verify(question: Question, options: argparse.Namespace) -> Outcome:
    """Verify a quote, or evidence in the guests' JSON form."""
    evidence = _read(question.evidence, Tee(options.tee), options.eventlog)
    verify_binding(evidence.quote, question.expected)
    roots = load_roots([str(path) for path in options.roots])
    collateral = _collateral(collateral_key(evidence.quote), roots, options)
    moment = question.at or datetime.now(UTC)
    if evidence.quote.tee is Tee.TDX:
        verdict, verified = verify_tdx(evidence, collateral, moment)
    else:
        verdict, verified = verify_sgx(evidence.quote, collateral, moment)
    quote = verdict.quote
    return Outcome(
        summary=f"Intel {quote.tee.upper()} quote version {quote.version} of a platform that is"
        f" {verdict.level.status}",
        devices=[verified],
        chain=[
            _link(certificate)
            for certificate in (verdict.pck.leaf, verdict.pck.ca, collateral.root)
        ],
        root="Intel's root, built in"
        if _is_intel(collateral.root)
        else "not Intel's, named with --root",
        judged_at=moment,
        remarks=_remarks(verdict, evidence),
    )


def _read(raw: bytes, tee: Tee, eventlog: Path | None) -> TdxEvidence:
    log: str | None = None
    if eventlog is not None:
        if tee is not Tee.TDX:
            raise UsageError("--eventlog is for --tee tdx")
        try:
            with eventlog.open("rb") as file:
                log = base64.b64encode(file.read(_MAX_LOG_BYTES)).decode("ascii")
        except OSError as error:
            raise UsageError(f"{eventlog}: {error.strerror}") from None
    if raw.lstrip()[:1] == b"{":
        try:
            document = parse_json(raw)
        except MalformedError as error:
            raise EvidenceError(error.diagnostics()) from None
        if tee is Tee.SGX:
            return TdxEvidence(parse_quote_member(document, tee))
        evidence = parse_tdx_evidence(document)
        return TdxEvidence(evidence.quote, log or evidence.event_log)
    return TdxEvidence(verify_kind(parse_quote(raw), tee), log)


def _collateral(
    key: CollateralKey, roots: Sequence[Certificate], options: argparse.Namespace
) -> VerifiedCollateral:
    source: CollateralSource
    if options.collateral is not None:
        source = OfflineSource(options.collateral, TcbUpdateType(options.tcb_update_type))
    elif options.collateral_service is not None:
        source = make_source(
            settle(
                DcapVerifierConfig(
                    collateral_service=options.collateral_service,
                    tcb_update_type=TcbUpdateType(options.tcb_update_type),
                    qcnl_conf="",
                    timeout_seconds=30.0,
                )
            )
        )
    else:
        raise UsageError(
            f"the quote is of {key}: give the collateral with --collateral, or fetch it with"
            " --collateral-service"
        )
    return verify_collateral(asyncio.run(fetch_once(source, key)), key.tee, roots)


async def fetch_once(source: CollateralSource, key: CollateralKey) -> CollateralParts:
    """Fetch from a source and close it.

    Raises:
        EvidenceError: it has none.
    """
    try:
        return await source.fetch(key)
    except SourceError as error:
        raise EvidenceError(f"no collateral from {source.name}: {error}") from None
    finally:
        await source.close()


def _remarks(verdict: QuoteVerdict, evidence: TdxEvidence) -> list[str]:
    remarks = []
    if verdict.expired:
        remarks.append(
            f"collateral or certificates expired at {verdict.earliest_expiration.isoformat()}:"
            " collateral_expiration_status is 1"
        )
    if verdict.latest_issue > datetime.now(UTC) + CLOCK_SKEW:
        remarks.append("the collateral is from the future of this clock")
    if verdict.level.status != "UpToDate":
        advisories = ", ".join(verdict.level.advisory_ids) or "none are named"
        remarks.append(f"the platform is {verdict.level.status}; advisories: {advisories}")
    if is_debug(verdict.quote):
        remarks.append("it runs in debug mode: the host can read its memory")
    if verdict.quote.tee is Tee.TDX and evidence.event_log is None:
        remarks.append("there is no event log: nothing explains the RTMRs (--eventlog FILE)")
    if not _is_intel(verdict.collateral.root):
        remarks.append("the chain ends in a root that is not Intel's; you named it with --root")
    return remarks


def _is_intel(root: Certificate) -> bool:
    return root.fingerprint() == INTEL_SGX_ROOT_CA_SHA256


def _link(certificate: Certificate) -> Link:
    return Link(certificate.subject_cn, certificate.fingerprint(), certificate.not_after)
