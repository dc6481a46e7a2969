"""SEV-SNP evidence: recorded on hardware, and made in software with one thing wrong."""

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee, TeeClass
from keybroker.softtee.certificates import Extension
from keybroker.softtee.snp import Flaw, SoftwareSnpPlatform
from keybroker.verifiers.interface import ExpectedBinding
from keybroker.verifiers.snp_chain import HARDWARE_ID, ChainVerifier, verify_report
from keybroker.verifiers.snp_report import (
    REPORT_BYTES,
    Generation,
    SigningKey,
    SnpReport,
    parse_report,
)
from keybroker.verifiers.snp_roots import amd_anchors, load_extra_anchor

GENERATIONS = ["Milan", "Genoa", "Turin"]
ANYTHING = ExpectedBinding()


async def refusal(verifier, evidence: Any, expected: ExpectedBinding = ANYTHING) -> str:
    with pytest.raises(EvidenceError) as caught:
        await verifier.verify(evidence, expected)
    assert caught.value.detail == EvidenceError.default_detail
    return caught.value.diagnostics()


async def test_recorded_evidence_verifies_up_to_amds_root(evidence_dir: Path, snp_verifier):
    value = json.loads((evidence_dir / "snp" / "trustee-e2e-evidence.json").read_bytes())
    report_data = bytes(value["attestation_report"]["report_data"])
    (device,) = await snp_verifier().verify(value, ExpectedBinding(report_data, bytes(48)))
    assert (device.tee, device.tee_class) == (Tee.SNP, TeeClass.CPU)
    expected = {
        "policy_abi_major": 0, "policy_abi_minor": 0, "policy_smt_allowed": True,
        "policy_migrate_ma": False, "policy_debug_allowed": False, "policy_single_socket": False,
        "reported_tcb_bootloader": 10, "reported_tcb_tee": 0, "reported_tcb_snp": 23,
        "reported_tcb_microcode": 25, "platform_tsme_enabled": False,
        "platform_smt_enabled": True, "init_data": "00" * 32, "report_data": report_data.hex(),
        "measurement": bytes(value["attestation_report"]["measurement"]).hex(),
        "chip_id": bytes(value["attestation_report"]["chip_id"]).hex(),
        "vek_type": "vcek", "processor": "Genoa", "root_is_amd": True, "vmpl": 0,
        "platform_alias_check_complete": True, "current_version": "1.55.40",
    }  # fmt: skip
    assert {name: device.claims[name] for name in expected} == expected
    assert "reported_tcb_fmc" not in device.claims
    json.dumps(device.claims)


def recorded(evidence_dir: Path, kind: str) -> tuple[bytes, bytes, Generation, SigningKey]:
    folder = evidence_dir / "snp"
    if kind == "vlek":
        report, certificate = "test-vlek-report.bin", "test-vlek.der"
    else:
        report, certificate = "test-report.bin", "test-vcek.der"
    raw, der = (folder / report).read_bytes(), (folder / certificate).read_bytes()
    return raw, der, Generation.MILAN, SigningKey(kind)


#: A moment at which every recorded certificate is valid.
RECORDED_AT = datetime(2025, 6, 1, tzinfo=UTC)


def verify_recorded(raw: bytes, certificate: bytes, kind: SigningKey) -> SnpReport:
    chains = ChainVerifier(amd_anchors())
    endorsement = chains.verify(certificate, kind=kind, generation=Generation.MILAN, at=RECORDED_AT)
    return verify_report(parse_report(raw, processor=Generation.MILAN), endorsement)


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_recorded_reports_verify(evidence_dir: Path, kind):
    raw, certificate, _, signing = recorded(evidence_dir, kind)
    assert verify_recorded(raw, certificate, signing).signing_key is signing


def azure_report(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Take the SNP report and the VCEK out of recorded evidence of an Azure guest."""
    value = json.loads((folder / f"evidence-{name}.json").read_bytes())
    hcl = value.get("hcl_report") or value["report"]
    raw = bytes(hcl) if isinstance(hcl, list) else base64.urlsafe_b64decode(hcl + "==")
    vcek = value["vcek"]
    # the report follows the 32 bytes of the HCL header
    report = raw[32 : 32 + REPORT_BYTES]
    return report, vcek.encode() if "-" in vcek[:5] else base64.urlsafe_b64decode(vcek + "==")


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "genoa"])
def test_recorded_reports_of_azure_guests_verify(evidence_dir: Path, name):
    raw, vcek = azure_report(evidence_dir / "az-snp-vtpm", name)
    generation = Generation.GENOA if name == "genoa" else Generation.MILAN
    endorsement = ChainVerifier(amd_anchors()).verify(
        vcek, kind=SigningKey.VCEK, generation=generation, at=RECORDED_AT
    )
    report = verify_report(parse_report(raw, processor=generation), endorsement)
    assert endorsement.hardware_id == report.chip_id
    assert report.vmpl == 0


def test_a_key_of_another_kind_or_generation_does_not_speak_for_a_report(platform_of, tmp_path):
    keys = {}
    for generation in ("Milan", "Genoa"):
        platform, root = platform_of(generation), tmp_path / generation
        root.write_bytes(platform.chain_pem())
        for kind in SigningKey:
            keys[generation, kind] = ChainVerifier([load_extra_anchor(root)]).verify(
                platform.vek(kind).certificate,
                kind=kind,
                generation=Generation(generation),
                at=datetime.now(UTC),
            )
    report = parse_report(platform_of("Milan").report(b""))
    verify_report(report, keys["Milan", SigningKey.VCEK])
    with pytest.raises(EvidenceError, match="the certificate is of a VLEK"):
        verify_report(report, keys["Milan", SigningKey.VLEK])
    with pytest.raises(EvidenceError, match="the certificate is for Genoa"):
        verify_report(report, keys["Genoa", SigningKey.VCEK])


@pytest.mark.parametrize("name", ["test-vcek-invalid-legacy.der", "test-vcek-invalid-new.der"])
def test_the_invalid_recorded_certificates_are_refused(evidence_dir: Path, name):
    raw, *_ = recorded(evidence_dir, "vcek")
    with pytest.raises(EvidenceError, match="not signed by"):
        verify_recorded(raw, (evidence_dir / "snp" / name).read_bytes(), SigningKey.VCEK)


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_every_flipped_bit_of_a_recorded_report_is_refused(evidence_dir: Path, kind):
    raw, certificate, generation, signing = recorded(evidence_dir, kind)
    chains = ChainVerifier(amd_anchors())
    endorsement = chains.verify(certificate, kind=signing, generation=generation, at=RECORDED_AT)
    # one bit of each signed byte, and of each byte of the signature field
    chosen = random.Random(0)
    for offset in range(len(raw)):
        mutated = bytearray(raw)
        mutated[offset] ^= 1 << chosen.randrange(8)
        with pytest.raises(EvidenceError):
            verify_report(parse_report(bytes(mutated), processor=generation), endorsement)


@pytest.mark.parametrize("signing", ["vcek", "vlek"])
@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("generation", GENERATIONS)
async def test_software_evidence_of_every_kind_verifies(
    generation, version, signing, platform_of, snp_verifier
):
    platform = platform_of(generation)
    evidence = platform.evidence(
        b"d" * 48, version=version, signing=signing, host_data=b"h" * 32, mitigations=5
    )
    (device,) = await snp_verifier(platform).verify(evidence, ExpectedBinding(b"d" * 48, b"h" * 48))
    claims = device.claims
    assert claims["processor"] == generation
    assert claims["vek_type"] == signing
    assert claims["root_is_amd"] is False
    assert claims.get("reported_tcb_fmc") == platform.tcb.fmc
    assert claims.get("launch_mit_vector") == ("0" * 15 + "5" if version == 5 else None)
    assert claims.get("vlek_provider") == ("CN=software.invalid" if signing == "vlek" else None)


@pytest.mark.parametrize("flaw", Flaw)
@pytest.mark.parametrize("signing", ["vcek", "vlek"])
@pytest.mark.parametrize("generation", GENERATIONS)
async def test_every_flaw_is_refused(generation, signing, flaw, platform_of, snp_verifier):
    if flaw is Flaw.OTHER_FMC and generation != "Turin":
        generation = "Turin"  # the only one that has it
    if flaw is Flaw.OTHER_CHIP and signing == "vlek":
        signing = "vcek"  # a VLEK is for no chip
    platform = platform_of(generation)
    verifier = snp_verifier(platform)
    await verifier.verify(platform.evidence(b"", signing=signing), ANYTHING)
    reason = await refusal(verifier, platform.evidence(b"", signing=signing, flaw=flaw))
    words = {
        Flaw.BAD_SIGNATURE: "signature of the report", Flaw.NO_SIGNATURE: "signature of the report",
        Flaw.OTHER_KEY: "signature of the report", Flaw.OTHER_CHIP: "another chip",
        Flaw.OTHER_BOOTLOADER: "bootloader version", Flaw.OTHER_TEE: "tee version",
        Flaw.OTHER_SNP: "snp version", Flaw.OTHER_MICROCODE: "microcode version",
        Flaw.OTHER_FMC: "fmc version", Flaw.OTHER_PRODUCT: "product", Flaw.EXPIRED: "expired",
        Flaw.NOT_YET_VALID: "not valid before", Flaw.DUPLICATE_EXTENSION: "twice",
        Flaw.BAD_CERTIFICATE: "not signed by", Flaw.OTHER_ROOT: "not signed by",
        Flaw.FOREIGN_ARK: "not a trusted root", Flaw.SWAPPED_ISSUER: "issuer that came",
        Flaw.OTHER_KIND: "the certificate is of", Flaw.NO_CERTIFICATE: "hold none",
    }  # fmt: skip
    assert words[flaw] in reason


async def test_a_software_root_is_trusted_only_when_it_is_named(platform_of, snp_verifier):
    milan, genoa = platform_of("Milan"), platform_of("Genoa")
    for verifier in (snp_verifier(), snp_verifier(genoa)):
        assert "not a trusted root" in await refusal(verifier, milan.evidence(b""))


async def test_a_root_vouches_for_its_own_generation_alone(milan, snp_verifier):
    evidence = milan.evidence(b"", generation="Genoa")
    assert "not a trusted root for Genoa" in await refusal(snp_verifier(milan), evidence)


@pytest.mark.parametrize("vmpl", [1, 2, 3, 2**32 - 1])
async def test_only_vmpl_0_is_taken(vmpl, milan, snp_verifier):
    assert f"VMPL {vmpl}" in await refusal(snp_verifier(milan), milan.evidence(b"", vmpl=vmpl))


@pytest.mark.parametrize("size", [32, 48, 64])
async def test_other_report_data_is_refused(size, milan, snp_verifier):
    verifier, digest = snp_verifier(milan), bytes(range(size))
    evidence = milan.evidence(digest)
    await verifier.verify(evidence, ExpectedBinding(report_data=digest))
    for other in (digest[:-1], digest[:-1] + b"\xff", b"", bytes(size)):
        reason = await refusal(verifier, evidence, ExpectedBinding(report_data=other))
        assert "report data" in reason


async def test_other_host_data_is_refused(milan, snp_verifier):
    verifier, digest = snp_verifier(milan), bytes(range(48))
    evidence = milan.evidence(b"", host_data=digest[:32])
    await verifier.verify(evidence, ExpectedBinding(init_data=digest))
    reason = await refusal(verifier, evidence, ExpectedBinding(init_data=digest[1:]))
    assert "host data" in reason


async def test_version_2_is_refused_for_guests(milan, snp_verifier):
    assert "which processor" in await refusal(snp_verifier(milan), milan.evidence(b"", version=2))


async def test_a_masked_chip_id_is_taken_with_a_table(milan, snp_verifier):
    (device,) = await snp_verifier(milan).verify(milan.evidence(b"", mask_chip_id=True), ANYTHING)
    assert device.claims["chip_id"] == "00" * 64


async def test_a_wrapped_hardware_id_is_compared_as_well(platform_of, snp_verifier):
    for generation in ("Milan", "Turin"):
        platform = platform_of(generation)
        verifier = snp_verifier(platform)
        key = platform.vek().key.public_key()
        for chip_id in (platform.chip_id, bytes(64)):
            evidence = platform.evidence(b"")
            certificate = platform.vek_certificate(
                "vcek", key, chip_id=chip_id, wrap_hardware_id=True
            )
            evidence["cert_chain"] = with_certificate(evidence, "VCEK", certificate)
            if chip_id == platform.chip_id:
                await verifier.verify(evidence, ANYTHING)
            else:
                assert "another chip" in await refusal(verifier, evidence)


def with_certificate(evidence: dict, kind: str, certificate: bytes) -> list[dict]:
    return [
        {**entry, "data": list(certificate)} if entry["cert_type"] == kind else entry
        for entry in evidence["cert_chain"]
    ]


async def test_a_key_on_another_curve_is_refused(milan, snp_verifier):
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    evidence = milan.evidence(b"")
    certificate = milan.vek_certificate("vcek", key)
    evidence["cert_chain"] = with_certificate(evidence, "VCEK", certificate)
    assert "not on P-384" in await refusal(snp_verifier(milan), evidence)


async def test_a_vlek_for_one_chip_is_refused(milan, snp_verifier):
    evidence = milan.evidence(b"", signing="vlek")
    certificate = milan.vek_certificate(
        "vlek",
        milan.vek("vlek").key.public_key(),
        further_extensions=(Extension(HARDWARE_ID, milan.chip_id),),
    )
    evidence["cert_chain"] = with_certificate(evidence, "VLEK", certificate)
    assert "has a hardware id" in await refusal(snp_verifier(milan), evidence)


async def test_a_vlek_without_its_certificate_is_said_to_need_it(milan, snp_verifier):
    evidence = milan.evidence(b"", signing="vlek", with_table=False)
    assert "VLEK" in await refusal(snp_verifier(milan), evidence)


async def test_garbage_in_a_certificate_is_refused(milan, snp_verifier):
    verifier = snp_verifier(milan)
    for kind in ("ARK", "ASK", "VCEK"):
        evidence = milan.evidence(b"")
        evidence["cert_chain"] = with_certificate(evidence, kind, b"\x30\x03abc")
        assert "not a certificate" in await refusal(verifier, evidence)


@pytest.mark.parametrize("missing", ["ARK", "ASK"])
async def test_what_the_table_lacks_is_filled_from_what_is_trusted(missing, milan, snp_verifier):
    evidence = milan.evidence(b"")
    entries = [entry for entry in evidence["cert_chain"] if entry["cert_type"] != missing]
    evidence["cert_chain"] = entries
    await snp_verifier(milan, whole_chain=True).verify(evidence, ANYTHING)
    if missing == "ASK":
        reason = await refusal(snp_verifier(milan), evidence)
        assert "no trusted issuer is known" in reason


async def test_two_roots_of_one_name_are_told_apart_by_their_signatures(milan, snp_verifier):
    other = SoftwareSnpPlatform.create("Milan")
    verifier = snp_verifier(milan, other, whole_chain=True)
    for platform in (milan, other):
        evidence = platform.evidence(b"")
        evidence["cert_chain"] = evidence["cert_chain"][2:]
        (device,) = await verifier.verify(evidence, ANYTHING)
        evidence["cert_chain"] = platform.evidence(b"")["cert_chain"][1:]
        assert (await verifier.verify(evidence, ANYTHING))[0].claims == device.claims


@pytest.mark.parametrize("evidence", [None, [], "x", {}, {"attestation_report": None}])
async def test_what_is_no_evidence_is_refused(evidence, snp_verifier):
    await refusal(snp_verifier(), evidence)


def test_a_remembered_chain_is_still_held_to_its_validity(milan, tmp_path):
    root = tmp_path / "root.pem"
    root.write_bytes(milan.chain_pem())
    chains = ChainVerifier([load_extra_anchor(root)])
    now = datetime.now(UTC)
    certificate = milan.vek().certificate

    def verify(at: datetime):
        return chains.verify(certificate, kind=SigningKey.VCEK, generation=Generation.MILAN, at=at)

    assert verify(now) is verify(now)
    for moment in (now + timedelta(days=8 * 365), now - timedelta(days=30)):
        with pytest.raises(EvidenceError):
            verify(moment)
    assert verify(now).hardware_id == milan.chip_id
