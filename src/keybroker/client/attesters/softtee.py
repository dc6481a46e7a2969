"""Software TEEs as attesters: complete evidence, signed under a root that nobody trusts by default.

What makes the evidence is passed in, so that a guest's client needs no code that forges evidence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from keybroker.model.tee import Tee


class EvidenceSource(Protocol):
    """A software platform, such as ``keybroker.softtee.snp.SoftwareSnpPlatform``."""

    @property
    def evidence(self) -> Callable[..., Any]:
        """A function of ``report_data`` (bytes) and perhaps more that returns a JSON value."""


@dataclass(frozen=True)
class SoftTeeAttester:
    """Attests as a guest that was launched on a software platform.

    Attributes:
        platform: what makes the evidence.
        launch: further arguments of its ``evidence``: what the host gave the guest at its launch,
            such as ``host_data``.
    """

    platform: EvidenceSource
    tee: Tee = Tee.SNP
    launch: dict[str, Any] = field(default_factory=dict)

    def evidence(self, report_data: bytes) -> Any:
        """Let the platform make evidence."""
        return self.platform.evidence(report_data=report_data, **self.launch)
