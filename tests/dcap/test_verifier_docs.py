"""``docs/verifiers.md`` names every claim there is."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dcap_material import Endorser

from keybroker.model.tee import Tee
from keybroker.softtee.intel_eventlog import SoftwareEventLog
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.verifiers.dcap.evidence import parse_quote_member
from keybroker.verifiers.sgx import verify_sgx
from keybroker.verifiers.tdx import parse_tdx_evidence, verify_tdx

TEXT = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text("utf-8")


def section(title: str) -> str:
    return re.split(r"^## ", TEXT, flags=re.MULTILINE)[
        [part.split("\n")[0] for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)].index(title)
    ]


def names(claims: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in claims.items():
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("tee", [Tee.TDX, Tee.SGX])
def test_every_claim_is_in_the_documentation(
    tee: Tee, platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    log = SoftwareEventLog.linux()
    log.add_agent_event("domain", "operation", "{}")
    collateral, now = endorse(platform, tee), datetime.now(UTC)
    if tee is Tee.TDX:
        evidence = platform.td_evidence(report_data=b"", log=log, version=5, tdx_1_5=True)
        _, verified = verify_tdx(parse_tdx_evidence(evidence), collateral, now)
    else:
        evidence = platform.enclave_evidence(report_data=b"")
        _, verified = verify_sgx(parse_quote_member(evidence, tee), collateral, now)
    documented = section("Intel TDX") + section("Intel SGX")
    # report_data and init_data stand beside the TEE's own claims
    found = set(names(verified.claims)) - {"report_data", "init_data"}
    # of numbered fields the page names the first and the last
    found -= {"quote.body.rtmr_1", "quote.body.rtmr_2", "body.reserved2", "body.reserved3"}
    assert sorted(name for name in found if f"`{name}`" not in documented) == []
    for event in verified.claims.get("uefi_event_logs", []):
        for name in event:
            assert f"`{name}" in documented
        for name in event["details"]:
            assert f"`details.{name}" in documented
