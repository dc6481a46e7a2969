"""What a verifier is: evidence in, claims out, or an error.

A verifier checks that evidence is genuine (signature, certificate chain, freshness binding) and
says what it shows. Whether that is good enough is the appraisal's business, not the verifier's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from keybroker.model.tee import Tee, TeeClass


@dataclass(frozen=True, slots=True)
class ExpectedBinding:
    """What the evidence must bind.

    Attributes:
        report_data: digest of the runtime data, before it is fitted to the TEE's field
            (:func:`keybroker.model.hashes.fit`); None: nothing is expected (offline use).
        init_data: digest of the init-data, likewise; None: none was sent, nothing is compared.
    """

    report_data: bytes | None = None
    init_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Claims of one device whose evidence verified. Only verifiers make these.

    Attributes:
        tee: kind of the TEE.
        tee_class: class of the device.
        claims: by the names of Trustee's claims page; ``report_data`` and ``init_data`` are among
            them where the evidence carries such fields.
    """

    tee: Tee
    tee_class: TeeClass
    claims: dict[str, Any]


class Verifier(Protocol):
    """One kind of evidence."""

    @property
    def tee(self) -> Tee:
        """The kind this verifier takes."""
        ...

    async def verify(self, evidence: Any, expected: ExpectedBinding) -> list[VerifiedEvidence]:
        """Verify evidence as it came in ``primary_evidence`` (a parsed JSON value).

        Must not block the event loop: what costs more than some 100 µs of CPU runs through
        :func:`keybroker.workbench.run`.

        Returns:
            One entry a device; at least one.

        Raises:
            EvidenceError: the evidence is not genuine, not fresh, or not of this kind.
                ``diagnostics`` says which check failed and why.
        """
        ...

    async def close(self) -> None:
        """Release connections and caches."""
        ...


@runtime_checkable
class ReportsLack(Protocol):
    """A verifier that needs something from elsewhere, and can lack it."""

    def lacking(self) -> Mapping[str, str]:
        """Say what guests asked for that cannot be had now → why; empty: all is well."""
        ...
