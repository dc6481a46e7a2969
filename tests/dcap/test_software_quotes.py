"""Quotes of software machines: every form, every status, each single thing that can be wrong."""

import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dcap_material import Endorser, Recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import EvidenceError
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_quote import (
    TD_DEBUG,
    TD_MIGRATABLE,
    TD_SEPT_VE_DISABLE,
    Flaws,
    QeReport,
    SoftwareIntelPlatform,
    TcbNumbers,
)
from keybroker.verifiers.dcap import crl, pck
from keybroker.verifiers.dcap.claims import verdict_claims
from keybroker.verifiers.dcap.collateral import (
    VerifiedCollateral,
    parse_collateral,
    verify_collateral,
)
from keybroker.verifiers.dcap.endorser import PckChains
from keybroker.verifiers.dcap.evidence import parse_quote_member
from keybroker.verifiers.dcap.quote import parse_quote
from keybroker.verifiers.dcap.roots import intel_root
from keybroker.verifiers.dcap.verification import verify_quote
from keybroker.verifiers.tdx import parse_tdx_evidence
from keybroker.verifiers.x509 import Certificate

NOW = datetime.now(UTC)
DEBUG_TD = {"attributes": TD_DEBUG | TD_SEPT_VE_DISABLE}


@pytest.fixture(scope="module")
def td_collateral(platform: SoftwareIntelPlatform, endorse: Endorser) -> VerifiedCollateral:
    return endorse(platform, Tee.TDX)


@pytest.fixture(scope="module")
def enclave_collateral(platform: SoftwareIntelPlatform, endorse: Endorser) -> VerifiedCollateral:
    return endorse(platform, Tee.SGX)


def claims_of(raw: bytes, collateral: VerifiedCollateral) -> dict[str, Any]:
    return verdict_claims(verify_quote(parse_quote(raw), collateral, NOW))


@pytest.mark.parametrize(
    ("form", "version"),
    [
        ({}, "0400"),
        ({"version": 5}, "0500"),
        ({"version": 5, "tdx_1_5": True}, "0500"),
        (DEBUG_TD, "0400"),
        ({**DEBUG_TD, "version": 5, "tdx_1_5": True}, "0500"),
    ],
)
def test_every_form_of_td_quote_verifies(
    form: dict[str, Any],
    version: str,
    platform: SoftwareIntelPlatform,
    td_collateral: VerifiedCollateral,
) -> None:
    raw = platform.td_quote(report_data=b"data", mr_config_id=b"config", **form)
    claims = claims_of(raw, td_collateral)
    assert claims["quote"]["header"]["version"] == version
    assert claims["report_data"] == b"data".ljust(64, b"\0").hex()
    assert claims["init_data"] == b"config".ljust(48, b"\0").hex()
    assert claims["td_attributes"]["debug"] is ("attributes" in form)
    assert claims["tcb_status"] == claims["tcb_status_current"] == "UpToDate"
    assert ("size" in claims["quote"]) is (version == "0500")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("debug", [False, True])
def test_every_form_of_enclave_quote_verifies(
    version: int,
    debug: bool,
    platform: SoftwareIntelPlatform,
    enclave_collateral: VerifiedCollateral,
) -> None:
    raw = platform.enclave_quote(report_data=b"data", version=version, debug=debug, svn=7)
    claims = claims_of(raw, enclave_collateral)
    assert claims["header"]["version"] == f"0{version}00"
    assert claims["body"]["isv_svn"] == "0700"
    assert claims["debug"] is debug
    assert claims["tcb_status"] == "UpToDate"


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_both_certificate_authorities_are_taken(
    ca: str, intel: SoftwareIntel, endorse: Endorser
) -> None:
    machine = intel.platform(ca=ca, fmspc=bytes(6), sgx_type=0 if ca == "processor" else 2)
    claims = claims_of(machine.enclave_quote(), endorse(machine, Tee.SGX))
    assert ("platform_instance_id" in claims) is (ca == "platform")
    assert claims["sgx_type"] == ("Standard" if ca == "processor" else "Scalable with Integrity")


STATUSES = [
    ({"tcb_status": "OutOfDate"}, "OutOfDate"),
    ({"tcb_status": "SWHardeningNeeded"}, "SWHardeningNeeded"),
    ({"tcb_status": "ConfigurationNeeded"}, "ConfigurationNeeded"),
    ({"tcb_status": "ConfigurationAndSWHardeningNeeded"}, "ConfigurationAndSWHardeningNeeded"),
    ({"tcb_status": "OutOfDateConfigurationNeeded"}, "OutOfDateConfigurationNeeded"),
    ({"qe_status": "OutOfDate"}, "OutOfDate"),
    (
        {"qe_status": "OutOfDate", "tcb_status": "ConfigurationNeeded"},
        "OutOfDateConfigurationNeeded",
    ),
    ({"module_status": "OutOfDate"}, "OutOfDate"),
    ({"module_status": "OutOfDate", "tcb_status": "SWHardeningNeeded"}, "OutOfDate"),
]


@pytest.mark.parametrize(("terms", "status"), STATUSES)
@pytest.mark.parametrize("form", [{}, DEBUG_TD, {"version": 5, "tdx_1_5": True}])
def test_every_tcb_status_shows_in_the_claims(
    terms: dict[str, str],
    status: str,
    form: dict[str, Any],
    platform: SoftwareIntelPlatform,
    endorse: Endorser,
) -> None:
    collateral = endorse(
        platform,
        Tee.TDX,
        **terms,
        advisory_ids=["INTEL-SA-1"],
        module_advisory_ids=["INTEL-SA-2"],
        qe_advisory_ids=["INTEL-SA-3", "INTEL-SA-1"],
    )
    claims = claims_of(platform.td_quote(**form), collateral)
    assert claims["tcb_status"] == status
    assert claims["advisory_ids"] == ["INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3"]


@pytest.mark.parametrize("part", ["tcb_status", "qe_status", "module_status"])
@pytest.mark.parametrize("form", [{}, DEBUG_TD])
def test_a_revoked_tcb_is_refused(
    part: str, form: dict[str, Any], platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    collateral = endorse(platform, Tee.TDX, **{part: "Revoked"})
    with pytest.raises(EvidenceError, match=r"[Rr]evoked"):
        claims_of(platform.td_quote(**form), collateral)


@pytest.mark.parametrize("form", [{}, DEBUG_TD])
def test_a_revoked_pck_certificate_is_refused(
    form: dict[str, Any], platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    collateral = endorse(platform, Tee.TDX, revoked=[platform.pck_serial])
    with pytest.raises(EvidenceError, match=r"[Rr]evoked"):
        claims_of(platform.td_quote(**form), collateral)
    spared = endorse(platform, Tee.TDX, revoked=[platform.pck_serial + 1])
    assert claims_of(platform.td_quote(**form), spared)["tcb_status"] == "UpToDate"


def test_collateral_by_a_revoked_signer_is_refused(
    intel: SoftwareIntel, platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    for serial in (intel.signer_serial, intel.ca_serial("platform")):
        with pytest.raises(EvidenceError, match="is revoked"):
            endorse(platform, Tee.TDX, revoked_by_root=[serial])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("UpToDate", "TDRelaunchAdvised"),
        ("SWHardeningNeeded", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
    ],
)
@pytest.mark.parametrize("attributes", [TD_SEPT_VE_DISABLE, TD_SEPT_VE_DISABLE | TD_DEBUG])
def test_a_td_that_was_updated_while_it_ran_should_be_relaunched(
    status: str,
    expected: str,
    attributes: int,
    platform: SoftwareIntelPlatform,
    endorse: Endorser,
) -> None:
    new = platform.numbers.tdx
    old = bytes((new[0] - 1, *new[1:]))
    collateral = endorse(
        platform, Tee.TDX, tcb_status=status, lower=replace(platform.numbers, tdx=old)
    )
    raw = platform.td_quote(
        version=5, tdx_1_5=True, tcb_svn=old, current_tcb_svn=new, attributes=attributes
    )
    claims = claims_of(raw, collateral)
    assert claims["tcb_status"] == expected
    assert claims["tcb_status_current"] == status
    assert claims["tcb_date"] < claims["tcb_date_current"]
    never_updated = claims_of(
        platform.td_quote(version=5, tdx_1_5=True, tcb_svn=old, attributes=attributes), collateral
    )
    assert never_updated["tcb_status"].startswith("OutOfDate")


@pytest.mark.parametrize("form", [{}, DEBUG_TD, {"version": 5, "tdx_1_5": True}])
def test_expired_collateral_verifies_and_says_so(
    form: dict[str, Any], platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    expired = endorse(
        platform,
        Tee.TDX,
        issued=NOW - timedelta(days=40),
        next_update=NOW - timedelta(days=10),
    )
    claims = claims_of(platform.td_quote(**form), expired)
    assert claims["collateral_expiration_status"] == "1"
    assert claims["tcb_status"] == "UpToDate"


def test_an_expired_pck_certificate_verifies_and_shows(
    intel: SoftwareIntel, endorse: Endorser
) -> None:
    machine = intel.platform(valid_until=NOW - timedelta(hours=1))
    for form in ({}, DEBUG_TD):
        claims = claims_of(machine.td_quote(**form), endorse(machine, Tee.TDX))
        assert claims["collateral_expiration_status"] == "1"


def test_collateral_whose_parts_were_never_valid_together_is_refused(
    intel: SoftwareIntel, platform: SoftwareIntelPlatform, software_root: Certificate
) -> None:
    fresh = intel.collateral(platform, "tdx")
    old = Terms(issued=NOW - timedelta(days=40), next_update=NOW - timedelta(days=10))
    torn = replace(fresh, pck_crl=intel.collateral(platform, "tdx", old).pck_crl)
    collateral = verify_collateral(parse_collateral(torn.to_json()), Tee.TDX, [software_root])
    with pytest.raises(EvidenceError, match="never valid at one time"):
        claims_of(platform.td_quote(), collateral)


FLAWS = {
    "another enclave made the QE report": Flaws(qe=QeReport(b"\x01" * 32, 2, 8)),
    "another product of the same signer": Flaws(qe=QeReport(QeReport.of("tdx").mr_signer, 77, 8)),
    "a quoting enclave below every level": Flaws(qe=QeReport(QeReport.of("tdx").mr_signer, 2, 1)),
    "a quoting enclave in debug mode": Flaws(qe_debug=True),
    "another attestation key is bound": Flaws(unbound_key=True),
    "plain PPID in place of certificates": Flaws(certification_type=1),
    "encrypted PPID in place of certificates": Flaws(certification_type=3),
    "a platform manifest": Flaws(certification_type=7),
    "no certificates": Flaws(pck_chain=""),
    "text in place of certificates": Flaws(pck_chain="<html>"),
}


@pytest.mark.parametrize("flaw", FLAWS.values(), ids=FLAWS)
@pytest.mark.parametrize("form", [{}, DEBUG_TD])
def test_each_flaw_of_a_quote_is_refused(
    flaw: Flaws,
    form: dict[str, Any],
    platform: SoftwareIntelPlatform,
    td_collateral: VerifiedCollateral,
) -> None:
    with pytest.raises(EvidenceError):
        claims_of(platform.td_quote(flaws=flaw, **form), td_collateral)


@pytest.mark.parametrize("form", [{}, DEBUG_TD])
def test_the_certificate_of_another_machine_is_refused(
    form: dict[str, Any],
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    td_collateral: VerifiedCollateral,
) -> None:
    other = intel.platform()
    with pytest.raises(EvidenceError):
        claims_of(platform.td_quote(flaws=Flaws(pck_chain=other.pck_chain), **form), td_collateral)


@pytest.mark.parametrize(
    "attributes",
    [
        0,
        TD_SEPT_VE_DISABLE | TD_MIGRATABLE,
        TD_SEPT_VE_DISABLE | 1 << 40,
        TD_SEPT_VE_DISABLE | 1 << 17,
        TD_SEPT_VE_DISABLE | 1 << 4,
    ],
)
def test_attributes_that_void_a_td_are_refused(
    attributes: int, platform: SoftwareIntelPlatform, td_collateral: VerifiedCollateral
) -> None:
    with pytest.raises(EvidenceError):
        claims_of(platform.td_quote(attributes=attributes), td_collateral)
    if attributes != TD_SEPT_VE_DISABLE | 1 << 4:
        # profiling is part of debugging; the others void a debug TD as well
        with pytest.raises(EvidenceError):
            claims_of(platform.td_quote(attributes=attributes | TD_DEBUG), td_collateral)


def test_a_td_bound_to_a_service_td_is_refused(
    platform: SoftwareIntelPlatform, td_collateral: VerifiedCollateral
) -> None:
    for form in ({}, DEBUG_TD):
        raw = platform.td_quote(version=5, tdx_1_5=True, mr_servicetd=b"\x01" * 48, **form)
        with pytest.raises(EvidenceError):
            claims_of(raw, td_collateral)


def test_a_machine_below_the_required_numbers_is_refused(
    platform: SoftwareIntelPlatform, endorse: Endorser
) -> None:
    better = TcbNumbers(sgx=b"\xff" * 16)
    with pytest.raises(EvidenceError, match="below every TCB level"):
        claims_of(platform.td_quote(), endorse(platform, Tee.TDX, required=better))


def test_a_certificate_that_names_another_family_is_refused(
    intel: SoftwareIntel, endorse: Endorser
) -> None:
    machine = intel.platform(fmspc_in_certificate=b"\x99" * 6)
    with pytest.raises(EvidenceError, match="the quote is of"):
        claims_of(machine.td_quote(), endorse(machine, Tee.TDX))


@pytest.mark.parametrize("form", [DEBUG_TD, {**DEBUG_TD, "version": 5, "tdx_1_5": True}])
def test_each_flipped_bit_of_a_debug_quote_is_refused(
    form: dict[str, Any], platform: SoftwareIntelPlatform, td_collateral: VerifiedCollateral
) -> None:
    raw = platform.td_quote(report_data=b"data", **form)
    quote = parse_quote(raw)
    end = raw.index(quote.pck_chain)
    for offset in range(0, end, 7):
        changed = bytearray(raw)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(EvidenceError):
            claims_of(bytes(changed), td_collateral)


def test_each_flipped_bit_of_a_version_4_enclave_quote_is_refused(
    platform: SoftwareIntelPlatform, enclave_collateral: VerifiedCollateral
) -> None:
    raw = platform.enclave_quote(report_data=b"data", version=4)
    end = raw.index(parse_quote(raw).pck_chain)
    for offset in range(0, end, 5):
        changed = bytearray(raw)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(EvidenceError):
            claims_of(bytes(changed), enclave_collateral)


@pytest.mark.parametrize("form", [{}, {"version": 5, "tdx_1_5": True}])
def test_a_quote_cut_anywhere_is_refused(
    form: dict[str, Any], platform: SoftwareIntelPlatform
) -> None:
    raw = platform.td_quote(**form)
    parse_quote(raw + bytes(100))
    for size in range(len(raw)):
        with pytest.raises(EvidenceError):
            parse_quote(raw[:size])
    with pytest.raises(EvidenceError):
        parse_quote(raw + b"\x01")


def test_lengths_that_lie_are_refused(platform: SoftwareIntelPlatform) -> None:
    raw = platform.td_quote(version=5)
    quote = parse_quote(raw)
    signature_size = len(quote.signed)
    certification = signature_size + 4 + 128
    authentication = certification + 6 + 384 + 64
    chain = authentication + 2 + 32 + 2
    for offset, form in (
        (48 + 2, "<I"),
        (signature_size, "<I"),
        (certification + 2, "<I"),
        (authentication, "<H"),
        (chain, "<I"),
    ):
        (genuine,) = struct.unpack_from(form, raw, offset)
        top = 2 ** (8 * struct.calcsize(form)) - 1
        for lie in {0, genuine - 1, genuine + 1, top} - {genuine}:
            changed = bytearray(raw)
            struct.pack_into(form, changed, offset, lie)
            with pytest.raises(EvidenceError):
                parse_quote(bytes(changed))


def test_other_versions_bodies_and_vendors_are_refused(platform: SoftwareIntelPlatform) -> None:
    raw = platform.td_quote(version=5)
    for offset, value in ((0, 3), (0, 6), (2, 3), (4, 0x82), (12, 0), (48, 1), (48, 4)):
        changed = bytearray(raw)
        changed[offset] = value
        with pytest.raises(EvidenceError):
            parse_quote(bytes(changed))


def test_a_made_up_intel_is_told_from_the_real_one(
    platform: SoftwareIntelPlatform, recorded_td: Recorded
) -> None:
    chains = PckChains([intel_root()])
    chains.verify(parse_quote(recorded_td.raw).pck_chain)
    chains.verify(parse_quote(recorded_td.raw).pck_chain)
    with pytest.raises(EvidenceError, match="not issued under a trusted root"):
        chains.verify(platform.pck_chain.encode())


@given(st.binary(max_size=2000), st.integers(0, 2000))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_quote_or_refused(raw: bytes, position: int) -> None:
    header = bytes.fromhex("0400020081000000") + bytes(4)
    header += bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
    for candidate in (raw, header + raw):
        try:
            parse_quote(candidate)
        except EvidenceError:
            pass


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_certificates_lists_and_collateral_or_refused(data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=400))
    for parse in (pck.parse_pck_chain, crl.parse_crl, parse_collateral):
        with pytest.raises(EvidenceError):
            parse(raw)


@given(st.integers(0, 2000), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_changed_revocation_list_is_read_or_refused(offset: int, bit: int) -> None:
    changed = bytearray(_LIST)
    changed[offset % len(changed)] ^= 1 << bit
    try:
        crl.parse_crl(bytes(changed))
    except EvidenceError:
        pass


def _a_list() -> bytes:
    intel = SoftwareIntel()
    machine = intel.platform()
    return intel.collateral(machine, "tdx", Terms(revoked=[1, 2, 3])).pck_crl


_LIST = _a_list()


def test_a_machine_that_was_saved_makes_the_same_quotes(
    platform: SoftwareIntelPlatform, td_collateral: VerifiedCollateral, tmp_path: Path
) -> None:
    path = tmp_path / "machine.json"
    platform.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = SoftwareIntelPlatform.load(path)
    assert (loaded.fmspc, loaded.numbers) == (platform.fmspc, platform.numbers)
    assert claims_of(loaded.td_quote(), td_collateral)["tcb_status"] == "UpToDate"
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no software machine"):
        SoftwareIntelPlatform.load(tmp_path / "other.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(_JSON | st.fixed_dictionaries({"quote": _JSON | st.text("QUJD+/=", max_size=40)}))
@settings(max_examples=100, deadline=None)
def test_any_json_is_evidence_or_refused(evidence: Any) -> None:
    with pytest.raises(EvidenceError):
        parse_tdx_evidence(evidence)
    with pytest.raises(EvidenceError):
        parse_quote_member(evidence, Tee.SGX)
