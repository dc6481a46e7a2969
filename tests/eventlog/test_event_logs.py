import base64
import hashlib
import json
import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybroker.model.errors import EvidenceError
from keybroker.verifiers.eventlog import log as log_module
from keybroker.verifiers.eventlog import parse_event_log, parse_event_log_base64, tcg
from keybroker.verifiers.eventlog.details import parse_details
from keybroker.verifiers.eventlog.device_path import UnreadablePathError, format_device_path

EVIDENCE = Path(
    os.environ.get(
        "KEYBROKER_EVIDENCE_DIR", Path(__file__).parents[2].parent / "shared" / "evidence"
    )
)
LOGS = EVIDENCE / "eventlog"

needs_evidence = pytest.mark.skipif(
    not LOGS.is_dir(), reason="the recorded evidence is not here (KEYBROKER_EVIDENCE_DIR)"
)

#: Registers 1 to 3 of guests whose quotes were recorded beside their logs.
REGISTERS = {
    "CCEL_data": (
        "2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4",
        "0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf",
        "00" * 48,
    ),
    "CCEL_data_ovmf": (
        "8566f998798db09443b244c62de9a3041fb02e2e6936c4396d784bba2e90177329ec5aba3bb484404f2ab9cc90abe193",
        "775b9f6bfe99f8a31396f0d0218e67ffa796d3b96ccf961cbb0deba48c79c00f082cda1a5567c1c16305f1fc210c13c6",
        "94eaf7a7bf398ed8d888c91057ae0261802e4f3df084213a76ca7f0b5055ac9d2241de43cd58d9e8b49c503bbf25f34a",
    ),
    "CCEL_data_grub_gke": (
        "bc9945139042cf2cc75caf920aa57f14884ecfd7e893bccc51250c8ce90eb53ce72741e6adaa18183eb1331a87d4544a",
        "c17cb288a4dee302bb9ed8d27257a168f3264ad68cab53757f37eeaa7039657fa887cad65cf910e0fdc435ff110f8a7b",
        "334aeba2c985f8886cea97d1ecffbd512769d528b9a94009583db667ad7d2faa7d37fa145d75b192ceee2d2f10b2eb6d",
    ),
    "CCEL_data_gcp": (
        "3300980705adf09d28b707b79699d9874892164280832be2c386a715b6e204e0897fb564a064f810659207ba862b304f",
        "204d49f78d29918fe7b2f694e76653861a0c2a018987d2c3a54266eff737232524cf0af68c4d180e2f8c2c0937f21967",
        "00" * 48,
    ),
}

SPEC_ID = b"Spec ID Event03\0".ljust(24, b"\0")


def header(*algorithms: tuple[int, int]) -> bytes:
    body = SPEC_ID + struct.pack("<I", len(algorithms))
    body += b"".join(struct.pack("<HH", *pair) for pair in algorithms) + b"\0"
    return struct.pack("<II20sI", 0, tcg.EV_NO_ACTION, bytes(20), len(body)) + body


HEADER = header((tcg.SHA384, 48))


def event(register: int, kind: int, data: bytes, digests: dict[int, bytes] | None = None) -> bytes:
    if digests is None:
        digests = {tcg.SHA384: hashlib.sha384(data).digest()}
    out = struct.pack("<III", register, kind, len(digests))
    for algorithm, digest in digests.items():
        out += struct.pack("<H", algorithm) + digest
    return out + struct.pack("<I", len(data)) + data


def registers_of(log: object) -> dict[int, bytes]:
    return {index: log.replay(index) for index in (1, 2, 3, 4)}  # type: ignore[attr-defined]


@needs_evidence
@pytest.mark.parametrize(
    "name", [p.name.removesuffix("_out.json") for p in sorted(LOGS.glob("*_out.json"))]
)
def test_a_recorded_log_gives_the_expected_claims(name: str) -> None:
    expected = json.loads((LOGS / f"{name}_out.json").read_bytes())
    log = parse_event_log((LOGS / name).read_bytes())
    assert {"uefi_event_logs": log.claims()} == expected


@needs_evidence
@pytest.mark.parametrize("name", sorted(REGISTERS))
def test_a_recorded_log_replays_to_the_registers_of_its_quote(name: str) -> None:
    values = [bytes.fromhex(value) for value in REGISTERS[name]]
    log = parse_event_log_base64(base64.b64encode((LOGS / name).read_bytes()).decode())
    registers = {1: values[0], 2: values[1], 3: values[2], 4: bytes(48)}
    assert log.verify_replay(registers) is log
    for index in registers:
        flipped = bytes([registers[index][0] ^ 1]) + registers[index][1:]
        with pytest.raises(EvidenceError):
            log.verify_replay({**registers, index: flipped})


def test_an_event_that_no_register_covers_is_refused() -> None:
    measured = event(2, 5, b"boot")
    genuine = parse_event_log(HEADER + measured)
    registers = registers_of(genuine)
    genuine.verify_replay(registers)
    for forged in (
        event(9, 5, b"made up"),
        event(0, 5, b"made up"),
        event(2, 5, b"made up", {}),
        event(1, tcg.EV_NO_ACTION, b"made up"),
    ):
        log = parse_event_log(HEADER + measured + forged)
        assert registers_of(log) == registers
        with pytest.raises(EvidenceError):
            log.verify_replay(registers)


def test_an_event_that_is_not_measured_may_say_so() -> None:
    note = event(0, tcg.EV_NO_ACTION, b"StartupLocality", {tcg.SHA384: bytes(48)})
    log = parse_event_log(HEADER + note + event(1, 5, b"boot"))
    log.verify_replay(registers_of(log))
    assert log.claims()[0]["digest_matches_event"] is False


def test_an_event_without_a_digest_does_not_match_itself() -> None:
    log = parse_event_log(HEADER + event(1, 5, b"boot", {}))
    assert log.claims()[0]["digest_matches_event"] is False


def test_padding_is_never_decoded() -> None:
    raw = HEADER + event(1, 5, b"boot")
    padded = raw + b"\xff" * (1024 * 1024)
    text = base64.b64encode(padded).decode()
    short = base64.b64encode(raw + b"\xff" * 8).decode()
    assert parse_event_log_base64(text) == parse_event_log_base64(short) == parse_event_log(raw)

    def cost(argument: str) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            for _ in range(20):
                parse_event_log_base64(argument)
            times.append(time.process_time() - start)
        return min(times)

    # decoding a megabyte takes a millisecond; the first chunk some thirty microseconds
    assert cost(text) < cost(short) + 20 * 300e-6


def test_a_log_longer_than_the_first_chunk_is_read_whole() -> None:
    raw = HEADER + b"".join(event(1, 5, b"x" * 900) for _ in range(300)) + b"\0" * 8
    log = parse_event_log_base64(base64.b64encode(raw).decode())
    assert len(log.events) == 300
    assert log == parse_event_log(raw)


@needs_evidence
@pytest.mark.parametrize("name", ["CCEL_data_ovmf", "CCEL_AAEL_alibabacloud"])
def test_a_log_cut_anywhere_is_refused_or_has_fewer_events(name: str) -> None:
    raw = (LOGS / name).read_bytes()
    whole = parse_event_log(raw)
    used = len(raw.rstrip(b"\xff"))
    for size in range(0, used, 7):
        try:
            log = parse_event_log(raw[:size])
        except EvidenceError:
            continue
        assert log.events == whole.events[: len(log.events)]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 8,
        b"<html>no log here, but some text that is long enough</html>" * 4,
        HEADER[:-1],
        header((tcg.SHA384, 32)),
        header((tcg.SHA384, 48), (tcg.SHA384, 48)),
        header(*((i, 8) for i in range(9))),
        HEADER + b"\x01",
        HEADER + event(1, 5, b"boot")[:-1],
        HEADER + event(1, 5, b"x", {tcg.SHA256: bytes(32)}),
        HEADER + struct.pack("<III", 1, 5, 0xFFFFFFFF),
        HEADER + struct.pack("<IIII", 1, 5, 0, 0xFFFFFFFF) + b"short",
        struct.pack("<II20sI", 0, tcg.EV_NO_ACTION, bytes(20), 0xFFFFFFFF) + bytes(64),
    ],
)
def test_a_length_that_lies_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_event_log(raw)
    with pytest.raises(EvidenceError):
        parse_event_log_base64(base64.b64encode(raw).decode())


def test_two_digests_of_one_algorithm_are_refused() -> None:
    digest = struct.pack("<H", tcg.SHA384) + bytes(48)
    raw = HEADER + struct.pack("<III", 1, 5, 2) + digest * 2 + struct.pack("<I", 0)
    with pytest.raises(EvidenceError):
        parse_event_log(raw)


def test_text_that_is_not_base64_is_refused() -> None:
    with pytest.raises(EvidenceError):
        parse_event_log_base64("not base64 at all!")


def test_more_events_than_the_limit_are_refused() -> None:
    raw = HEADER + event(1, 5, b"x") * (log_module.MAX_EVENTS + 1)
    with pytest.raises(EvidenceError, match="more than"):
        parse_event_log(raw)


def test_an_unknown_event_type_is_named_by_its_number() -> None:
    claims = parse_event_log(HEADER + event(1, 0x8000000D, b"\x01\x02")).claims()[0]
    assert claims["type_name"] == "0x8000000D"
    assert claims["details"] == {}


@pytest.mark.parametrize(
    ("kind", "data", "details"),
    [
        (0x8000000B, "095464785461626c65000100000000000000", {"string": "TdxTable"}),
        (0x8000000B, "3774645f7061796c6f6164", {}),
        (0x0D, "2e006c0069006e00750078000000", {"string": "linux"}),
        (0x0D, "2e00", {}),
        (0x0D, "4d6f6b4c69737400", {"string": "MokList"}),
        (0x0D, "ff0102", {"string": "ff0102"}),
        (
            0x06,
            "ed223b8f1a0000004c4f414445445f494d4147453a3a4c6f61644f7074696f6e7300",
            {"string": "LOADED_IMAGE::LoadOptions"},
        ),
        (0x06, "0f", {}),
        (0x04, "00000000", {}),
        (0x01, "ff", {}),
        (
            0x80000003,
            "1800b37c0000000000a2a5000000000000000000000000002a0000000000000004031400"
            "72f728144ab61e44b8c39ebdd7f893c7040412006b00650072006e0065006c0000007fff0400",
            {
                "device_paths": [
                    "VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7,)",
                    "File(kernel)",
                ]
            },
        ),
    ],
)
def test_event_data_is_explained(kind: int, data: str, details: dict[str, object]) -> None:
    assert parse_details(kind, bytes.fromhex(data)) == details


def test_an_agent_entry_is_split_and_its_json_parsed() -> None:
    def tagged(entry: bytes) -> bytes:
        return struct.pack("<II", 0x4141454C, len(entry)) + entry

    details = parse_details(tcg.EV_EVENT_TAG, tagged(b'github.com/cc/x PullImage {"a": [1]}'))
    assert details["unicode_name"] == "AAEL"
    assert details["data"] == {
        "domain": "github.com/cc/x",
        "operation": "PullImage",
        "content": {"a": [1]},
    }
    plain = parse_details(tcg.EV_EVENT_TAG, tagged(b"d op some text here"))
    assert plain["data"]["content"] == "some text here"
    assert parse_details(tcg.EV_EVENT_TAG, tagged(b"no-spaces")) == {}


@pytest.mark.parametrize(
    ("kind", "subtype", "data", "text"),
    [
        (1, 1, "0001", "Pci(0,1)"),
        (2, 1, "d041030a02000000", "ACPI(PNP0A03,2)"),
        (3, 5, "0000", "USB(0,0)"),
        (3, 0x0B, "001320f5fa77" + "00" * 26 + "01", "Mac(001320F5FA77,0x01)"),
        (
            3,
            0x0C,
            "c0a80001c0a8006400000cbc0600010000000000000000",
            "IPv4(192.168.0.100,TCP,Static,192.168.0.1)",
        ),
        (
            3,
            0x15,
            "00010203040506070001020304050607",
            "FibreEx(0x0001020304050607,0x0001020304050607)",
        ),
        (
            4,
            1,
            "0f000000002800000000000000500300000000005e27f1007553d5439eb5de2add4c99320202",
            "HD(15,GPT,00F1275E-5375-43D5-9EB5-DE2ADD4C9932,0x2800,0x35000)",
        ),
        (
            4,
            1,
            "00000000000000000000000000000000000000000000000000000000431202a0000000000101",
            "HD(0,MBR,0x00000000)",
        ),
        (4, 4, "6b00650072006e0065006c000000", "File(kernel)"),
        (5, 1, "8000000041424300", "BBS(DEV,ABC,0)"),
        (5, 1, "f0ff000000", "BBS(65520,,0)"),
        (4, 9, "0102", "Path(4,9,0102)"),
        (1, 1, "01", "Path(1,1,01)"),
    ],
)
def test_a_device_path_node_is_written_as_text(
    kind: int, subtype: int, data: str, text: str
) -> None:
    raw = bytes.fromhex(data)
    node = struct.pack("<BBH", kind, subtype, len(raw) + 4) + raw
    assert format_device_path(node) == [text]


@pytest.mark.parametrize("path", [b"\x01", struct.pack("<BBH", 1, 1, 3), b"\x01\x01\xff\xff"])
def test_a_node_whose_length_lies_is_refused(path: bytes) -> None:
    with pytest.raises(UnreadablePathError):
        format_device_path(path)


@given(st.binary(max_size=600), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_parse_or_are_refused(raw: bytes, with_header: bool) -> None:
    try:
        parse_event_log((HEADER if with_header else b"") + raw).claims()
    except EvidenceError:
        pass


@given(st.sampled_from(sorted(tcg.EVENT_TYPES)), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_event_data_gives_details_that_are_json(kind: int, data: bytes) -> None:
    json.dumps(parse_details(kind, data))


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(sorted(tcg.EVENT_TYPES)), st.binary()),
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_was_logged_is_read_back(entries: list[tuple[int, int, bytes]]) -> None:
    raw = HEADER + b"".join(event(*entry) for entry in entries) + b"\xff" * 8 + b"rest"
    log = parse_event_log(raw)
    assert [(e.register, e.event_type, e.data) for e in log.events] == entries
    assert all(e.digest_matches_event() for e in log.events)
