"""``keybroker verify --tee snp``, as a user runs it."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from keybroker.cli.main import main
from keybroker.softtee.kds import SoftwareKds
from keybroker.softtee.snp import Flaw, SoftwareSnpPlatform


def verify(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["verify", "--tee", "snp", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def snp(evidence_dir: Path) -> Path:
    return evidence_dir / "snp"


@pytest.fixture
def evidence_file(milan: SoftwareSnpPlatform, tmp_path: Path):
    def make(**options) -> Path:
        path = tmp_path / "evidence.json"
        path.write_text(json.dumps(milan.evidence(options.pop("report_data", b""), **options)))
        return path

    return make


@pytest.fixture
def root(milan: SoftwareSnpPlatform, tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_bytes(milan.chain_pem())
    return path


def test_recorded_guest_evidence_is_accepted_as_it_is(capsys, snp):
    code, out, err = verify(capsys, snp / "trustee-e2e-evidence.json")
    assert (code, err) == (0, "")
    assert "accepted" in out
    assert "ARK-Genoa" in out
    assert "AMD's root" in out
    assert "remark" not in out


def test_a_recorded_version_2_report_is_accepted_with_its_processor_named(capsys, snp):
    report, certificate = snp / "test-report.bin", snp / "test-vcek.der"
    code, out, _ = verify(capsys, report, "--vcek", certificate, "--processor", "milan", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["accepted"] is True
    assert [link["name"] for link in document["chain"]] == ["SEV-VCEK", "SEV-Milan", "ARK-Milan"]
    assert document["devices"][0]["claims"]["processor"] == "Milan"
    assert any("version 2" in remark for remark in document["remarks"])
    code, _, err = verify(capsys, report, "--vcek", certificate)
    assert code == 2
    assert "--processor" in err


def test_a_recorded_vlek_report_is_accepted_with_what_a_broker_would_hold_against_it(capsys, snp):
    report, certificate = snp / "test-vlek-report.bin", snp / "test-vlek.der"
    code, out, _ = verify(capsys, report, "--cert", certificate)
    assert code == 0
    assert "VMPL 1; a broker takes only VMPL 0" in out
    assert "expired at 2025-12-10" in out
    code, _, err = verify(capsys, report, "--cert", certificate, "--at", "now")
    assert code == 1
    assert "expired" in err
    code, out, _ = verify(capsys, report, "--cert", certificate, "--at", "2025-06-01")
    assert code == 0
    assert "expired" not in out
    assert verify(capsys, report, "--cert", certificate, "--vmpl", "1")[0] == 0
    code, _, err = verify(capsys, report, "--cert", certificate, "--vmpl", "0")
    assert code == 1
    assert "VMPL 1, not 0" in err
    assert verify(capsys, report)[0] == 2


@pytest.mark.parametrize("name", ["test-vcek-invalid-legacy.der", "test-vcek-invalid-new.der"])
def test_the_invalid_recorded_certificates_are_refused(capsys, snp, name):
    report = snp / "test-report.bin"
    code, out, err = verify(capsys, report, "--cert", snp / name, "--processor", "milan")
    assert (code, out) == (1, "")
    assert "not signed by" in err


def test_three_hundred_flipped_bits_are_refused(capsys, snp, tmp_path):
    raw = (snp / "test-report.bin").read_bytes()
    mutated_file = tmp_path / "mutated.bin"
    bits = random.Random(1).sample(range(0x2A0 * 8), 250)
    bits += random.Random(2).sample(range(0x2A0 * 8, 0x330 * 8), 50)
    for bit in bits:
        mutated = bytearray(raw)
        mutated[bit // 8] ^= 1 << bit % 8
        mutated_file.write_bytes(mutated)
        code, _, err = verify(
            capsys, mutated_file, "--cert", snp / "test-vcek.der", "--processor", "milan"
        )
        assert code == 1, f"bit {bit}"
        assert "refused:" in err


def test_a_refusal_in_json_says_why(capsys, evidence_file, root):
    path = evidence_file(flaw=Flaw.OTHER_MICROCODE)
    code, out, err = verify(capsys, path, "--root", root, "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert document["accepted"] is False
    assert "microcode version" in document["reason"]


def test_a_software_root_is_trusted_only_when_it_is_named(capsys, evidence_file, root):
    code, out, _ = verify(capsys, evidence_file(), "--root", root)
    assert code == 0
    assert "remark: the chain ends in a root that is not AMD's" in out
    code, _, err = verify(capsys, evidence_file())
    assert code == 1
    assert "not a trusted root" in err


def test_report_data_is_demanded_in_hexadecimal_or_from_a_file(
    capsys, evidence_file, root, tmp_path
):
    digest = hashlib.sha384(b"runtime data").digest()
    path = evidence_file(report_data=digest)
    (tmp_path / "digest").write_bytes(digest)
    for given in (digest.hex(), f"@{tmp_path / 'digest'}"):
        assert verify(capsys, path, "--root", root, "--report-data", given)[0] == 0
    code, _, err = verify(capsys, path, "--root", root, "--report-data", "00")
    assert code == 1
    assert "report data" in err
    for given in ("xyz", "@" + str(tmp_path / "absent")):
        assert verify(capsys, path, "--root", root, "--report-data", given)[0] == 2


@pytest.mark.parametrize(
    "text",
    [
        'algorithm = "sha256"\nversion = "0.1.0"\n[data]\n',
        '{"algorithm": "sha-256", "version": "1", "data": {}}',
    ],
)
def test_init_data_is_demanded_by_the_digest_that_it_names(
    capsys, evidence_file, root, tmp_path, text
):
    init_data = tmp_path / "init-data"
    init_data.write_text(text)
    path = evidence_file(host_data=hashlib.sha256(text.encode()).digest())
    assert verify(capsys, path, "--root", root, "--init-data", init_data)[0] == 0
    init_data.write_text(text + "\n")
    code, _, err = verify(capsys, path, "--root", root, "--init-data", init_data)
    assert code == 1
    assert "host data" in err
    init_data.write_text("nothing")
    assert verify(capsys, path, "--root", root, "--init-data", init_data)[0] == 2


def test_a_missing_vcek_is_fetched_where_the_user_says(
    capsys, evidence_file, root, milan, tmp_path
):
    path = evidence_file(with_table=False)
    code, _, err = verify(capsys, path, "--root", root)
    assert code == 2
    assert "--kds" in err
    with SoftwareKds([milan]) as kds:
        assert verify(capsys, path, "--root", root, "--kds", kds.url)[0] == 0
        assert len(kds.requests) == 1
    code, _, err = verify(capsys, path, "--root", root, "--offline-store", tmp_path)
    assert code == 1
    assert "no VCEK from the offline store" in err
    chip = tmp_path / "vcek" / milan.hardware_id.hex()
    chip.mkdir(parents=True)
    (chip / "vcek.der").write_bytes(milan.vek().certificate)
    assert verify(capsys, path, "--root", root, "--offline-store", tmp_path)[0] == 0


def test_certificates_from_files_find_their_places(capsys, evidence_file, milan, root, tmp_path):
    path = evidence_file(with_table=False)
    (tmp_path / "vcek.der").write_bytes(milan.vek().certificate)
    chain = ("--cert", tmp_path / "vcek.der", "--cert", root)
    ark = tmp_path / "ark.pem"
    ark.write_bytes(milan.root_pem())
    assert verify(capsys, path, *chain, "--root", ark)[0] == 0
    (tmp_path / "ask.der").write_bytes(milan.issuer_certificate("ask"))
    chain = ("--cert", tmp_path / "vcek.der", "--cert", tmp_path / "ask.der")
    assert verify(capsys, path, *chain, "--root", ark)[0] == 0
    assert verify(capsys, path, "--cert", tmp_path / "absent")[0] == 2
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    assert verify(capsys, path, "--cert", tmp_path / "rubbish")[0] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 1184, b"x" * 1183, b'{"a": 1}'])
def test_what_is_no_evidence_is_refused(capsys, tmp_path, content):
    path = tmp_path / "evidence"
    path.write_bytes(content)
    code, _, err = verify(capsys, path)
    assert code == 1
    assert err.startswith("refused: ")


def test_wrong_usage_is_told_from_a_refusal(capsys, tmp_path):
    assert verify(capsys, tmp_path / "absent")[0] == 2
    assert verify(capsys, tmp_path)[0] == 2
    assert verify(capsys, tmp_path, "--at", "yesterday")[0] == 2
    assert verify(capsys)[0] == 2
    (tmp_path / "evidence").write_bytes(b"{}")
    assert verify(capsys, tmp_path / "evidence", "--root", tmp_path / "absent")[0] == 2


def test_evidence_is_read_from_standard_input(snp):
    command = [sys.executable, "-m", "keybroker.cli.main", "verify", "--tee", "snp", "-"]
    raw = (snp / "trustee-e2e-evidence.json").read_bytes()
    done = subprocess.run(command, input=raw, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"accepted" in done.stdout


REFERENCE_VALUES = {
    "snp_launch_measurement": ["6d" * 48],
    "snp_bootloader": [4], "snp_tee_svn": [0], "snp_snp_svn": [24], "snp_microcode": [219],
    "snp_smt_enabled": True, "snp_tsme_enabled": False, "snp_guest_abi_major": 0,
    "snp_guest_abi_minor": 0, "snp_single_socket": False, "snp_smt_allowed": True,
}  # fmt: skip


def test_claims_are_appraised_by_the_built_in_policy(capsys, evidence_file, root, tmp_path):
    path = evidence_file(measurement=b"m" * 48)
    values = tmp_path / "values.json"
    values.write_text(json.dumps(REFERENCE_VALUES))
    trusted = (path, "--root", root)
    code, out, _ = verify(capsys, *trusted, "--reference-values", values, "--json")
    (appraisal,) = json.loads(out)["appraisals"]
    assert code == 0
    assert appraisal["ear.status"] == "affirming"
    assert appraisal["ear.trustworthiness-vector"]["executables"] == 3
    code, out, _ = verify(capsys, *trusted, "--appraise")
    assert code == 0
    assert "appraisal: contraindicated, by the built-in policy default_cpu" in out
    values.write_text("[]")
    assert verify(capsys, *trusted, "--reference-values", values)[0] == 2


def test_claims_are_appraised_by_a_policy_of_the_users(capsys, evidence_file, root, tmp_path):
    policy = tmp_path / "policy.rego"
    policy.write_text(
        "package policy\nimport rego.v1\n"
        'trust_claims := {"hardware": 2} if input.snp.processor == "Milan"\n'
    )
    path = evidence_file()
    code, out, _ = verify(capsys, path, "--root", root, "--policy", policy)
    assert code == 0
    assert "appraisal: affirming, by the policy given" in out
    policy.write_text("package policy\nthis is none")
    code, _, err = verify(capsys, path, "--root", root, "--policy", policy)
    assert code == 2
    assert "does not compile" in err
