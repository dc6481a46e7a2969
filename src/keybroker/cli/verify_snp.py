"""``keybroker verify --tee snp``: a report or a guest's evidence, in a file."""

import argparse
import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from keybroker.cli.verify_outcome import Link, Outcome, Question, UsageError
from keybroker.config.verifiers import SnpVerifierConfig
from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee, TeeClass
from keybroker.verifiers.interface import VerifiedEvidence
from keybroker.verifiers.snp import verify_binding, verify_table, verify_vmpl
from keybroker.verifiers.snp_chain import ChainVerifier, EndorsementKey, verify_report
from keybroker.verifiers.snp_claims import snp_claims
from keybroker.verifiers.snp_evidence import CertificateTable, parse_evidence
from keybroker.verifiers.snp_report import (
    OLDEST_VERSION,
    REPORT_BYTES,
    Generation,
    SigningKey,
    SnpReport,
    parse_report,
)
from keybroker.verifiers.snp_roots import trust_anchors
from keybroker.verifiers.snp_vcek import (
    KdsSource,
    OfflineStoreSource,
    SourceError,
    VcekRequest,
    VcekSource,
)
from keybroker.verifiers.x509 import Certificate, parse_certificate, parse_certificates

_AMD_KDS = "https://kdsintf.amd.com"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only SEV-SNP has."""
    group = parser.add_argument_group("options of --tee snp")
    group.add_argument(
        "--cert", "--vcek", "--vlek", dest="certificates", metavar="FILE", type=Path,
        action="append", default=[],
        help="certificate of the key that signed the report (PEM or DER), or one above it; any"
        " number of times; comes before those in the evidence",
    )  # fmt: skip
    group.add_argument(
        "--processor", choices=[generation.lower() for generation in Generation],
        help="which processor a version 2 report comes from, since it does not say it",
    )  # fmt: skip
    group.add_argument(
        "--root", dest="roots", metavar="FILE", type=Path, action="append", default=[],
        help="trust this root too (PEM or DER; for software TEEs); any number of times",
    )  # fmt: skip
    group.add_argument(
        "--vmpl", type=int, choices=range(4),
        help="demand this privilege level (default: accept any, remark on others than 0)",
    )  # fmt: skip
    sources = group.add_mutually_exclusive_group()
    sources.add_argument(
        "--kds", metavar="URL", nargs="?", const=_AMD_KDS,
        help=f"fetch a missing VCEK from a key distribution service (default {_AMD_KDS})",
    )  # fmt: skip
    sources.add_argument(
        "--offline-store", metavar="DIR", type=Path,
        help="take a missing VCEK from a folder in Trustee's layout",
    )  # fmt: skip


def verify(question: Question, options: argparse.Namespace) -> Outcome:
    """Verify a report of 1184 bytes, or evidence in the guests' JSON form."""
    processor = Generation(options.processor.capitalize()) if options.processor else None
    chains = ChainVerifier(trust_anchors(options.roots))
    report, table = _read(question.evidence, processor)
    table = _merge(table, options.certificates, report.signing_key)
    if report.signing_key is SigningKey.VCEK and table.vcek is None:
        table = replace(table, vcek=_fetch(report, options))
    if report.signing_key is SigningKey.VLEK and table.vlek is None:
        raise UsageError("the report is signed by a VLEK: give its certificate with --cert")

    remarks: list[str] = []
    judged_at = question.at or _last_valid_moment(report, table, remarks)
    endorsement = verify_table(chains, report, table, judged_at)
    verify_report(report, endorsement)
    verify_binding(report, question.expected)
    if options.vmpl is not None:
        verify_vmpl(report, options.vmpl)
    elif report.vmpl != 0:
        remarks.append(
            f"the report is of VMPL {report.vmpl}; a broker takes only VMPL 0"
            " (--vmpl N demands one)"
        )
    if report.version < 3:
        remarks.append(f"the report is of version {report.version}; a broker takes 3 and later")
    if report.policy >> 19 & 1:
        remarks.append("the guest's policy allows debugging: the host can read its memory")
    if not endorsement.amd_root:
        remarks.append("the chain ends in a root that is not AMD's; you named it with --root")
    return Outcome(
        summary=f"AMD SEV-SNP report version {report.version} of a {report.generation} processor,"
        f" signed by its {endorsement.kind.upper()}",
        devices=[VerifiedEvidence(Tee.SNP, TeeClass.CPU, snp_claims(report, endorsement))],
        chain=[_link(certificate) for certificate in endorsement.chain],
        root=_root(endorsement),
        judged_at=judged_at,
        remarks=remarks,
    )


def _read(raw: bytes, processor: Generation | None) -> tuple[SnpReport, CertificateTable]:
    if len(raw) == REPORT_BYTES and not raw.lstrip().startswith(b"{"):
        if processor is None and int.from_bytes(raw[:4], "little") == OLDEST_VERSION:
            raise UsageError(
                f"a report of version {OLDEST_VERSION} does not say which processor it comes from:"
                " name it with --processor"
            )
        return parse_report(raw, processor=processor), CertificateTable()
    if not raw.lstrip().startswith(b"{"):
        raise EvidenceError(
            f"neither a report of {REPORT_BYTES} bytes (this has {len(raw)}) nor JSON evidence"
        )
    try:
        evidence = parse_evidence(parse_json(raw), processor=processor)
    except MalformedError as error:
        raise EvidenceError(error.diagnostics()) from None
    return evidence.report, evidence.certificates or CertificateTable()


def _merge(table: CertificateTable, files: list[Path], signing_key: SigningKey) -> CertificateTable:
    """Put certificates that the user names into the table, each where its name says."""
    for path in files:
        try:
            certificates = parse_certificates(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except EvidenceError as error:
            raise EvidenceError(f"{path}: {error.diagnostics()}") from None
        for certificate in certificates:
            place = _place(certificate, signing_key)
            if place is None:
                raise UsageError(f"{path}: {certificate.subject_cn!r} is not of SEV-SNP")
            if place:
                table = replace(table, **{place: certificate.der})
    return table


def _place(certificate: Certificate, signing_key: SigningKey) -> str | None:
    """Return the place in the table; "" for one that this chain has no use for; None: no idea."""
    name = certificate.subject_cn
    if name in ("SEV-VCEK", "SEV-VLEK"):
        return name.removeprefix("SEV-").lower()
    if name.startswith("ARK-"):
        return "ark"
    if name.startswith("SEV-"):
        # a file of all issuers holds the ASK and the ASVK, and the table has one place for either
        issues = SigningKey.VLEK if name.startswith("SEV-VLEK-") else SigningKey.VCEK
        return "ask" if issues is signing_key else ""
    return None


def _fetch(report: SnpReport, options: argparse.Namespace) -> bytes:
    source: VcekSource
    if options.kds:
        source = KdsSource(options.kds, SnpVerifierConfig().kds_timeout_seconds)
    elif options.offline_store:
        source = OfflineStoreSource(options.offline_store)
    else:
        raise UsageError(
            "the evidence holds no VCEK: give it with --cert, or say where it is found with --kds"
            " or --offline-store"
        )

    async def fetch() -> bytes:
        try:
            return await source.fetch(VcekRequest.of(report))
        except SourceError as error:
            raise EvidenceError(f"no VCEK from {source.name}: {error}") from None
        finally:
            await source.close()

    return asyncio.run(fetch())


def _last_valid_moment(report: SnpReport, table: CertificateTable, remarks: list[str]) -> datetime:
    now = datetime.now(UTC)
    raw = table.vcek if report.signing_key is SigningKey.VCEK else table.vlek
    if raw is None:
        return now
    leaf = parse_certificate(raw)
    if now <= leaf.not_after:
        return now
    remarks.append(
        f"the certificate {leaf.subject_cn} expired at {leaf.not_after.isoformat()} and is judged"
        " as of then; a broker refuses it today (--at TIME demands a moment, --at now today)"
    )
    return leaf.not_after


def _link(certificate: Certificate) -> Link:
    return Link(certificate.subject_cn, certificate.fingerprint(), certificate.not_after)


def _root(endorsement: EndorsementKey) -> str:
    return "AMD's root, built in" if endorsement.amd_root else "not AMD's, named with --root"
