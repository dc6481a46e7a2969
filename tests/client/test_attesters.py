"""Attesters: configfs TSM over a tree that answers as the kernel does; forms of evidence."""

import base64
import errno
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from keybroker.client.attesters import (
    ConfigfsTsmAttester,
    FileAttester,
    SampleAttester,
    SampleDeviceAttester,
    SoftTeeAttester,
    detect,
    detect_devices,
)
from keybroker.client.attesters.cc_eventlog import EventLogFiles, read_eventlog, trim_ccel
from keybroker.client.attesters.configfs_tsm import report_entry
from keybroker.client.attesters.snp_report import REPORT_BYTES, parse_cert_table, report_to_json
from keybroker.client.errors import AttesterError
from keybroker.model.tee import Tee
from keybroker.softtee.snp import SoftwareSnpPlatform

EVIDENCE = Path(os.environ.get("KEYBROKER_EVIDENCE_DIR", "../shared/evidence")).resolve()
needs_evidence = pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason=f"no recorded evidence at {EVIDENCE}: set KEYBROKER_EVIDENCE_DIR"
)

#: How a SubjectPublicKeyInfo of 120 bytes on P-384 begins; AMD's certificates, with their serial
#: number 0, are not for cryptography's X.509 parser.
P384_KEY_PREFIX = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")

DIGEST = bytes(range(48))


class TsmTree:
    """The kernel's side: a report directory whose outblob appears once inblob was written.

    inblob and outblob are FIFOs, so that the reader of one waits for the writer of the other as
    it would for the hardware.
    """

    def __init__(self, provider: str, outblob: bytes, auxblob: bytes | None = None) -> None:
        self.provider = provider
        self.outblob = outblob
        self.auxblob = auxblob
        self.generation = "1"
        self.privlevel_floor: str | None = None
        self.inblobs: list[bytes] = []
        self.privlevels: list[str] = []

    @contextmanager
    def entry(self, root: Path) -> Iterator[Path]:
        with report_entry(root) as directory:
            (directory / "provider").write_text(self.provider + "\n")
            (directory / "generation").write_text(self.generation + "\n")
            if self.auxblob is not None:
                (directory / "auxblob").write_bytes(self.auxblob)
            if self.privlevel_floor is not None:
                (directory / "privlevel_floor").write_text(self.privlevel_floor + "\n")
            os.mkfifo(directory / "inblob")
            os.mkfifo(directory / "outblob")
            hardware = threading.Thread(target=self._sign, args=(directory,), daemon=True)
            hardware.start()
            try:
                yield directory
            finally:
                if (directory / "privlevel").exists():
                    self.privlevels.append((directory / "privlevel").read_text())
                while hardware.is_alive():  # it waits for somebody who did not come
                    for name in ("inblob", "outblob"):
                        os.close(os.open(directory / name, os.O_RDWR | os.O_NONBLOCK))
                    hardware.join(0.01)
                shutil.rmtree(directory)

    def _sign(self, directory: Path) -> None:
        inblob = (directory / "inblob").read_bytes()
        if inblob:
            self.inblobs.append(inblob)
            (directory / "outblob").write_bytes(self.outblob)


def snp_report(version: int = 3, family: int = 0x19, chip_id: bytes = b"\x07" * 64) -> bytes:
    report = bytearray(index % 251 for index in range(REPORT_BYTES))
    report[0:4] = version.to_bytes(4, "little")
    report[0x188] = family
    report[0x1A0:0x1E0] = chip_id
    return bytes(report)


def cert_table(*certificates: tuple[str, bytes]) -> bytes:
    header, body = b"", b""
    start = 24 * (len(certificates) + 1)
    for guid, data in certificates:
        raw = bytes.fromhex(guid.replace("-", ""))
        header += struct.pack("<16sII", raw, start + len(body), len(data))
        body += data
    return header + bytes(24) + body


VCEK_GUID = "63da758d-e664-4564-adc5-f4b93be8accd"
GUIDS = {
    "ARK": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    "ASK": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "VCEK": VCEK_GUID,
}


def test_an_snp_guest_attests_through_configfs(tmp_path: Path) -> None:
    tree = TsmTree("sev_guest", snp_report(), cert_table((VCEK_GUID, b"certificate")))
    attester = ConfigfsTsmAttester(tmp_path, entry=tree.entry)
    evidence = attester.evidence(DIGEST)
    assert attester.tee is Tee.SNP
    assert tree.inblobs == [DIGEST + bytes(16)]
    assert evidence["attestation_report"]["version"] == 3
    assert evidence["cert_chain"] == [{"cert_type": "VCEK", "data": list(b"certificate")}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("auxblob", [None, b"", bytes(24)])
def test_without_certificates_the_chain_is_null(tmp_path: Path, auxblob: bytes | None) -> None:
    tree = TsmTree("sev_guest", snp_report(), auxblob)
    assert ConfigfsTsmAttester(tmp_path, entry=tree.entry).evidence(DIGEST)["cert_chain"] is None


def test_a_tdx_guest_attests_through_configfs(tmp_path: Path) -> None:
    tree = TsmTree("tdx_guest", b"a quote")
    agent_log = tmp_path / "aael"
    agent_log.write_bytes(b"events")
    root = tmp_path / "report"
    root.mkdir()
    attester = ConfigfsTsmAttester(
        root, entry=tree.entry, eventlog=EventLogFiles(tmp_path / "ccel", agent_log)
    )
    evidence = attester.evidence(bytes(64))
    assert attester.tee is Tee.TDX
    assert base64.b64decode(evidence["quote"]) == b"a quote"
    log = base64.b64decode(evidence["cc_eventlog"])
    assert log[69:] == b"events" + b"\xff" * 8


def test_a_guest_below_an_svsm_asks_for_the_level_it_has(tmp_path: Path) -> None:
    tree = TsmTree("sev_guest", snp_report())
    tree.privlevel_floor, tree.generation = "2", "2"
    ConfigfsTsmAttester(tmp_path, entry=tree.entry).evidence(DIGEST)
    assert tree.privlevels == ["2"]


def test_a_report_that_somebody_else_asked_for_is_not_taken(tmp_path: Path) -> None:
    tree = TsmTree("sev_guest", snp_report())
    tree.generation = "2"
    with pytest.raises(AttesterError, match="another process"):
        ConfigfsTsmAttester(tmp_path, entry=tree.entry).evidence(DIGEST)
    assert len(tree.inblobs) == 3


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    tree = TsmTree("arm_cca_guest", b"")
    with pytest.raises(AttesterError, match="arm_cca_guest"):
        ConfigfsTsmAttester(tmp_path, entry=tree.entry)


def test_too_much_report_data_is_refused(tmp_path: Path) -> None:
    tree = TsmTree("sev_guest", snp_report())
    with pytest.raises(AttesterError, match="longer"):
        ConfigfsTsmAttester(tmp_path, entry=tree.entry).evidence(bytes(65))


def test_a_directory_without_the_kernel_behind_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="provider"):
        ConfigfsTsmAttester(tmp_path)
    with pytest.raises(AttesterError, match="absent"):
        ConfigfsTsmAttester(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_tee_is_a_sample(tmp_path: Path) -> None:
    assert isinstance(detect(tmp_path), SampleAttester)


def test_a_tee_that_cannot_be_used_is_not_silently_a_sample(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    with pytest.raises(AttesterError, match="sev-guest"):
        detect(tmp_path)


@pytest.mark.parametrize(("provider", "tee"), [("sev_guest", Tee.SNP), ("tdx_guest", Tee.TDX)])
def test_the_machines_own_tee_is_found(tmp_path: Path, provider: str, tee: Tee) -> None:
    (tmp_path / "sys/kernel/config/tsm/report").mkdir(parents=True)
    assert detect(tmp_path, entry=TsmTree(provider, b"").entry).tee is tee


@pytest.mark.parametrize("reason", [errno.ENXIO, errno.EACCES, errno.EROFS])
def test_only_a_kernel_without_any_tee_makes_a_sample(tmp_path: Path, reason: int) -> None:
    @contextmanager
    def refused(root: Path) -> Iterator[Path]:
        raise OSError(reason, os.strerror(reason), str(root))
        yield root

    (tmp_path / "sys/kernel/config/tsm/report").mkdir(parents=True)
    if reason == errno.ENXIO:
        assert isinstance(detect(tmp_path, entry=refused), SampleAttester)
        return
    with pytest.raises(AttesterError, match=os.strerror(reason)):
        detect(tmp_path, entry=refused)


def test_the_sample_device_is_added_on_request() -> None:
    assert detect_devices({}) == []
    assert detect_devices({"ENABLE_SAMPLE_DEVICE": "1"}) == [SampleDeviceAttester()]


def test_sample_evidence_holds_the_digest_unpadded() -> None:
    assert SampleAttester().evidence(DIGEST) == {
        "svn": "1",
        "report_data": base64.b64encode(DIGEST).decode(),
    }


@pytest.mark.parametrize(
    ("evidence", "tee"),
    [
        ({"attestation_report": {}, "cert_chain": None}, Tee.SNP),
        ({"quote": "", "cc_eventlog": None}, Tee.TDX),
        ({"quote": ""}, Tee.SGX),
        ({"svn": "1", "report_data": ""}, Tee.SAMPLE),
    ],
)
def test_a_file_tells_its_kind(tmp_path: Path, evidence: dict[str, Any], tee: Tee) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(evidence))
    attester = FileAttester(path)
    assert attester.tee is tee
    assert attester.evidence(DIGEST) == evidence
    assert FileAttester(path, Tee.CSV).tee is Tee.CSV


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_a_file_that_holds_no_evidence_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.json"
    path.write_bytes(content)
    with pytest.raises(AttesterError):
        FileAttester(path)
    with pytest.raises(AttesterError):
        FileAttester(tmp_path / "absent")


def test_a_software_platform_gets_what_the_host_gave_at_launch() -> None:
    class Platform:
        def evidence(self, *, report_data: bytes, host_data: bytes) -> Any:
            return [report_data.hex(), host_data.hex()]

    attester = SoftTeeAttester(Platform(), launch={"host_data": b"\1"})
    assert attester.tee is Tee.SNP
    assert attester.evidence(b"\2") == ["02", "01"]


REPORT_LAYOUT = (
    "<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8s3s21x64s8s3sx3sx8s16s152x72s72s368x"  # from the ABI
)


def pack_report(report: dict[str, Any]) -> bytes:
    """Write a version 3 report of a processor before Turin from its JSON form, by the ABI."""

    def tcb(name: str) -> bytes:
        parts = report[name]
        return bytes(
            [parts["bootloader"], parts["tee"], 0, 0, 0, 0, parts["snp"], parts["microcode"]]
        )

    def firmware(name: str) -> bytes:
        return bytes([report[name]["build"], report[name]["minor"], report[name]["major"]])

    def blob(name: str) -> bytes:
        return bytes(report[name])

    return struct.pack(
        REPORT_LAYOUT,
        report["version"],
        report["guest_svn"],
        report["policy"],
        blob("family_id"),
        blob("image_id"),
        report["vmpl"],
        report["sig_algo"],
        tcb("current_tcb"),
        report["plat_info"],
        report["key_info"],
        blob("report_data"),
        blob("measurement"),
        blob("host_data"),
        blob("id_key_digest"),
        blob("author_key_digest"),
        blob("report_id"),
        blob("report_id_ma"),
        tcb("reported_tcb"),
        bytes([report["cpuid_fam_id"], report["cpuid_mod_id"], report["cpuid_step"]]),
        blob("chip_id"),
        tcb("committed_tcb"),
        firmware("current"),
        firmware("committed"),
        tcb("launch_tcb"),
        bytes(16),
        bytes(report["signature"]["r"]),
        bytes(report["signature"]["s"]),
    )


@needs_evidence
def test_the_json_form_is_that_of_a_real_guest() -> None:
    """The recorded JSON is packed to bytes, proven right by AMD's signature, and read back."""
    recorded = json.loads((EVIDENCE / "snp/trustee-e2e-evidence.json").read_text())
    report = pack_report(recorded["attestation_report"])
    assert len(report) == REPORT_BYTES
    vcek = bytes(recorded["cert_chain"][0]["data"])
    start = vcek.index(P384_KEY_PREFIX)
    public_key = load_der_public_key(vcek[start : start + 120])
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    signature = utils.encode_dss_signature(
        int.from_bytes(report[0x2A0:0x2E8], "little"), int.from_bytes(report[0x2E8:0x330], "little")
    )
    public_key.verify(signature, report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    ours = report_to_json(report)
    # Guests built before version 5 reports existed do not send these members.
    assert ours.pop("launch_mit_vector") is None
    assert ours.pop("current_mit_vector") is None
    assert ours == recorded["attestation_report"]


@needs_evidence
def test_a_recorded_version_2_report_is_read() -> None:
    report = report_to_json((EVIDENCE / "snp/test-report.bin").read_bytes())
    assert report["version"] == 2
    assert report["cpuid_fam_id"] is None
    assert report["current_tcb"]["fmc"] is None


@pytest.mark.parametrize("generation", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_reports_of_software_platforms_have_the_same_json_form(
    generation: str, version: int
) -> None:
    platform = SoftwareSnpPlatform.create(generation)
    evidence = platform.evidence(DIGEST, version=version)
    table = [(GUIDS[entry["cert_type"]], bytes(entry["data"])) for entry in evidence["cert_chain"]]
    assert parse_cert_table(cert_table(*table)) == evidence["cert_chain"]
    report = platform.report(DIGEST, version=version)
    ours, theirs = report_to_json(report), evidence["attestation_report"]
    for form in (ours, theirs):
        del form["signature"]  # made anew each time
    assert ours == theirs


def test_turin_has_an_fmc_and_version_5_has_mitigation_vectors() -> None:
    report = report_to_json(snp_report(5, family=0x1A))
    raw = snp_report(5, family=0x1A)
    assert report["reported_tcb"] == {
        "fmc": raw[0x180],
        "bootloader": raw[0x181],
        "tee": raw[0x182],
        "snp": raw[0x183],
        "microcode": raw[0x187],
    }
    assert report["launch_mit_vector"] == int.from_bytes(raw[0x1F8:0x200], "little")


def test_version_2_tells_turin_by_its_short_chip_id() -> None:
    short = b"\1" * 8 + bytes(56)
    assert report_to_json(snp_report(2, chip_id=short))["current_tcb"]["fmc"] is not None
    with pytest.raises(AttesterError, match="masked"):
        report_to_json(snp_report(2, chip_id=bytes(64)))


@pytest.mark.parametrize("report", [b"", bytes(REPORT_BYTES), bytes(REPORT_BYTES - 1)])
def test_what_is_no_report_is_refused(report: bytes) -> None:
    with pytest.raises(AttesterError):
        report_to_json(report)


def test_an_unknown_certificate_keeps_its_guid() -> None:
    guid = "11111111-2222-3333-4444-555555555555"
    assert parse_cert_table(cert_table((guid, b"x"))) == [
        {"cert_type": {"OTHER": guid}, "data": [120]}
    ]


@given(st.binary(max_size=200))
def test_no_certificate_table_raises_anything_but_an_attester_error(table: bytes) -> None:
    try:
        parse_cert_table(table)
    except AttesterError:
        pass


@needs_evidence
def test_the_firmware_log_of_a_real_guest_is_cut_at_its_last_event(tmp_path: Path) -> None:
    recorded = (EVIDENCE / "eventlog/CCEL_data").read_bytes()
    trimmed = trim_ccel(recorded)
    assert recorded.startswith(trimmed)
    assert recorded[len(trimmed) :].strip(b"\xff\0") == b""
    path = tmp_path / "ccel"
    path.write_bytes(recorded)
    log = read_eventlog(EventLogFiles(path, tmp_path / "absent"))
    assert log is not None
    assert base64.b64decode(log) == trimmed + b"\xff" * 8


def test_without_logs_there_is_none(tmp_path: Path) -> None:
    assert read_eventlog(EventLogFiles(tmp_path / "a", tmp_path / "b")) is None


@given(st.binary(max_size=200))
def test_no_firmware_log_raises_anything_but_an_attester_error(ccel: bytes) -> None:
    try:
        trim_ccel(ccel)
    except AttesterError:
        pass
