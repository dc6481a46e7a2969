"""Collateral from services and files, and everything that can be wrong with them."""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote as escape

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from dcap_material import Recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.config.dcap import INTEL_PCS_URL, DcapVerifierConfig, TcbUpdateType
from keybroker.model.errors import ConfigError, EvidenceError, MalformedError
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_pccs import Behaviour, SoftwarePccs
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.verifiers.dcap.collateral import CollateralKey, verify_collateral
from keybroker.verifiers.dcap.collateral_service import make_source
from keybroker.verifiers.dcap.offline import OfflineSource, keys_in_file
from keybroker.verifiers.dcap.pcs import PcsSource
from keybroker.verifiers.dcap.qcnl import parse_qcnl_conf, settle
from keybroker.verifiers.dcap.roots import intel_root
from keybroker.verifiers.dcap.source import CollateralSource, SourceError
from keybroker.verifiers.x509 import Certificate


@pytest.fixture
def pccs(intel: SoftwareIntel, platform: SoftwareIntelPlatform) -> Iterator[SoftwarePccs]:
    with SoftwarePccs(intel, [platform]) as service:
        yield service


def key_of(platform: SoftwareIntelPlatform, tee: Tee = Tee.TDX) -> CollateralKey:
    return CollateralKey(tee, platform.fmspc, platform.ca)


def source_for(url: str, **options: Any) -> PcsSource:
    options = {"update_type": TcbUpdateType.EARLY, "timeout_seconds": 5.0, **options}
    return PcsSource(url, **options)


async def fetched(source: CollateralSource, key: CollateralKey) -> Any:
    try:
        return await source.fetch(key)
    finally:
        await source.close()


@pytest.mark.parametrize("tee", [Tee.TDX, Tee.SGX])
@pytest.mark.parametrize("suffix", ["", "/", "/sgx/certification/v4/", "/sgx/certification/v3"])
async def test_a_pccs_gives_what_verifies(
    tee: Tee,
    suffix: str,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
    software_root: Certificate,
) -> None:
    base = pccs.url.removesuffix("/sgx/certification/v4/")
    parts = await fetched(source_for(base + suffix), key_of(platform, tee))
    assert verify_collateral(parts, tee, [software_root]).key == key_of(platform, tee)
    assert sorted(pccs.requests) == sorted(
        [
            f"/{tee.value}/certification/v4/tcb?fmspc=B0C06F000000&update=early",
            f"/{tee.value}/certification/v4/qe/identity?update=early",
            "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            "/sgx/certification/v4/rootcacrl",
        ]
    )


async def test_intels_own_service_has_the_roots_list_elsewhere() -> None:
    source = source_for(INTEL_PCS_URL)
    assert source.name == "https://api.trustedservices.intel.com"
    assert source.root_crl_url == (
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    )


@pytest.mark.parametrize(
    ("behaviour", "unavailable"),
    [
        (Behaviour.ERROR, True),
        (Behaviour.NOT_FOUND, False),
        (Behaviour.HTML, False),
        (Behaviour.HUGE, False),
        (Behaviour.BOMB, False),
        (Behaviour.REDIRECT, False),
        (Behaviour.NO_CHAIN, False),
    ],
)
async def test_a_service_that_fails_is_refused(
    behaviour: Behaviour,
    unavailable: bool,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
) -> None:
    pccs.behaviour = behaviour
    with pytest.raises(SourceError) as refused:
        await fetched(source_for(pccs.url), key_of(platform))
    assert refused.value.unavailable is unavailable


async def test_a_service_that_hangs_is_left_in_time(
    pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.behaviour = Behaviour.HANG
    start = time.monotonic()
    with pytest.raises(SourceError, match="no answer within") as refused:
        await fetched(source_for(pccs.url, timeout_seconds=0.2), key_of(platform))
    assert refused.value.unavailable
    assert time.monotonic() - start < 5


async def test_a_service_that_is_not_there_is_unavailable(
    pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.stop()
    with pytest.raises(SourceError) as refused:
        await fetched(source_for(pccs.url), key_of(platform))
    assert refused.value.unavailable


async def test_the_tls_certificate_of_a_service_counts_unless_told_otherwise(
    tmp_path: Path, intel: SoftwareIntel, platform: SoftwareIntelPlatform
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pccs")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "pccs.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with SoftwarePccs(intel, [platform], tls=context) as pccs:
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED") as refused:
            await fetched(source_for(pccs.url), key_of(platform))
        assert refused.value.unavailable
        await fetched(source_for(pccs.url, verify_tls=False), key_of(platform))


async def test_who_hangs_up_stops_the_fetch(
    pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.behaviour = Behaviour.HANG
    source = source_for(pccs.url)
    task = asyncio.create_task(source.fetch(key_of(platform)))
    async with asyncio.timeout(10):
        await asyncio.to_thread(pccs.asked.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await source.close()


async def test_a_folder_of_files_is_searched(
    tmp_path: Path,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    software_root: Certificate,
) -> None:
    (tmp_path / "readme.txt").write_text("not looked at")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "one.json").write_bytes(intel.collateral(platform, "tdx").to_json())
    source = OfflineSource(tmp_path, TcbUpdateType.EARLY)
    parts = await source.fetch(key_of(platform))
    assert verify_collateral(parts, Tee.TDX, [software_root]).key == key_of(platform)
    with pytest.raises(SourceError, match="no collateral for sgx"):
        await source.fetch(key_of(platform, Tee.SGX))
    # what is put there later is found without a restart, and what changes is read anew
    (tmp_path / "two.json").write_bytes(intel.collateral(platform, "sgx").to_json())
    await source.fetch(key_of(platform, Tee.SGX))
    newer = intel.collateral(platform, "sgx", Terms(evaluation=18)).to_json()
    (tmp_path / "two.json").write_bytes(newer + b" ")
    parts = await source.fetch(key_of(platform, Tee.SGX))
    assert '"tcbEvaluationDataNumber":18' in parts.tcb_info


def tool_file(intel: SoftwareIntel, platform: SoftwareIntelPlatform) -> dict[str, Any]:
    """What Intel's PCS Client Tool writes."""
    tdx, sgx = (intel.collateral(platform, tee, Terms(evaluation=17)) for tee in ("tdx", "sgx"))
    early = intel.collateral(platform, "tdx", Terms(evaluation=18))
    other_ca = intel.collateral(intel.platform(ca="processor"), "sgx")

    def tcb(made: Any) -> dict[str, Any]:
        return {"tcbInfo": json.loads(made.tcb_info), "signature": made.tcb_info_signature.hex()}

    def identity(made: Any) -> dict[str, Any]:
        signature = made.qe_identity_signature.hex()
        return {"enclaveIdentity": json.loads(made.qe_identity), "signature": signature}

    return {
        "platforms": [],
        "collaterals": {
            "version": 1,
            "tcbinfos": [
                {
                    "fmspc": platform.fmspc.hex(),
                    "sgx_tcbinfo": tcb(sgx),
                    "tdx_tcbinfo": tcb(tdx),
                    "tdx_tcbinfo_early": tcb(early),
                }
            ],
            "pckcacrl": {
                "processorCrl": other_ca.pck_crl.hex(),
                "platformCrl": tdx.pck_crl.hex(),
            },
            "qeidentity": identity(sgx),
            "tdqeidentity": identity(tdx),
            "tdqeidentity_early": identity(early),
            "certificates": {
                "TCB-Info-Issuer-Chain": escape(tdx.signer_chain),
                "SGX-Enclave-Identity-Issuer-Chain": escape(tdx.signer_chain),
                "SGX-PCK-Certificate-Issuer-Chain": {
                    "PROCESSOR": escape(other_ca.pck_ca_chain),
                    "PLATFORM": escape(tdx.pck_ca_chain),
                },
            },
            "rootcacrl": tdx.root_crl.hex(),
        },
    }


@pytest.mark.parametrize(("update_type", "number"), [("early", 18), ("standard", 17)])
async def test_a_file_of_intels_tool_is_read(
    *,
    update_type: str,
    number: int,
    tmp_path: Path,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    software_root: Certificate,
) -> None:
    path = tmp_path / "platform_collaterals.json"
    content = tool_file(intel, platform)
    path.write_text(json.dumps(content, indent=2))
    source = OfflineSource(path, TcbUpdateType(update_type))
    collateral = verify_collateral(await source.fetch(key_of(platform)), Tee.TDX, [software_root])
    assert collateral.tcb_info.tcb_evaluation_data_number == number
    sgx = await source.fetch(key_of(platform, Tee.SGX))
    assert verify_collateral(sgx, Tee.SGX, [software_root]).key.tee is Tee.SGX
    processor = replace(key_of(platform, Tee.SGX), ca="processor")
    parts = await source.fetch(processor)
    assert verify_collateral(parts, Tee.SGX, [software_root]).key == processor
    with pytest.raises(SourceError):
        await source.fetch(replace(key_of(platform), fmspc=bytes(6)))
    assert set(keys_in_file(content)) >= {key_of(platform), processor}


@pytest.mark.parametrize(
    "content",
    [{}, [], {"collaterals": {}}, {"collaterals": None}, {"collaterals": {"tcbinfos": 5}}],
)
async def test_a_file_of_another_form_is_no_source(
    content: Any, tmp_path: Path, platform: SoftwareIntelPlatform
) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError):
        await OfflineSource(path, TcbUpdateType.EARLY).fetch(key_of(platform))
    with pytest.raises((EvidenceError, MalformedError)):
        keys_in_file(content)


async def test_an_absent_file_is_unavailable(
    tmp_path: Path, platform: SoftwareIntelPlatform
) -> None:
    with pytest.raises(SourceError) as refused:
        await OfflineSource(tmp_path / "none.json", TcbUpdateType.EARLY).fetch(key_of(platform))
    assert refused.value.unavailable


QCNL = b"""{
  // *** ATTENTION : This file is in JSON format so the keys are case sensitive.
  "pccs_url": "https://localhost:8081/sgx/certification/v4/", // trailing words
  /* Accept
     insecure HTTPS cert */
  "use_secure_cert": false,
  "collateral_service": "https://pccs.example/a//b/sgx/certification/v4/",
  "tcb_update_type" : "standard",
  "retry_times": 6, "local_cache_only": false,
  //"local_pck_url": "http://localhost:8081/sgx/certification/v4/",
  "pck_cache_expire_hours": 168,
}
"""


def test_intels_settings_file_is_read_with_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "sgx_default_qcnl.conf"
    path.write_bytes(QCNL)
    found = settle(DcapVerifierConfig(qcnl_conf=str(path)))
    assert found.collateral_service == "https://pccs.example/a//b/sgx/certification/v4/"
    assert found.verify_tls is False
    assert found.tcb_update_type is TcbUpdateType.STANDARD
    ours = settle(
        DcapVerifierConfig(
            qcnl_conf=str(path),
            collateral_service="http://ours",
            use_secure_cert=True,
            tcb_update_type=TcbUpdateType.EARLY,
        )
    )
    assert ours.collateral_service == "http://ours"
    assert ours.verify_tls
    assert ours.tcb_update_type is TcbUpdateType.EARLY


def test_without_collateral_service_the_file_names_the_pccs() -> None:
    assert parse_qcnl_conf(b'{"pccs_url": "https://x"}') == {"pccs_url": "https://x"}
    old = b"# PCCS server\nPCCS_URL=https://x/y\n\nUSE_SECURE_CERT=FALSE\n"
    assert parse_qcnl_conf(old) == {"pccs_url": "https://x/y", "use_secure_cert": False}


def test_without_any_setting_it_is_intels_own_service(tmp_path: Path) -> None:
    for file in ("", str(tmp_path / "none.conf")):
        found = settle(DcapVerifierConfig(qcnl_conf=file))
        assert found.collateral_service == INTEL_PCS_URL
        assert found.verify_tls


@pytest.mark.parametrize(
    "raw",
    [b'{"pccs_url": 5}', b'{"tcb_update_type": "late"}', b"{", b"\xff", b"[1]", b"some words"],
)
def test_a_settings_file_that_is_wrong_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "qcnl.conf"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        settle(DcapVerifierConfig(qcnl_conf=str(path)))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_settings_file_is_read_or_refused(raw: bytes) -> None:
    for candidate in (raw, b"{" + raw + b"}"):
        try:
            parse_qcnl_conf(candidate)
        except MalformedError:
            pass


def test_a_service_of_an_unknown_kind_is_refused() -> None:
    for url in ("ftp://x", "pccs.example", "file://host/path", "http://"):
        with pytest.raises(ConfigError):
            make_source(settle(DcapVerifierConfig(collateral_service=url, qcnl_conf="")))


async def test_a_file_url_is_a_file(recorded_td: Recorded) -> None:
    url = recorded_td.collateral_path.as_uri()
    source = make_source(settle(DcapVerifierConfig(collateral_service=url, qcnl_conf="")))
    parts = await source.fetch(recorded_td.collateral.key)
    assert verify_collateral(parts, Tee.TDX, [intel_root()]).key == recorded_td.collateral.key
