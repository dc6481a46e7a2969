"""``keybroker verify --tee tdx|sgx`` and ``keybroker collateral``."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dcap_material import Recorded

from keybroker.cli.main import main
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_eventlog import SoftwareEventLog
from keybroker.softtee.intel_pccs import Behaviour, SoftwarePccs
from keybroker.softtee.intel_quote import TD_DEBUG, TD_SEPT_VE_DISABLE, SoftwareIntelPlatform


@pytest.fixture
def pccs(intel: SoftwareIntel, platform: SoftwareIntelPlatform) -> Iterator[SoftwarePccs]:
    with SoftwarePccs(intel, [platform]) as service:
        yield service


def verified(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["verify", "--json", *map(str, arguments)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["verify", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def at(recorded: Recorded, days: int = 0) -> str:
    return (recorded.valid_at + timedelta(days=days)).isoformat()


def test_a_recorded_td_is_up_to_date(
    recorded_td: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--tee", "tdx", recorded_td.path, "--collateral", recorded_td.collateral_path)
    document = verified(capsys, *arguments, "--at", at(recorded_td))
    claims = document["devices"][0]["claims"]
    assert (claims["tcb_status"], claims["collateral_expiration_status"]) == ("UpToDate", "0")
    assert document["root"] == "Intel's root, built in"
    next_update = recorded_td.collateral.tcb_info.next_update + timedelta(days=1)
    document = verified(capsys, *arguments, "--at", next_update.isoformat())
    assert document["devices"][0]["claims"]["collateral_expiration_status"] == "1"
    assert any("expired" in remark for remark in document["remarks"])


def test_a_recorded_enclave_has_its_advisories(
    recorded_enclave: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    document = verified(
        capsys,
        *("--tee", "sgx", recorded_enclave.path, "--at", at(recorded_enclave)),
        *("--collateral", recorded_enclave.collateral_path),
    )
    claims = document["devices"][0]["claims"]
    assert claims["tcb_status"] == "ConfigurationAndSWHardeningNeeded"
    assert claims["advisory_ids"] == ["INTEL-SA-00289", "INTEL-SA-00615"]


def test_a_changed_quote_is_refused_with_the_reason(
    recorded_td: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = bytearray(recorded_td.raw)
    changed[200] ^= 1
    path = tmp_path / "quote"
    path.write_bytes(changed)
    arguments = (path, "--collateral", recorded_td.collateral_path, "--at", at(recorded_td))
    assert "refused:" in refused(capsys, "--tee", "tdx", *arguments)
    assert "not sgx" in refused(capsys, "--tee", "sgx", *arguments)


def test_usage_that_lacks_something_says_what(
    recorded_enclave: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--tee", "sgx", str(recorded_enclave.path)]) == 2
    assert "--collateral" in capsys.readouterr().err
    arguments = ["--eventlog", str(recorded_enclave.path)]
    assert main(["verify", "--tee", "sgx", str(recorded_enclave.path), *arguments]) == 2
    missing = ["--collateral", str(tmp_path / "none.json")]
    assert main(["verify", "--tee", "sgx", str(recorded_enclave.path), *missing]) == 1


@pytest.fixture
def guest(tmp_path: Path, platform: SoftwareIntelPlatform) -> Path:
    log = SoftwareEventLog.linux()
    (tmp_path / "ccel").write_bytes(log.raw)
    raw = platform.td_quote(report_data=b"\xab" * 48, rtmrs=log.registers)
    path = tmp_path / "quote"
    path.write_bytes(raw)
    return path


def test_a_software_td_with_its_log_from_a_service(
    guest: Path, root_file: Path, pccs: SoftwarePccs, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tee", "tdx", guest, "--collateral-service", pccs.url]
    log = ["--eventlog", guest.parent / "ccel"]
    document = verified(capsys, *arguments, *log, "--root", root_file, "--report-data", "ab" * 48)
    claims = document["devices"][0]["claims"]
    assert claims["uefi_event_logs"][2]["details"]["device_paths"] == ["File(kernel)"]
    assert document["root"].startswith("not Intel's")
    assert "root" in refused(capsys, *arguments, *log)
    reason = refused(capsys, *arguments, "--root", root_file, "--report-data", "ac" * 48)
    assert "report data" in reason
    (guest.parent / "ccel").write_bytes(SoftwareEventLog.linux(b"other").raw)
    assert "register" in refused(capsys, *arguments, *log, "--root", root_file)
    pccs.behaviour = Behaviour.NOT_FOUND
    assert "status 404" in refused(capsys, *arguments, "--root", root_file)


def test_evidence_as_guests_send_it_and_a_debug_td(
    tmp_path: Path,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    root_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evidence = platform.td_evidence(
        report_data=b"", log=SoftwareEventLog.linux(), attributes=TD_DEBUG | TD_SEPT_VE_DISABLE
    )
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(evidence))
    collateral = tmp_path / "collateral.json"
    collateral.write_bytes(intel.collateral(platform, "tdx").to_json())
    document = verified(
        capsys, "--tee", "tdx", path, "--collateral", collateral, "--root", root_file
    )
    assert document["devices"][0]["claims"]["td_attributes"]["debug"] is True
    assert any("debug mode" in remark for remark in document["remarks"])


def test_collateral_travels_from_a_service_to_an_offline_broker(
    *,
    tmp_path: Path,
    guest: Path,
    root_file: Path,
    pccs: SoftwarePccs,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "collateral"
    trust = ["--root", str(root_file)]
    fetch = ["collateral", "fetch", "--service", pccs.url, *trust, "--output", str(folder)]
    assert main([*fetch, "--quote", str(guest)]) == 0
    sgx = ["--tee", "sgx", "--fmspc", platform.fmspc.hex()]
    assert main([*fetch, *sgx]) == 0
    files = sorted(folder.glob("*.json"))
    assert [file.name for file in files] == [
        "sgx-B0C06F000000-platform.json",
        "tdx-B0C06F000000-platform.json",
    ]
    config = tmp_path / "kbs.json"
    config.write_text(
        json.dumps(
            {
                "admin": {"type": "DenyAll"},
                "storage_backend": {
                    "storage_type": "Sqlite",
                    "backends": {"sqlite": {"path": str(tmp_path / "store.db")}},
                },
                "attestation_service": {
                    "type": "coco_as_builtin",
                    "verifier_config": {"dcap_verifier": {"extra_trusted_roots": [str(root_file)]}},
                },
            }
        )
    )
    capsys.readouterr()
    listing = ["collateral", "list", "-c", str(config)]
    assert main(listing) == 1
    assert main(["collateral", "import", "-c", str(config), *map(str, files)]) == 0
    capsys.readouterr()
    assert main([*listing, "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert sorted(entry["tee"] for entry in held) == ["sgx", "tdx"]
    assert all(entry["valid"] and entry["fmspc"] == "B0C06F000000" for entry in held)
    assert main(["verify", "--tee", "tdx", str(guest), "--collateral", str(folder), *trust]) == 0

    foreign = tmp_path / "foreign.json"
    foreign.write_bytes(SoftwareIntel().collateral(platform, "tdx").to_json())
    assert main(["collateral", "import", "-c", str(config), str(foreign)]) == 1
    old = Terms(
        issued=Terms().issued - timedelta(days=60), next_update=Terms().issued - timedelta(days=1)
    )
    expired = tmp_path / "expired.json"
    expired.write_bytes(intel.collateral(platform, "tdx", old).to_json())
    capsys.readouterr()
    assert main(["collateral", "list", str(expired), *trust]) == 1
    assert "EXPIRED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch"],
        ["fetch", "--fmspc", "zz"],
        ["fetch", "--quote", "/nonexistent/quote"],
        ["import", "/nonexistent/file"],
        ["list"],
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KBS_CONFIG_FILE", raising=False)
    assert main(["collateral", *arguments]) == 1
    assert capsys.readouterr().err.startswith("keybroker collateral: ")


def test_evidence_in_base64_is_not_a_quote(
    tmp_path: Path, recorded_td: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "quote.b64"
    path.write_bytes(base64.b64encode(recorded_td.raw))
    assert "refused" in refused(capsys, "--tee", "tdx", path)
