"""The software platform is what hardware would be, as far as other software can tell."""

import json
import stat
import subprocess
import time

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.softtee.certificates import ORGANIZATION, PatchLevels, pem
from keybroker.softtee.kds import Behaviour, SoftwareKds
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.softtee.snp_report import report_json

PLATFORM = SoftwareSnpPlatform.create("Milan")
GENERATIONS = ["Milan", "Genoa", "Turin"]


def test_openssl_takes_the_certificates(tmp_path):
    for name, certificate in {
        "ark": PLATFORM.issuer_certificate("ark"),
        "ask": PLATFORM.issuer_certificate("ask"),
        "asvk": PLATFORM.issuer_certificate("asvk"),
        "vcek": PLATFORM.vek("vcek").certificate,
        "vlek": PLATFORM.vek("vlek").certificate,
    }.items():
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate))
    for issuer, leaf in (("ask", "vcek"), ("asvk", "vlek")):
        command = [
            "openssl", "verify", "-CAfile", "ark.pem", "-untrusted", f"{issuer}.pem", f"{leaf}.pem",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        text = subprocess.run(
            ["openssl", "x509", "-in", f"{leaf}.pem", "-noout", "-text"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "Serial Number: 0 (0x0)" in text
        assert "Salt Length: 0x30" in text
        assert ORGANIZATION in text


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_report_is_signed_by_the_vcek(generation):
    platform = SoftwareSnpPlatform.create(generation)
    raw = platform.report(b"data")
    r, s = (int.from_bytes(raw[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = platform.vek().key.public_key()
    key.verify(encode_dss_signature(r, s), raw[:0x2A0], ec.ECDSA(hashes.SHA384()))


def test_the_certificate_holds_the_key_that_signs():
    vek = PLATFORM.vek()
    spki = vek.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki in vek.certificate


def test_a_saved_platform_comes_back_with_the_same_keys(tmp_path):
    folder = tmp_path / "platform"
    PLATFORM.save(folder)
    loaded = SoftwareSnpPlatform.load(folder)
    assert loaded.root_pem() == PLATFORM.root_pem() == (folder / "root.pem").read_bytes()
    assert (loaded.generation, loaded.chip_id, loaded.tcb) == (
        PLATFORM.generation, PLATFORM.chip_id, PLATFORM.tcb,
    )  # fmt: skip
    for kind in ("vcek", "vlek"):
        numbers = [p.vek(kind).key.private_numbers().private_value for p in (loaded, PLATFORM)]
        assert numbers[0] == numbers[1]
    for private in ("platform.json", "ark.key.pem", "ask.key.pem", "asvk.key.pem"):
        assert stat.S_IMODE((folder / private).stat().st_mode) == 0o600


def test_a_folder_that_holds_no_platform_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"platform\.json"):
        SoftwareSnpPlatform.load(tmp_path)


def test_no_private_key_shows_in_a_representation():
    assert "key" not in repr(PLATFORM.vek()).replace("vcek", "")


def test_another_generation_is_refused():
    with pytest.raises(ValueError, match="Rome"):
        SoftwareSnpPlatform.create("Rome")


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_a_field_never_spills_over(data):
    if len(data) > 64:
        with pytest.raises(ValueError, match="64 bytes"):
            PLATFORM.report(data)
    else:
        raw = PLATFORM.report(data)
        assert len(raw) == 1184
        assert raw[0x50:0x90] == data.ljust(64, b"\0")


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 4), st.sampled_from(GENERATIONS), st.integers(3, 5))
def test_evidence_is_json_with_the_members_of_the_sev_crate(levels, generation, version):
    bootloader, tee, snp, microcode = levels
    fmc = 7 if generation == "Turin" else None
    tcb = PatchLevels(bootloader, tee, snp, microcode, fmc)
    raw = PLATFORM.report(b"", tcb=tcb, generation=generation, version=version)
    report = json.loads(json.dumps(report_json(raw)))
    assert report["reported_tcb"] == {
        "fmc": fmc, "bootloader": bootloader, "tee": tee, "snp": snp, "microcode": microcode,
    }  # fmt: skip
    assert (report["launch_mit_vector"] is None) is (version < 5)
    assert len(report["signature"]["r"]) == len(report["signature"]["s"]) == 72


def test_the_json_has_the_members_of_recorded_evidence(evidence_dir):
    recorded = json.loads((evidence_dir / "snp" / "trustee-e2e-evidence.json").read_bytes())
    made = PLATFORM.evidence(b"")
    assert set(made) == set(recorded)
    optional = {"launch_mit_vector", "current_mit_vector"}  # younger than the recording
    assert set(made["attestation_report"]) - optional == set(recorded["attestation_report"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_service_answers_amds_paths(generation):
    platform = SoftwareSnpPlatform.create(generation)
    tcb = platform.tcb
    query = {
        "blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode,
    }  # fmt: skip
    if tcb.fmc is not None:
        query["fmcSPL"] = tcb.fmc
    with SoftwareKds([platform]) as kds, httpx.Client(base_url=kds.url) as client:
        path = f"/vcek/v1/{generation}/{platform.hardware_id.hex()}"
        assert client.get(path, params=query).content == platform.vek().certificate
        for kind, issuer in (("vcek", "ask"), ("vlek", "asvk")):
            chain = client.get(f"/{kind}/v1/{generation}/cert_chain").content
            assert chain == pem(platform.issuer_certificate(issuer)) + platform.root_pem()
        assert client.get(path).status_code == 404
        assert client.get("/").status_code == 404
        assert client.get(f"/vcek/v1/{generation}/{'00' * 64}", params=query).status_code == 404
        other_path = f"/vcek/v1/Rome/{platform.hardware_id.hex()}"
        assert client.get(other_path, params=query).status_code == 404
        kds.behaviour = Behaviour.ERROR
        assert client.get(path, params=query).status_code == 500
        assert len(kds.requests) == 8


def test_reports_are_made_cheaply():
    PLATFORM.evidence(b"")
    start = time.process_time()
    for number in range(200):
        PLATFORM.evidence(number.to_bytes(8, "little"))
    assert (time.process_time() - start) / 200 < 0.005
