"""Where VCEK certificates come from when the evidence brings none.

A :class:`VcekLibrary` asks its sources in their order and lends out what verified: from memory,
else from the broker's storage, else from a source, which is asked once however many guests of a
chip wait. A source that fails is left alone for a while, twice as long after each failure; an
answer that does not verify is a failure and is never kept.

Specification: AMD 57230, VCEK Certificate and KDS Interface, section 4 (paths of the service).
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from keybroker import workbench
from keybroker.config.verifiers import KdsSourceConfig, SnpVerifierConfig
from keybroker.model.errors import EvidenceError, StorageError
from keybroker.storage.interface import KeyValueStore, StorageProvider
from keybroker.verifiers.snp_chain import ChainVerifier, EndorsementKey
from keybroker.verifiers.snp_report import Generation, SigningKey, SnpReport, Tcb
from keybroker.verifiers.x509 import MAX_CERTIFICATE_BYTES

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

#: Namespace of the broker's storage that keeps certificates from the key distribution service.
NAMESPACE: Final = "snp_certificates"

#: After the first failure a remote source is left alone this long; each further one doubles it.
FIRST_RETRY_SECONDS: Final = 1.0

#: The longest that a source is left alone: a repaired one is noticed within minutes.
LONGEST_RETRY_SECONDS: Final = 300.0

#: Failures that are remembered; forged chip ids must not fill the memory.
MAX_REMEMBERED_FAILURES: Final = 4096

#: VCEKs that are held ready, one a chip and firmware level; each holds about 5 KiB.
MAX_READY: Final = 2048

#: Requests to one service at a time: evidence is not verified yet when its VCEK is asked for, and
#: forged chip ids must not make this broker a burden to AMD.
MAX_CONCURRENT_REQUESTS: Final = 8


@dataclass(frozen=True, slots=True)
class VcekRequest:
    """Which VCEK: of this chip, at this firmware level."""

    generation: Generation
    hardware_id: bytes
    tcb: Tcb

    @classmethod
    def of(cls, report: SnpReport) -> "VcekRequest":
        """Return what a report says about the key that signed it.

        Raises:
            EvidenceError: the platform masks its chip id, so nobody can tell which VCEK it is.
        """
        if report.chip_id_is_masked:
            raise EvidenceError(
                "the report's chip id is masked and no VCEK came with it: let the guest send the"
                " host's certificate table, or set MASK_CHIP_ID to 0 on the host"
            )
        return cls(report.generation, report.hardware_id, report.reported_tcb)

    @property
    def tcb_name(self) -> str:
        """The firmware level as it stands in the names of Trustee's offline store."""
        tcb = self.tcb
        name = f"bl{tcb.bootloader:02}_tee{tcb.tee:02}_snp{tcb.snp:02}_ucode{tcb.microcode:02}"
        return name if tcb.fmc is None else f"{name}_fmc{tcb.fmc:02}"

    @property
    def storage_key(self) -> str:
        """The key in the broker's storage."""
        return f"{self.generation}/{self.hardware_id.hex()}/{self.tcb_name}.der"

    @property
    def kds_path(self) -> str:
        """Path and query at the key distribution service."""
        tcb = self.tcb
        fmc = "" if tcb.fmc is None else f"fmcSPL={tcb.fmc:02}&"
        return (
            f"/vcek/v1/{self.generation}/{self.hardware_id.hex()}?{fmc}blSPL={tcb.bootloader:02}"
            f"&teeSPL={tcb.tee:02}&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02}"
        )


class SourceError(Exception):
    """A source has no certificate to give.

    Attributes:
        unavailable: whether the source itself is the cause, so that asking it for another
            certificate would not help now either.
    """

    def __init__(self, reason: str, *, unavailable: bool = False) -> None:
        super().__init__(reason)
        self.unavailable = unavailable


class VcekSource(Protocol):
    """One place that certificates come from."""

    @property
    def name(self) -> str:
        """What the source is called in diagnostics."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether asking costs a network request: then answers are kept and failures waited out."""
        ...

    async def fetch(self, request: VcekRequest) -> bytes:
        """Return a certificate, not verified.

        Raises:
            SourceError: there is none.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class OfflineStoreSource:
    """Files in Trustee's layout: ``vcek/<hardware id>/<TCB>_vcek.der``, else ``…/vcek.der``."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "vcek"

    @property
    def name(self) -> str:
        return f"the offline store {self._folder}"

    async def fetch(self, request: VcekRequest) -> bytes:
        return await asyncio.to_thread(self._read, request)

    def _read(self, request: VcekRequest) -> bytes:
        chip = self._folder / request.hardware_id.hex()
        for path in (chip / f"{request.tcb_name}_vcek.der", chip / "vcek.der"):
            try:
                with path.open("rb") as file:
                    return file.read(MAX_CERTIFICATE_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise SourceError(f"{path} cannot be read: {error.strerror}") from None
        raise SourceError(f"no {request.tcb_name}_vcek.der and no vcek.der in {chip}")

    async def close(self) -> None:
        return None


class KdsSource:
    """AMD's key distribution service over HTTP."""

    is_remote = True

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    @property
    def name(self) -> str:
        return self._base_url

    async def fetch(self, request: VcekRequest) -> bytes:
        # Imported here: a broker whose guests bring their certificates starts without it.
        import httpx

        if self._client is None:
            # redirects are not followed: the service has none, and one could lead anywhere
            self._client = httpx.AsyncClient(
                timeout=self._timeout_seconds,
                follow_redirects=False,
                headers={"accept-encoding": "identity", "user-agent": "keybroker"},
            )
        try:
            async with self._slots, asyncio.timeout(self._timeout_seconds):
                return await self._get(self._client, self._base_url + request.kds_path)
        except TimeoutError:
            raise SourceError(
                f"no answer within {self._timeout_seconds:g} s", unavailable=True
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"{type(error).__name__}: {error}", unavailable=True) from None

    async def _get(self, client: "httpx.AsyncClient", url: str) -> bytes:
        async with client.stream("GET", url) as response:
            status = response.status_code
            if status != HTTPStatus.OK:
                unavailable = status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS
                raise SourceError(f"status {status}", unavailable=unavailable)
            # undone, a compressed answer could be of any size
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceError("the answer is compressed, which was not asked for")
            answer = bytearray()
            async for chunk in response.aiter_raw():
                answer += chunk
                if len(answer) > MAX_CERTIFICATE_BYTES:
                    raise SourceError(f"the answer is larger than {MAX_CERTIFICATE_BYTES} bytes")
            return bytes(answer)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


class Backoff:
    """Remembers what failed, why, and until when it is left alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[Hashable, tuple[int, float, str]] = OrderedDict()

    def reason_to_wait(self, key: Hashable) -> str | None:
        """Return why and how long something is left alone; None: it may be tried."""
        known = self._failures.get(key)
        if known is None or (left := known[1] - self._clock()) <= 0:
            return None
        return f"{known[2]} (not asked again for {left:.0f} s)"

    def failed(self, key: Hashable, reason: str) -> None:
        """Note a failure; it is left alone twice as long as after the one before."""
        count = self._failures.pop(key, (0, 0.0, ""))[0]
        # the exponent is bounded because 2.0**n overflows
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** min(count, 30), LONGEST_RETRY_SECONDS)
        self._failures[key] = (count + 1, self._clock() + pause, reason)
        if len(self._failures) > MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def succeeded(self, key: Hashable) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)


class VcekLibrary:
    """Lends out verified VCEKs. Belongs to one event loop."""

    def __init__(
        self,
        sources: Sequence[VcekSource],
        chains: ChainVerifier,
        storage: StorageProvider,
        backoff: Backoff | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._chains = chains
        self._storage = storage
        self._backoff = Backoff() if backoff is None else backoff
        self._ready: OrderedDict[VcekRequest, EndorsementKey] = OrderedDict()
        self._under_way: dict[VcekRequest, asyncio.Task[EndorsementKey]] = {}

    async def get(self, request: VcekRequest) -> EndorsementKey:
        """Return the VCEK, its chain verified and valid now.

        Raises:
            EvidenceError: no source has it; the diagnostics say what each answered.
        """
        ready = self._ready.get(request)
        if ready is not None:
            try:
                ready.verify_valid_at(datetime.now(UTC))
            except EvidenceError:
                del self._ready[request]
            else:
                self._ready.move_to_end(request)
                return ready
        task = self._under_way.get(request)
        if task is None:
            task = asyncio.create_task(self._obtain(request))
            self._under_way[request] = task
            task.add_done_callback(lambda done: self._finished(request, done))
        # one guest that hangs up must not take the certificate from the others that wait
        return await asyncio.shield(task)

    def _finished(self, request: VcekRequest, task: "asyncio.Task[EndorsementKey]") -> None:
        del self._under_way[request]
        if task.cancelled() or task.exception() is not None:
            return
        self._ready[request] = task.result()
        if len(self._ready) > MAX_READY:
            self._ready.popitem(last=False)

    async def _obtain(self, request: VcekRequest) -> EndorsementKey:
        store = await self._storage.namespace(NAMESPACE)
        kept = await self._from_storage(store, request)
        if kept is not None:
            return kept
        reasons: list[str] = []
        for number, source in enumerate(self._sources):
            try:
                return await self._from_source(number, source, store, request)
            except SourceError as error:
                reasons.append(f"{source.name}: {error}")
        raise EvidenceError(
            f"no VCEK for {request.generation} {request.hardware_id.hex()[:16]}… at"
            f" {request.tcb_name}: {'; '.join(reasons) or 'no source is configured'}"
        )

    async def _from_storage(
        self, store: KeyValueStore, request: VcekRequest
    ) -> EndorsementKey | None:
        try:
            kept = await store.get(request.storage_key)
        except StorageError as error:
            logger.warning("kept VCEKs cannot be read: %s", error.diagnostics())
            return None
        if kept is None:
            return None
        try:
            return await workbench.run(self._verify, kept, request)
        except EvidenceError as error:
            # expired, or kept under a root that is no longer trusted: it is fetched anew
            logger.info("a kept VCEK is not used: %s", error.diagnostics())
            return None

    async def _from_source(
        self, number: int, source: VcekSource, store: KeyValueStore, request: VcekRequest
    ) -> EndorsementKey:
        if not source.is_remote:
            return await self._verify_answer(await source.fetch(request), request)
        reason = self._backoff.reason_to_wait(number)
        reason = reason or self._backoff.reason_to_wait((number, request))
        if reason is not None:
            raise SourceError(reason)
        try:
            answer = await source.fetch(request)
            endorsement = await self._verify_answer(answer, request)
        except SourceError as error:
            key = number if error.unavailable else (number, request)
            self._backoff.failed(key, str(error))
            logger.warning("no VCEK from %s: %s", source.name, error)
            raise
        self._backoff.succeeded(number)
        self._backoff.succeeded((number, request))
        try:
            await store.set(request.storage_key, answer)
        except StorageError as error:
            # it is at hand in memory all the same; only a restart would ask again
            logger.warning("a VCEK cannot be kept: %s", error.diagnostics())
        return endorsement

    async def _verify_answer(self, answer: bytes, request: VcekRequest) -> EndorsementKey:
        try:
            return await workbench.run(self._verify, answer, request)
        except EvidenceError as error:
            raise SourceError(f"not the certificate asked for: {error.diagnostics()}") from None

    def _verify(self, certificate: bytes, request: VcekRequest) -> EndorsementKey:
        endorsement = self._chains.verify(
            certificate,
            kind=SigningKey.VCEK,
            generation=request.generation,
            at=datetime.now(UTC),
        )
        return endorsement.verify_is_for(request.tcb, request.hardware_id)

    async def close(self) -> None:
        """Stop what is under way and release connections."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in self._sources:
            await source.close()


def make_sources(config: SnpVerifierConfig) -> list[VcekSource]:
    """Make the sources that a configuration names."""
    return [
        KdsSource(source.base_url, config.kds_timeout_seconds)
        if isinstance(source, KdsSourceConfig)
        else OfflineStoreSource(Path(source.path))
        for source in config.vcek_sources
    ]
