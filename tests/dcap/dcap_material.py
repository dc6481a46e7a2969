"""What tests of DCAP are made of: recorded quotes, and collateral of a private Intel."""

import base64
from datetime import datetime
from pathlib import Path
from typing import Any

from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.verifiers.dcap.collateral import (
    VerifiedCollateral,
    parse_collateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.roots import intel_root
from keybroker.verifiers.x509 import Certificate


class Endorser:
    """Makes verified collateral."""

    def __init__(self, intel: SoftwareIntel, root: Certificate) -> None:
        self._intel = intel
        self._root = root

    def __call__(
        self, platform: SoftwareIntelPlatform, tee: Tee, **terms: Any
    ) -> VerifiedCollateral:
        made = self._intel.collateral(platform, tee.value, Terms(**terms))
        return verify_collateral(parse_collateral(made.to_json()), tee, [self._root])


class Recorded:
    """A recorded quote with the collateral that was valid for it."""

    def __init__(self, folder: Path, tee: Tee, name: str) -> None:
        self.tee = tee
        self.path = folder / tee.value / name
        self.raw = self.path.read_bytes()
        self.collateral_path = self.path.with_name(f"{name}_collateral.json")
        self.evidence = {"quote": base64.b64encode(self.raw).decode("ascii")}
        parts = parse_collateral(self.collateral_path.read_bytes())
        self.collateral = verify_collateral(parts, tee, [intel_root()])

    @property
    def valid_at(self) -> datetime:
        return self.collateral.latest_issue
