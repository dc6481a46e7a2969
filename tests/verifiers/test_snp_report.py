"""Reports in binary and in JSON: what is read, what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import EvidenceError
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.softtee.snp_report import report_json
from keybroker.verifiers.snp_evidence import encode_report, parse_evidence
from keybroker.verifiers.snp_report import (
    REPORT_BYTES,
    FirmwareVersion,
    Generation,
    SigningKey,
    Tcb,
    generation_of,
    parse_report,
)

GENERATIONS = ["Milan", "Genoa", "Turin"]
PLATFORMS = {generation: SoftwareSnpPlatform.create(generation) for generation in GENERATIONS}
REPORT = PLATFORMS["Milan"].report(b"data", version=5)
EVIDENCE = PLATFORMS["Milan"].evidence(b"data", version=5)


def changed(offset: int, content: bytes, report: bytes = REPORT) -> bytes:
    return report[:offset] + content + report[offset + len(content) :]


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_field_is_read(generation, version):
    platform = PLATFORMS[generation]
    raw = platform.report(
        b"r" * 64, version=version, host_data=b"h" * 32, measurement=b"m" * 48, vmpl=2,
        policy=0xB0123, platform_info=0x21, guest_svn=7, family_id=b"f" * 16, image_id=b"i" * 16,
        id_key_digest=b"k" * 48, author_key_digest=b"a" * 48, report_id=b"R" * 32,
        firmware=(1, 58, 9), mitigations=0x15,
    )  # fmt: skip
    report = parse_report(raw)
    assert report.generation == generation
    assert (report.version, report.vmpl, report.guest_svn) == (version, 2, 7)
    assert report.report_data == b"r" * 64
    assert report.host_data == b"h" * 32
    assert report.measurement == b"m" * 48
    assert (report.family_id, report.image_id) == (b"f" * 16, b"i" * 16)
    assert (report.id_key_digest, report.author_key_digest) == (b"k" * 48, b"a" * 48)
    assert (report.policy, report.platform_info) == (0xB0123, 0x21)
    assert report.current_version == report.committed_version == FirmwareVersion(1, 58, 9)
    assert (
        report.launch_mitigations == report.current_mitigations == (0x15 if version > 4 else None)
    )
    assert report.signing_key is SigningKey.VCEK
    expected = Tcb(**{part: getattr(platform.tcb, part) for part in Tcb.__slots__})
    for tcb in (report.reported_tcb, report.current_tcb, report.committed_tcb, report.launch_tcb):
        assert tcb == expected
    assert report.hardware_id == platform.hardware_id
    assert report.signed == raw[:0x2A0]


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_json_gives_back_the_signed_bytes(generation, version):
    raw = PLATFORMS[generation].report(b"x", version=version, host_data=b"y", mitigations=2**64 - 1)
    assert encode_report(json.loads(json.dumps(report_json(raw)))) == raw


def test_recorded_evidence_is_read(evidence_dir: Path):
    value = json.loads((evidence_dir / "snp" / "trustee-e2e-evidence.json").read_bytes())
    evidence = parse_evidence(value)
    assert evidence.report.generation is Generation.GENOA
    assert evidence.report.reported_tcb == Tcb(bootloader=10, tee=0, snp=23, microcode=25)
    assert evidence.certificates is not None
    assert evidence.certificates.vcek == bytes(value["cert_chain"][0]["data"])


@pytest.mark.parametrize("offset", [0x4C, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F])
def test_reserved_bytes_must_be_zero(offset):
    with pytest.raises(EvidenceError, match="reserved"):
        parse_report(changed(offset, b"\1"))


@pytest.mark.parametrize("start", [0x38, 0x180, 0x1E0, 0x1F0])
def test_reserved_bytes_of_every_tcb_must_be_zero(start):
    for offset in range(2, 6):
        with pytest.raises(EvidenceError, match="TCB"):
            parse_report(changed(start + offset, b"\1"))
    turin = PLATFORMS["Turin"].report(b"")
    for offset in range(4, 7):
        with pytest.raises(EvidenceError, match="TCB"):
            parse_report(changed(start + offset, b"\1", turin))


@pytest.mark.parametrize("bit", range(26, 64))
def test_reserved_policy_bits_must_be_zero(bit):
    with pytest.raises(EvidenceError, match="guest policy"):
        parse_report(PLATFORMS["Milan"].report(b"", policy=0x30000 | 1 << bit))


def test_policy_bit_17_must_be_one():
    with pytest.raises(EvidenceError, match="bit 17"):
        parse_report(PLATFORMS["Milan"].report(b"", policy=0x10000))


@pytest.mark.parametrize("bit", [6, *range(8, 64)])
def test_reserved_platform_bits_must_be_zero(bit):
    with pytest.raises(EvidenceError, match="platform info"):
        parse_report(PLATFORMS["Milan"].report(b"", platform_info=1 << bit))


@pytest.mark.parametrize("bit", range(5, 32))
def test_reserved_key_info_bits_must_be_zero(bit):
    with pytest.raises(EvidenceError, match="key info"):
        parse_report(PLATFORMS["Milan"].report(b"", key_info=1 << bit))


@pytest.mark.parametrize("number", range(2, 7))
def test_reserved_signing_keys_are_refused(number):
    with pytest.raises(EvidenceError, match="reserved signing key"):
        parse_report(PLATFORMS["Milan"].report(b"", key_info=number << 2))


def test_an_unsigned_report_is_refused_by_name():
    with pytest.raises(EvidenceError, match="not signed"):
        parse_report(PLATFORMS["Milan"].report(b"", signing="none"))


@pytest.mark.parametrize("algorithm", [0, 2, 2**32 - 1])
def test_another_signature_algorithm_is_refused(algorithm):
    with pytest.raises(EvidenceError, match="signature algorithm"):
        parse_report(PLATFORMS["Milan"].report(b"", signature_algorithm=algorithm))


@pytest.mark.parametrize("offset", [0x2A0 + 48, 0x2A0 + 71, 0x2E8 + 48, 0x330, REPORT_BYTES - 1])
def test_a_signature_that_is_too_long_is_refused(offset):
    with pytest.raises(EvidenceError, match="longer than one of P-384"):
        parse_report(changed(offset, b"\1"))


@pytest.mark.parametrize("version", [3, 4])
def test_mitigation_vectors_are_reserved_before_version_5(version):
    raw = PLATFORMS["Milan"].report(b"", version=version)
    for offset in (0x1F8, 0x207):
        with pytest.raises(EvidenceError, match="0x1f8"):
            parse_report(changed(offset, b"\1", raw))


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_other_versions_are_refused(version):
    with pytest.raises(EvidenceError, match="report version"):
        parse_report(changed(0, version.to_bytes(4, "little")))


def test_version_2_needs_the_processor_named():
    raw = PLATFORMS["Genoa"].report(b"", version=2)
    with pytest.raises(EvidenceError, match="which processor"):
        parse_report(raw)
    assert parse_report(raw, processor=Generation.GENOA).cpuid is None


def test_a_named_processor_that_contradicts_the_report_is_refused():
    with pytest.raises(EvidenceError, match="comes from Milan, not from Genoa"):
        parse_report(REPORT, processor=Generation.GENOA)


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [
        (0x19, 0x00, "Milan"), (0x19, 0x0F, "Milan"), (0x19, 0x10, "Genoa"),
        (0x19, 0x1F, "Genoa"), (0x19, 0xA0, "Genoa"), (0x19, 0xAF, "Genoa"),
        (0x1A, 0x00, "Turin"), (0x1A, 0x11, "Turin"),
    ],
)  # fmt: skip
def test_processors_are_told_by_family_and_model(family, model, generation):
    assert generation_of(family, model) == generation


@pytest.mark.parametrize(
    ("family", "model", "name"),
    [(0x17, 0x31, "0x17"), (0x19, 0x20, "0x20"), (0x1A, 0x12, "0x12"), (0x1A, 0x50, "Venice")],
)
def test_other_processors_are_refused_by_name(family, model, name):
    with pytest.raises(EvidenceError, match=name):
        generation_of(family, model)
    with pytest.raises(EvidenceError, match=name):
        parse_report(changed(0x188, bytes((family, model))))


def without(name: str) -> dict:
    report = {k: v for k, v in EVIDENCE["attestation_report"].items() if k != name}
    return {**EVIDENCE, "attestation_report": report}


def with_(**members) -> dict:
    return {**EVIDENCE, "attestation_report": {**EVIDENCE["attestation_report"], **members}}


OPTIONAL = {"launch_mit_vector", "current_mit_vector"}


@pytest.mark.parametrize("name", sorted(set(EVIDENCE["attestation_report"]) - OPTIONAL))
def test_a_missing_field_is_refused_by_name(name):
    with pytest.raises(EvidenceError, match=name):
        parse_evidence(without(name))


@pytest.mark.parametrize(
    "members",
    [
        {"version": True}, {"version": "3"}, {"version": -1}, {"policy": 2**64}, {"vmpl": 1.0},
        {"report_data": [0] * 63}, {"report_data": [256] * 64}, {"report_data": [-1] * 64},
        {"report_data": ["a"] * 64}, {"report_data": "00"}, {"chip_id": None},
        {"reported_tcb": []}, {"reported_tcb": {"bootloader": 1}}, {"current": {"major": 1}},
        {"signature": None}, {"signature": {"r": [0] * 72}}, {"cpuid_fam_id": None},
    ],
)  # fmt: skip
def test_a_field_of_another_form_is_refused(members):
    with pytest.raises(EvidenceError):
        parse_evidence(with_(**members))


def test_members_that_are_not_known_are_ignored():
    assert parse_evidence({**with_(future=1), "more": {}}).report.version == 5


def test_turin_needs_its_fmc():
    evidence = PLATFORMS["Turin"].evidence(b"")
    evidence["attestation_report"]["reported_tcb"]["fmc"] = None
    with pytest.raises(EvidenceError, match="fmc"):
        parse_evidence(evidence)


def table(*entries) -> dict:
    return {**EVIDENCE, "cert_chain": list(entries)}


def test_certificates_are_found_by_name_and_by_uuid():
    parsed = parse_evidence(
        table(
            {"cert_type": "Empty", "data": []},
            {"cert_type": "VCEK", "data": [1]},
            {"cert_type": {"OTHER": "4AB7B379-BBAC-4FE4-A02F-05AEF327C782"}, "data": [2]},
            {"cert_type": {"OTHER": "ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"}, "data": "ignored"},
            {"cert_type": "CRL", "data": [3]},
            {"cert_type": "VCEK", "data": [4]},
        )
    ).certificates
    assert parsed is not None
    assert (parsed.vcek, parsed.ask, parsed.ark, parsed.vlek) == (b"\1", b"\2", None, None)


@pytest.mark.parametrize("absent", [{"cert_chain": None}, {}])
def test_no_table_is_told_from_an_empty_one(absent):
    evidence = {k: v for k, v in EVIDENCE.items() if k != "cert_chain"} | absent
    assert parse_evidence(evidence).certificates is None
    assert parse_evidence(table()).certificates is not None


@pytest.mark.parametrize(
    "chain",
    [
        {}, "VCEK", [1], [{}], [{"cert_type": 5, "data": []}], [{"cert_type": "VCEK"}],
        [{"cert_type": "VCEK", "data": "AA"}], [{"cert_type": "VCEK", "data": [300]}],
        [{"cert_type": "VCEK", "data": [0] * 20_000}], [{"cert_type": {"OTHER": "x"}, "data": []}],
        [{"cert_type": "CRL", "data": []}] * 17,
    ],
)  # fmt: skip
def test_a_table_of_another_form_is_refused(chain):
    with pytest.raises(EvidenceError):
        parse_evidence({**EVIDENCE, "cert_chain": chain})


@settings(deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([None, *Generation]))
def test_bytes_of_another_size_are_refused(raw, processor):
    if len(raw) != REPORT_BYTES:
        with pytest.raises(EvidenceError):
            parse_report(raw, processor=processor)


@settings(deadline=None)
@given(st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES), st.integers(2, 5))
def test_random_reports_parse_or_are_refused_in_one_way(raw, version):
    try:
        parse_report(changed(0, version.to_bytes(4, "little"), raw), processor=Generation.MILAN)
    except EvidenceError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_refused_in_one_way(value):
    with pytest.raises(EvidenceError):
        parse_evidence(value)


@settings(deadline=None)
@given(st.sampled_from(sorted(EVIDENCE["attestation_report"])), JSON)
def test_any_json_in_place_of_a_field_parses_or_is_refused_in_one_way(name, value):
    try:
        parse_evidence(with_(**{name: value}))
    except EvidenceError:
        pass


@settings(deadline=None)
@given(JSON, JSON)
def test_any_json_as_a_certificate_parses_or_is_refused_in_one_way(kind, data):
    try:
        parse_evidence(table({"cert_type": kind, "data": data}))
    except EvidenceError:
        pass
