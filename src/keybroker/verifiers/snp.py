"""The verifier of AMD SEV-SNP evidence.

The way of a report::

    JSON ──snp_evidence──▶ report, certificates
                              │         │ none: snp_vcek asks the sources
                              │         ▼
                              │     snp_chain: up to a root of snp_roots
                              ▼         │
                          signature, firmware, chip, VMPL, report data, host data
                              │
                          snp_claims
"""

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from keybroker import workbench
from keybroker.config.verifiers import SnpVerifierConfig
from keybroker.model.errors import EvidenceError
from keybroker.model.hashes import fit
from keybroker.model.tee import Tee, TeeClass
from keybroker.storage.interface import StorageProvider
from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence
from keybroker.verifiers.snp_chain import ChainVerifier, EndorsementKey, verify_report
from keybroker.verifiers.snp_claims import snp_claims
from keybroker.verifiers.snp_evidence import CertificateTable, SnpEvidence, parse_evidence
from keybroker.verifiers.snp_report import SigningKey, SnpReport
from keybroker.verifiers.snp_roots import trust_anchors
from keybroker.verifiers.snp_vcek import VcekLibrary, VcekRequest, make_sources

#: The most privileged level, in which the guest's kernel (or its SVSM) runs.
_GUEST_VMPL = 0

_REPORT_DATA_BYTES = 64
_HOST_DATA_BYTES = 32


class SnpVerifier:
    """Verifies what SEV-SNP guests send."""

    tee = Tee.SNP

    def __init__(self, config: SnpVerifierConfig, storage: StorageProvider) -> None:
        """Load the trusted roots.

        Raises:
            ConfigError: a root cannot be used.
        """
        self._chains = ChainVerifier(trust_anchors(config.extra_trusted_roots))
        self._library = VcekLibrary(make_sources(config), self._chains, storage)

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """See :class:`keybroker.verifiers.interface.Verifier`."""
        return [await self.verify_parsed(parse_evidence(evidence), expected)]

    async def verify_parsed(
        self, evidence: SnpEvidence, expected: ExpectedBinding
    ) -> VerifiedEvidence:
        """Verify evidence that was parsed from another form than :meth:`verify` takes.

        Raises:
            EvidenceError: as :meth:`verify`.
        """
        report, table = evidence.report, evidence.certificates
        if table is not None:
            # as elsewhere, a table that came replaces the sources: it is complete or it is refused
            endorse = self._endorsement_by_table(report, table)
        else:
            endorse = await self._endorsement_by_library(report)
        return await workbench.run(_verify, report, endorse, expected)

    def _endorsement_by_table(
        self, report: SnpReport, table: CertificateTable
    ) -> Callable[[], EndorsementKey]:
        def endorse() -> EndorsementKey:
            return verify_table(self._chains, report, table, datetime.now(UTC))

        return endorse

    async def _endorsement_by_library(self, report: SnpReport) -> Callable[[], EndorsementKey]:
        if report.signing_key is not SigningKey.VCEK:
            raise EvidenceError(
                "the report is signed by a VLEK and no certificate came with it: a VLEK is known"
                " to its cloud provider alone, so the guest has to send the certificate table"
            )
        endorsement = await self._library.get(VcekRequest.of(report))
        return lambda: endorsement

    async def close(self) -> None:
        """Release connections."""
        await self._library.close()


def verify_table(
    chains: ChainVerifier, report: SnpReport, table: CertificateTable, at: datetime
) -> EndorsementKey:
    """Verify the certificates that came with a report.

    Raises:
        EvidenceError: the table lacks the certificate of the key that signed the report, or the
            chain does not verify.
    """
    kind = report.signing_key
    certificate = table.vcek if kind is SigningKey.VCEK else table.vlek
    if certificate is None:
        raise EvidenceError(
            f"the report is signed by a {kind.upper()}, and the certificates that came with it"
            " hold none"
        )
    return chains.verify(
        certificate, kind=kind, generation=report.generation, at=at, ask=table.ask, ark=table.ark
    )


def verify_vmpl(report: SnpReport, vmpl: int) -> SnpReport:
    """Check the privilege level that a report was asked for from.

    Raises:
        EvidenceError: another: any software in the guest could have asked for it.
    """
    if report.vmpl != vmpl:
        raise EvidenceError(f"the report is of VMPL {report.vmpl}, not {vmpl}")
    return report


def verify_binding(report: SnpReport, expected: ExpectedBinding) -> SnpReport:
    """Check what a report binds.

    Raises:
        EvidenceError: the report data or the host data is not the expected digest.
    """
    if expected.report_data is not None and not hmac.compare_digest(
        fit(expected.report_data, _REPORT_DATA_BYTES), report.report_data
    ):
        raise EvidenceError("the report data is not the digest of the runtime data")
    if expected.init_data is not None and not hmac.compare_digest(
        fit(expected.init_data, _HOST_DATA_BYTES), report.host_data
    ):
        raise EvidenceError("the host data is not the digest of the init-data")
    return report


def _verify(
    report: SnpReport, endorse: Callable[[], EndorsementKey], expected: ExpectedBinding
) -> VerifiedEvidence:
    # what costs nothing comes first
    verify_vmpl(report, _GUEST_VMPL)
    verify_binding(report, expected)
    endorsement = endorse()
    verify_report(report, endorsement)
    return VerifiedEvidence(Tee.SNP, TeeClass.CPU, snp_claims(report, endorsement))
