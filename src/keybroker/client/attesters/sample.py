"""Attesters that prove nothing: for trying out a broker without any hardware."""

import base64
from dataclasses import dataclass
from typing import Any

from keybroker.model.tee import Tee


@dataclass(frozen=True)
class SampleAttester:
    """Makes evidence that anybody can make; brokers refuse it unless told otherwise."""

    svn: str = "1"
    tee: Tee = Tee.SAMPLE

    def evidence(self, report_data: bytes) -> Any:
        """Return the security version and the report data in base64."""
        return {"svn": self.svn, "report_data": base64.b64encode(report_data).decode()}


@dataclass(frozen=True)
class SampleDeviceAttester:
    """Stands for an additional device, as :class:`SampleAttester` does for the CPU."""

    svn: str = "2"
    tee: Tee = Tee.SAMPLE_DEVICE

    def evidence(self, report_data: bytes) -> Any:
        """Return the security version and the report data in base64."""
        return {"svn": self.svn, "report_data": base64.b64encode(report_data).decode()}
