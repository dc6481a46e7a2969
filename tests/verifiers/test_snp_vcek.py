"""VCEKs that the evidence does not bring: offline store, key distribution service, what is kept."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from keybroker.config.storage import (
    LocalFsConfig,
    StorageBackendConfig,
    StorageBackendsConfig,
    StorageType,
)
from keybroker.config.verifiers import KdsSourceConfig, OfflineStoreSourceConfig
from keybroker.model.errors import EvidenceError
from keybroker.softtee.kds import Behaviour, SoftwareKds
from keybroker.softtee.snp import SoftwareSnpPlatform
from keybroker.storage.provider import open_storage
from keybroker.verifiers.interface import ExpectedBinding
from keybroker.verifiers.snp_chain import ChainVerifier
from keybroker.verifiers.snp_report import parse_report
from keybroker.verifiers.snp_roots import load_extra_anchor
from keybroker.verifiers.snp_vcek import (
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    MAX_REMEMBERED_FAILURES,
    NAMESPACE,
    Backoff,
    KdsSource,
    OfflineStoreSource,
    VcekLibrary,
    VcekRequest,
)

ANYTHING = ExpectedBinding()


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def chains_of(platform: SoftwareSnpPlatform, tmp_path: Path) -> ChainVerifier:
    path = tmp_path / "chain.pem"
    path.write_bytes(platform.chain_pem())
    return ChainVerifier([load_extra_anchor(path)])


def request_of(platform: SoftwareSnpPlatform, **report) -> VcekRequest:
    return VcekRequest.of(parse_report(platform.report(b"", **report)))


@pytest.fixture
def library_of(milan, tmp_path, storage) -> Callable[..., VcekLibrary]:
    def make(*sources, clock=None, store=None) -> VcekLibrary:
        backoff = Backoff(clock) if clock else Backoff()
        return VcekLibrary(sources, chains_of(milan, tmp_path), store or storage, backoff)

    return make


async def refusal(library: VcekLibrary, request: VcekRequest) -> str:
    with pytest.raises(EvidenceError) as caught:
        await library.get(request)
    return caught.value.diagnostics()


@pytest.mark.parametrize("generation", ["Milan", "Genoa", "Turin"])
async def test_evidence_without_a_table_is_verified_with_the_services_certificate(
    generation, platform_of, snp_verifier
):
    platform = platform_of(generation)
    with SoftwareKds([platform]) as kds:
        source = KdsSourceConfig(base_url=kds.url)
        verifier = snp_verifier(platform, whole_chain=True, vcek_sources=(source,))
        for _ in range(3):
            await verifier.verify(platform.evidence(b"", with_table=False), ANYTHING)
        await verifier.close()
    tcb = platform.tcb
    fmc = "" if tcb.fmc is None else f"fmcSPL={tcb.fmc:02}&"
    assert kds.requests == [
        f"/vcek/v1/{generation}/{platform.hardware_id.hex()}?{fmc}blSPL={tcb.bootloader:02}"
        f"&teeSPL={tcb.tee:02}&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02}"
    ]


async def test_fifty_guests_of_one_chip_cost_one_request(milan, kds, library_of):
    library = library_of(KdsSource(kds.url, 10))
    found = await asyncio.gather(*(library.get(request_of(milan)) for _ in range(50)))
    assert len(kds.requests) == 1
    assert len({id(endorsement) for endorsement in found}) == 1
    await library.close()


async def test_one_guest_that_leaves_does_not_take_the_certificate_from_the_others(
    milan, kds, library_of
):
    library = library_of(KdsSource(kds.url, 10))
    leaving = asyncio.create_task(library.get(request_of(milan)))
    staying = asyncio.create_task(library.get(request_of(milan)))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).hardware_id == milan.chip_id
    assert len(kds.requests) == 1
    await library.close()


async def test_chips_and_firmware_levels_are_kept_apart(milan, kds, library_of):
    library = library_of(KdsSource(kds.url, 10))
    older = replace(milan.tcb, microcode=100)
    for tcb in (milan.tcb, older, milan.tcb):
        endorsement = await library.get(request_of(milan, tcb=tcb))
        assert endorsement.tcb.microcode == tcb.microcode
    assert len(kds.requests) == 2
    await library.close()


async def test_a_kept_certificate_survives_a_restart(milan, kds, library_of, tmp_path):
    config = StorageBackendConfig(
        storage_type=StorageType.LOCAL_FS,
        backends=StorageBackendsConfig(local_fs=LocalFsConfig(dir_path=str(tmp_path / "kept"))),
    )
    for _ in range(2):
        store = open_storage(config)
        library = library_of(KdsSource(kds.url, 10), store=store)
        await library.get(request_of(milan))
        await library.close()
        await store.close()
        assert len(kds.requests) == 1
        kds.behaviour = Behaviour.ERROR


async def test_a_kept_certificate_that_does_not_verify_is_fetched_anew(
    milan, kds, library_of, storage
):
    namespace = await storage.namespace(NAMESPACE)
    request = request_of(milan)
    other = SoftwareSnpPlatform.create("Milan").vek().certificate
    for kept in (b"rubbish", other):
        await namespace.set(request.storage_key, kept)
        library = library_of(KdsSource(kds.url, 10))
        assert (await library.get(request)).hardware_id == milan.chip_id
        assert await namespace.get(request.storage_key) != kept
        await library.close()
    assert len(kds.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour.ERROR, "status 500"),
        (Behaviour.BUSY, "status 429"),
        (Behaviour.NOT_FOUND, "status 404"),
        (Behaviour.LIE, "another chip"),
        (Behaviour.GARBAGE, "not the certificate"),
        (Behaviour.HUGE, "the answer is larger than"),
        (Behaviour.COMPRESSED, "compressed"),
        (Behaviour.REDIRECT, "status 302"),
        (Behaviour.HANG, "no answer within"),
    ],
)
async def test_a_service_that_misbehaves_is_refused_not_kept_and_left_alone(
    *, behaviour, words, milan, kds, library_of, storage
):
    kds.behaviour, clock = behaviour, Clock()
    timeout = 0.2 if behaviour is Behaviour.HANG else 10
    library = library_of(KdsSource(kds.url, timeout), clock=clock)
    request = request_of(milan)
    assert words in await refusal(library, request)
    assert await (await storage.namespace(NAMESPACE)).keys() == []
    assert len(kds.requests) == 1

    reason = await refusal(library, request)
    assert words in reason
    assert "not asked again for" in reason
    assert len(kds.requests) == 1

    kds.behaviour = Behaviour.HONEST
    clock.now += FIRST_RETRY_SECONDS
    assert (await library.get(request)).hardware_id == milan.chip_id
    assert len(kds.requests) == 2
    await library.close()


async def test_a_service_that_is_down_is_left_alone_for_every_chip(milan, kds, library_of):
    kds.behaviour, clock = Behaviour.ERROR, Clock()
    library = library_of(KdsSource(kds.url, 10), clock=clock)
    await refusal(library, request_of(milan))
    other = request_of(milan, tcb=replace(milan.tcb, snp=1))
    assert "not asked again" in await refusal(library, other)
    assert len(kds.requests) == 1
    await library.close()


async def test_an_unknown_chip_does_not_block_the_others(milan, kds, library_of):
    library = library_of(KdsSource(kds.url, 10))
    assert "status 404" in await refusal(library, request_of(milan, chip_id=b"\7" * 64))
    assert (await library.get(request_of(milan))).hardware_id == milan.chip_id
    await library.close()


async def test_a_service_that_refuses_connections_is_a_clear_error(milan, library_of):
    library = library_of(KdsSource("http://127.0.0.1:9", 5))
    assert "ConnectError" in await refusal(library, request_of(milan))
    await library.close()


async def test_closing_ends_what_is_under_way(milan, kds, library_of):
    kds.behaviour = Behaviour.HANG
    library = library_of(KdsSource(kds.url, 60))
    waiting = asyncio.create_task(library.get(request_of(milan)))
    assert await asyncio.to_thread(kds.asked.wait, 10)
    await library.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def store_at(folder: Path, platform: SoftwareSnpPlatform, name: str, certificate: bytes) -> None:
    chip = folder / "vcek" / platform.hardware_id.hex()
    chip.mkdir(parents=True, exist_ok=True)
    (chip / name).write_bytes(certificate)


@pytest.mark.parametrize("generation", ["Milan", "Turin"])
@pytest.mark.parametrize("flat", [True, False])
async def test_the_offline_store_is_read_in_trustees_layout(
    generation, flat, platform_of, snp_verifier, tmp_path
):
    platform = platform_of(generation)
    tcb = platform.tcb
    fmc = "" if tcb.fmc is None else f"_fmc{tcb.fmc:02}"
    name = f"bl{tcb.bootloader:02}_tee{tcb.tee:02}_snp{tcb.snp:02}_ucode{tcb.microcode:02}{fmc}"
    store_at(
        tmp_path, platform, "vcek.der" if flat else f"{name}_vcek.der", platform.vek().certificate
    )
    if not flat:
        store_at(tmp_path, platform, "vcek.der", b"not looked at")
    source = OfflineStoreSourceConfig(path=str(tmp_path))
    verifier = snp_verifier(platform, whole_chain=True, vcek_sources=(source,))
    await verifier.verify(platform.evidence(b"", with_table=False), ANYTHING)
    await verifier.close()


async def test_a_file_that_comes_later_is_found_at_once(milan, library_of, tmp_path):
    library = library_of(OfflineStoreSource(tmp_path))
    assert "no bl04" in await refusal(library, request_of(milan))
    store_at(tmp_path, milan, "vcek.der", b"rubbish")
    assert "not the certificate asked for" in await refusal(library, request_of(milan))
    store_at(tmp_path, milan, "vcek.der", milan.vek().certificate)
    assert (await library.get(request_of(milan))).hardware_id == milan.chip_id


async def test_sources_are_asked_in_their_order(milan, kds, library_of, tmp_path):
    library = library_of(OfflineStoreSource(tmp_path), KdsSource(kds.url, 10))
    await library.get(request_of(milan))
    assert len(kds.requests) == 1
    await library.close()
    library = library_of(OfflineStoreSource(tmp_path / "none"))
    assert (await library.get(request_of(milan))).hardware_id == milan.chip_id  # kept
    assert "no source is configured" in await refusal(
        library_of(), request_of(milan, chip_id=b"\1" * 64)
    )


async def test_a_masked_chip_id_without_a_table_is_explained(milan, snp_verifier, kds):
    source = KdsSourceConfig(base_url=kds.url)
    verifier = snp_verifier(milan, whole_chain=True, vcek_sources=(source,))
    with pytest.raises(EvidenceError) as caught:
        await verifier.verify(milan.evidence(b"", with_table=False, mask_chip_id=True), ANYTHING)
    assert "MASK_CHIP_ID" in caught.value.diagnostics()
    assert kds.requests == []


def test_pauses_double_up_to_the_longest_and_end_with_a_success():
    clock = Clock()
    backoff, pause = Backoff(clock), FIRST_RETRY_SECONDS
    for _ in range(40):
        backoff.failed("x", "down")
        clock.now += pause - 0.001
        assert "down" in (backoff.reason_to_wait("x") or "")
        clock.now += 0.002
        assert backoff.reason_to_wait("x") is None
        pause = min(pause * 2, LONGEST_RETRY_SECONDS)
    assert pause == LONGEST_RETRY_SECONDS
    backoff.succeeded("x")
    backoff.failed("x", "down")
    clock.now += FIRST_RETRY_SECONDS
    assert backoff.reason_to_wait("x") is None
    assert backoff.reason_to_wait("y") is None


def test_forged_chip_ids_do_not_fill_the_memory():
    backoff = Backoff(Clock())
    for number in range(MAX_REMEMBERED_FAILURES + 10):
        backoff.failed(number, "no")
    assert backoff.reason_to_wait(0) is None
    assert backoff.reason_to_wait(MAX_REMEMBERED_FAILURES + 9) is not None
