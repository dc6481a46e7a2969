"""A private Intel with one machine, made once: everything below signs with its keys."""

import base64
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.verifiers.dcap.collateral import (
    VerifiedCollateral,
    parse_collateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.roots import intel_root
from keybroker.verifiers.x509 import Certificate, parse_certificate


@pytest.fixture(scope="session")
def intel() -> SoftwareIntel:
    return SoftwareIntel()


@pytest.fixture(scope="session")
def platform(intel: SoftwareIntel) -> SoftwareIntelPlatform:
    return intel.platform()


@pytest.fixture(scope="session")
def software_root(intel: SoftwareIntel) -> Certificate:
    return parse_certificate(intel.root_pem)


@pytest.fixture
def root_file(tmp_path: Path, intel: SoftwareIntel) -> Path:
    path = tmp_path / "software-root.pem"
    path.write_bytes(intel.root_pem)
    return path


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


@pytest.fixture(scope="session")
def endorse(intel: SoftwareIntel, software_root: Certificate) -> Endorser:
    return Endorser(intel, software_root)


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


@pytest.fixture(scope="session")
def recorded_td(evidence_dir: Path) -> Recorded:
    return Recorded(evidence_dir, Tee.TDX, "dcap-qvl-tdx_quote")


@pytest.fixture(scope="session")
def recorded_enclave(evidence_dir: Path) -> Recorded:
    return Recorded(evidence_dir, Tee.SGX, "dcap-qvl-sgx_quote")
