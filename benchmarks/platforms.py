"""The software platforms that guests of a benchmark run on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.scripts import INTEL_COLLATERAL, INTEL_MACHINE, INTEL_ROOT
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.snp import SoftwareSnpPlatform


def make_platforms(folder: Path) -> None:
    """Make a machine of each TEE, with what a broker needs to trust it, in a new folder."""
    SoftwareSnpPlatform.create().save(folder)
    intel = SoftwareIntel()
    machine = intel.platform()
    machine.save(folder / INTEL_MACHINE)
    (folder / INTEL_ROOT).write_bytes(intel.root_pem)
    terms = Terms(next_update=datetime.now(UTC) + timedelta(days=365))
    (folder / INTEL_COLLATERAL).write_bytes(intel.collateral(machine, "tdx", terms).to_json())
