"""A private Intel with one machine, made once: everything below signs with its keys."""

from pathlib import Path

import pytest
from dcap_material import Endorser, Recorded

from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
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


@pytest.fixture(scope="session")
def endorse(intel: SoftwareIntel, software_root: Certificate) -> Endorser:
    return Endorser(intel, software_root)


@pytest.fixture(scope="session")
def recorded_td(evidence_dir: Path) -> Recorded:
    return Recorded(evidence_dir, Tee.TDX, "dcap-qvl-tdx_quote")


@pytest.fixture(scope="session")
def recorded_enclave(evidence_dir: Path) -> Recorded:
    return Recorded(evidence_dir, Tee.SGX, "dcap-qvl-sgx_quote")
