"""Collateral that is kept: fetched once, shared, renewed, and served while its source is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keybroker.config.dcap import DcapVerifierConfig, TcbUpdateType
from keybroker.config.storage import (
    SqliteConfig,
    StorageBackendConfig,
    StorageBackendsConfig,
    StorageType,
)
from keybroker.model.errors import ConfigError, EvidenceError
from keybroker.model.tee import Tee
from keybroker.softtee.intel import SoftwareIntel, Terms
from keybroker.softtee.intel_eventlog import SoftwareEventLog
from keybroker.softtee.intel_pccs import Behaviour, SoftwarePccs
from keybroker.softtee.intel_quote import SoftwareIntelPlatform
from keybroker.storage.interface import StorageProvider
from keybroker.storage.provider import open_storage
from keybroker.verifiers.dcap.cache import (
    NAMESPACE,
    RENEW_AFTER_SECONDS,
    CollateralCache,
    encode_stored,
    storage_key,
)
from keybroker.verifiers.dcap.collateral import CollateralKey, parse_collateral
from keybroker.verifiers.dcap.endorser import make_endorser
from keybroker.verifiers.dcap.offline import OfflineSource
from keybroker.verifiers.dcap.pcs import PcsSource
from keybroker.verifiers.interface import ExpectedBinding
from keybroker.verifiers.sgx import SgxVerifier
from keybroker.verifiers.snp_vcek import Backoff
from keybroker.verifiers.tdx import TdxVerifier
from keybroker.verifiers.x509 import Certificate

EARLY = TcbUpdateType.EARLY


class Clock:
    """Seconds since 1970 that can be moved."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def pccs(intel: SoftwareIntel, platform: SoftwareIntelPlatform) -> Iterator[SoftwarePccs]:
    with SoftwarePccs(intel, [platform]) as service:
        yield service


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[StorageProvider]:
    backends = StorageBackendsConfig(sqlite=SqliteConfig(path=str(tmp_path / "store.db")))
    provider = open_storage(
        StorageBackendConfig(storage_type=StorageType.SQLITE, backends=backends)
    )
    yield provider
    await provider.close()


MakeCache = Callable[..., CollateralCache]


@pytest.fixture
async def make_cache(
    pccs: SoftwarePccs, storage: StorageProvider, software_root: Certificate
) -> AsyncIterator[MakeCache]:
    caches: list[CollateralCache] = []

    def make(**options: Any) -> CollateralCache:
        timeout = options.pop("timeout", 5.0)
        source = options.pop("source", None) or PcsSource(
            pccs.url, update_type=EARLY, timeout_seconds=timeout
        )
        roots = options.pop("roots", [software_root])
        cache = CollateralCache(source, storage, roots, EARLY, **options)
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        await cache.close()


def key_of(platform: SoftwareIntelPlatform, tee: Tee = Tee.TDX) -> CollateralKey:
    return CollateralKey(tee, platform.fmspc, platform.ca)


async def test_a_thousand_first_requests_are_one_fetch(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    cache = make_cache()
    got = await asyncio.gather(*(cache.get(key_of(platform)) for _ in range(1000)))
    assert all(collateral is got[0] for collateral in got)
    assert len(pccs.requests) == 4
    assert pccs.asked_for("tcb") == 1


async def test_two_workers_with_a_thousand_first_requests_are_one_fetch(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    workers = [make_cache(), make_cache()]
    await asyncio.gather(*(workers[i % 2].get(key_of(platform)) for i in range(1000)))
    assert len(pccs.requests) == 4


async def test_a_restarted_broker_asks_nobody(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    await make_cache().get(key_of(platform))
    pccs.stop()
    assert (await make_cache().get(key_of(platform))).key == key_of(platform)
    assert len(pccs.requests) == 4


async def test_a_guest_that_hangs_up_takes_nothing_from_the_others(
    make_cache: MakeCache, platform: SoftwareIntelPlatform
) -> None:
    cache = make_cache()
    tasks = [asyncio.create_task(cache.get(key_of(platform))) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(got[0], asyncio.CancelledError)
    assert all(not isinstance(other, BaseException) for other in got[1:])


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour.ERROR,
        Behaviour.NOT_FOUND,
        Behaviour.HTML,
        Behaviour.HUGE,
        Behaviour.BOMB,
        Behaviour.REDIRECT,
        Behaviour.OTHER_PLATFORM,
        Behaviour.OTHER_INTEL,
        Behaviour.NO_CHAIN,
        Behaviour.HANG,
    ],
)
async def test_a_service_that_misbehaves_is_told_to_the_administrator_alone(
    behaviour: Behaviour,
    make_cache: MakeCache,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
    storage: StorageProvider,
) -> None:
    pccs.behaviour = behaviour
    cache = make_cache(timeout=0.5)
    with pytest.raises(EvidenceError) as refused:
        await cache.get(key_of(platform))
    assert refused.value.status == 401
    assert "127.0.0.1" not in refused.value.detail
    assert "127.0.0.1" in refused.value.diagnostics()
    assert list(cache.status()) == ["tdx B0C06F000000 platform"]
    kept = await (await storage.namespace(NAMESPACE)).keys()
    assert kept == []

    # the next guests are answered at once, and the service is not asked again and again
    start = time.monotonic()
    for _ in range(20):
        with pytest.raises(EvidenceError):
            await cache.get(key_of(platform))
    assert time.monotonic() - start < 0.5
    # what the first failure cancelled may still arrive
    parts = ("tcb", "qe/identity", "pckcrl", "rootcacrl")
    assert max(pccs.asked_for(part) for part in parts) == 1


async def test_a_repaired_service_is_used_and_the_broker_is_ready_again(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.behaviour = Behaviour.ERROR
    clock = Clock()
    cache = make_cache(backoff=Backoff(clock))
    with pytest.raises(EvidenceError):
        await cache.get(key_of(platform))
    pccs.behaviour = Behaviour.HONEST
    clock.ahead = 5.0
    await cache.get(key_of(platform))
    assert not cache.status()


async def test_nobody_notices_a_service_that_stopped(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    clock = Clock()
    cache = make_cache(clock=clock)
    await cache.get(key_of(platform))
    pccs.stop()
    # renewal is due and fails; what is held stays valid for weeks
    clock.ahead = RENEW_AFTER_SECONDS + 60
    await cache.renew_due()
    for _ in range(100):
        await cache.get(key_of(platform))
    assert not cache.status()
    clock.ahead = timedelta(days=30).total_seconds()
    with pytest.raises(EvidenceError, match="no valid collateral"):
        await cache.get(key_of(platform))
    assert cache.status()


async def test_what_is_held_is_renewed_before_it_expires(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    clock = Clock()
    workers = [make_cache(clock=clock), make_cache(clock=clock)]
    for cache in workers:
        await cache.get(key_of(platform))
    await workers[0].renew_due()
    assert len(pccs.requests) == 4
    pccs.terms = Terms(evaluation=18)
    clock.ahead = RENEW_AFTER_SECONDS + 60
    await asyncio.gather(*(cache.renew_due() for cache in workers))
    assert len(pccs.requests) == 8
    for cache in workers:
        held = await cache.get(key_of(platform))
        assert held.tcb_info.tcb_evaluation_data_number == 18
    assert len(pccs.requests) == 8


async def test_short_lived_collateral_is_renewed_at_half_of_its_time(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.terms = Terms(next_update=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2))
    clock = Clock()
    cache = make_cache(clock=clock)
    await cache.get(key_of(platform))
    clock.ahead = 3500.0
    await cache.renew_due()
    assert pccs.asked_for("tcb") == 1
    clock.ahead = 3700.0
    await cache.renew_due()
    assert pccs.asked_for("tcb") == 2


async def test_what_an_administrator_imports_is_taken_without_a_restart(
    make_cache: MakeCache,
    pccs: SoftwarePccs,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    storage: StorageProvider,
) -> None:
    cache = make_cache()
    await cache.get(key_of(platform))
    made = intel.collateral(platform, "tdx", Terms(evaluation=19))
    store = await storage.namespace(NAMESPACE)
    value = encode_stored(parse_collateral(made.to_json()), time.time())
    await store.set(storage_key(key_of(platform), EARLY), value)
    await cache.renew_due()
    held = await cache.get(key_of(platform))
    assert held.tcb_info.tcb_evaluation_data_number == 19
    assert len(pccs.requests) == 4


async def test_what_is_stored_is_verified_again(
    make_cache: MakeCache,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
    storage: StorageProvider,
) -> None:
    foreign = SoftwareIntel()
    made = foreign.collateral(platform, "tdx")
    store = await storage.namespace(NAMESPACE)
    name = storage_key(key_of(platform), EARLY)
    for value in (encode_stored(parse_collateral(made.to_json()), time.time()), b"junk"):
        await store.set(name, value)
        await make_cache().get(key_of(platform))
        await store.delete(name)
    assert pccs.asked_for("tcb") == 2


async def test_expired_collateral_of_a_service_without_internet_is_used_but_not_kept(
    make_cache: MakeCache,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
    storage: StorageProvider,
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    pccs.terms = Terms(issued=now - timedelta(days=40), next_update=now - timedelta(days=10))
    cache = make_cache()
    held = await cache.get(key_of(platform))
    assert held.earliest_expiration < now
    await cache.get(key_of(platform))
    assert pccs.asked_for("tcb") == 1
    store = await storage.namespace(NAMESPACE)
    assert await store.get(storage_key(key_of(platform), EARLY)) is None


async def test_a_worker_that_died_while_fetching_holds_nobody_up(
    make_cache: MakeCache,
    pccs: SoftwarePccs,
    platform: SoftwareIntelPlatform,
    storage: StorageProvider,
) -> None:
    store = await storage.namespace(NAMESPACE)
    lease = f"{storage_key(key_of(platform), EARLY)}.lease"
    await store.set(lease, f"{time.time() - 1:.0f}:dead".encode())
    await make_cache().get(key_of(platform))
    assert pccs.asked_for("tcb") == 1
    assert await store.get(lease) is None


async def test_workers_do_not_wait_for_a_service_one_after_the_other(
    make_cache: MakeCache, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    pccs.behaviour = Behaviour.HANG
    workers = [make_cache(timeout=1.2) for _ in range(3)]
    start = time.monotonic()
    answers = await asyncio.gather(
        *(cache.get(key_of(platform)) for cache in workers), return_exceptions=True
    )
    assert all(isinstance(answer, EvidenceError) for answer in answers)
    assert time.monotonic() - start < 2.2
    assert pccs.asked_for("tcb") == 1


async def test_a_folder_is_used_without_storage_or_network(
    tmp_path: Path,
    intel: SoftwareIntel,
    platform: SoftwareIntelPlatform,
    make_cache: MakeCache,
    storage: StorageProvider,
) -> None:
    folder = tmp_path / "collateral"
    folder.mkdir()
    cache = make_cache(source=OfflineSource(folder, EARLY))
    with pytest.raises(EvidenceError):
        await cache.get(key_of(platform))
    now = datetime.now(UTC)
    old = Terms(issued=now - timedelta(days=40), next_update=now - timedelta(days=10))
    (folder / "a.json").write_bytes(intel.collateral(platform, "tdx", old).to_json())
    assert (await cache.get(key_of(platform))).earliest_expiration < now
    assert await (await storage.namespace(NAMESPACE)).keys() == []


@pytest.fixture
async def verifier(
    pccs: SoftwarePccs, storage: StorageProvider, root_file: Path
) -> AsyncIterator[TdxVerifier]:
    config = DcapVerifierConfig(
        collateral_service=pccs.url, qcnl_conf="", extra_trusted_roots=(str(root_file),)
    )
    endorser = make_endorser(config, storage)
    tdx, sgx = TdxVerifier(endorser), SgxVerifier(endorser)
    yield tdx
    await tdx.close()
    # the two share what is closed
    await sgx.close()


async def test_a_guests_evidence_gives_its_claims(
    verifier: TdxVerifier, platform: SoftwareIntelPlatform
) -> None:
    log = SoftwareEventLog.linux()
    log.add_agent_event("domain", "operation", '{"a": 1}')
    evidence = platform.td_evidence(report_data=b"r" * 48, mr_config_id=b"i" * 32, log=log)
    binding = ExpectedBinding(report_data=b"r" * 48, init_data=b"i" * 32)
    (verified,) = await verifier.verify(evidence, binding)
    assert verified.claims["report_data"].startswith((b"r" * 48).hex())
    events = verified.claims["uefi_event_logs"]
    assert events[-1]["details"]["data"]["content"] == {"a": 1}
    assert events[2]["details"]["device_paths"] == ["File(kernel)"]
    for other in (
        ExpectedBinding(report_data=b"x" * 48),
        ExpectedBinding(report_data=b"r" * 48, init_data=b"x" * 32),
    ):
        with pytest.raises(EvidenceError):
            await verifier.verify(evidence, other)


async def test_a_swapped_event_log_is_refused(
    verifier: TdxVerifier, platform: SoftwareIntelPlatform
) -> None:
    evidence = platform.td_evidence(report_data=b"r", log=SoftwareEventLog.linux())
    other = platform.td_evidence(report_data=b"r", log=SoftwareEventLog.linux(b"other kernel"))
    with pytest.raises(EvidenceError, match="does not give measurement register"):
        await verifier.verify({**evidence, "cc_eventlog": other["cc_eventlog"]}, ExpectedBinding())


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        [],
        "text",
        {},
        {"quote": 5},
        {"quote": ""},
        {"quote": "not base64!"},
        {"quote": "QUJD"},
        {"quote": "A" * 200_000},
    ],
)
async def test_evidence_of_another_form_is_refused(evidence: Any, verifier: TdxVerifier) -> None:
    with pytest.raises(EvidenceError):
        await verifier.verify(evidence, ExpectedBinding())


async def test_an_enclave_is_no_td(verifier: TdxVerifier, platform: SoftwareIntelPlatform) -> None:
    with pytest.raises(EvidenceError, match="not tdx"):
        await verifier.verify(platform.enclave_evidence(report_data=b""), ExpectedBinding())
    good = platform.td_evidence(report_data=b"")
    with pytest.raises(EvidenceError, match="not a string"):
        await verifier.verify({**good, "cc_eventlog": 5}, ExpectedBinding())


async def test_strangers_cause_no_fetching(verifier: TdxVerifier, pccs: SoftwarePccs) -> None:
    stranger = SoftwareIntel().platform(fmspc=b"\x01" * 6)
    with pytest.raises(EvidenceError, match="not issued under a trusted root"):
        await verifier.verify(stranger.td_evidence(report_data=b""), ExpectedBinding())
    assert pccs.requests == []
    assert not verifier.lacking()


async def test_guests_are_served_while_the_service_is_stopped_under_load(
    verifier: TdxVerifier, pccs: SoftwarePccs, platform: SoftwareIntelPlatform
) -> None:
    evidence = platform.td_evidence(report_data=b"")

    async def attest(_: int) -> None:
        await verifier.verify(evidence, ExpectedBinding())

    await attest(0)
    running = [asyncio.create_task(attest(number)) for number in range(200)]
    await asyncio.to_thread(pccs.stop)
    running += [asyncio.create_task(attest(number)) for number in range(200)]
    await asyncio.gather(*running)
    assert len(pccs.requests) == 4


def test_a_root_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    for content in (b"", b"no certificate", SoftwareIntel().platform().pck_chain.encode()):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            make_endorser(DcapVerifierConfig(qcnl_conf="", extra_trusted_roots=(str(path),)), None)


def test_a_root_that_is_not_intels_is_reported(
    root_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DcapVerifierConfig(qcnl_conf="", extra_trusted_roots=(str(root_file),))
    with caplog.at_level("WARNING"):
        make_endorser(config, None)
    assert "Software SGX Root CA" in caplog.text
