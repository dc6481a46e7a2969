"""The relying party of registered workloads.

Its steps, of which each needs the one before::

    auth     workload → challenge; for SEV the platform's chain is verified and a launch prepared
    attest   cookie → evidence verified against the registered measurement, recorded once
    key      cookie → the passphrase of the session's own workload, encrypted to what attested

A session is bound to a workload as it was registered when the session began. Where it was
registered anew meanwhile, the session is refused: the measurement of one registration never opens
the secret of another.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from keybroker import workbench
from keybroker.kbs.sessions import SessionError
from keybroker.model.errors import (
    EvidenceError,
    JweError,
    MalformedError,
    NotFoundError,
    PolicyDenyError,
    TooManyRequestsError,
)
from keybroker.verifiers.interface import ExpectedBinding
from keybroker.verifiers.sev_chain import SevChainVerifier
from keybroker.verifiers.snp import SnpVerifier
from keybroker.workloads import payloads
from keybroker.workloads.payloads import Attestation, SevPlatform
from keybroker.workloads.registration import (
    SnpConfiguration,
    Workload,
    parse_registration,
)
from keybroker.workloads.sessions import (
    Attested,
    SevLaunch,
    WorkloadSession,
    WorkloadSessions,
    used_session,
)
from keybroker.workloads.sev_launch import (
    LaunchStart,
    TransportKeys,
    issue_launch_start,
    seal_launch_secret,
    verify_measurement,
)
from keybroker.workloads.sev_policy import SevPolicy
from keybroker.workloads.snp_guest import (
    GuestKey,
    allows_debug,
    bound_report_data,
    make_rsa_key,
    parse_guest_key,
    parse_snp_evidence,
    seal_to_guest,
)
from keybroker.workloads.store import (
    RegisteredWorkload,
    WorkloadStore,
    workload_key,
)

logger = logging.getLogger(__name__)


class WorkloadService:
    """Registers workloads and releases their passphrases.

    Args:
        store: the registered workloads.
        sessions: their sessions.
        sev: verifies platforms.
        snp: verifies reports.
        allow_debug: release to guests whose host may debug them.
        max_in_flight: platforms and evidence verified at once in this process.
    """

    def __init__(
        self,
        store: WorkloadStore,
        sessions: WorkloadSessions,
        *,
        sev: SevChainVerifier,
        snp: SnpVerifier,
        allow_debug: bool = False,
        max_in_flight: int = 256,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._sev = sev
        self._snp = snp
        self._allow_debug = allow_debug
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def register(self, body: bytes) -> Workload:
        """Register a workload, or register it anew.

        Raises:
            MalformedError: it could never be served.
        """
        workload = parse_registration(body, allow_debug=self._allow_debug)
        await self._store.register(workload)
        logger.info("workload %s registered for %s", workload.workload_id, workload.tee)
        return workload

    async def workloads(self) -> Sequence[RegisteredWorkload]:
        """Return all registered workloads by their ids."""
        return await self._store.all()

    async def workload(self, workload_id: str) -> RegisteredWorkload:
        """Return a registered workload.

        Raises:
            NotFoundError: there is none of that id.
        """
        found = await self._store.get(workload_id)
        if found is None:
            raise _no_such_workload()
        return found

    async def delete(self, workload_id: str) -> None:
        """Delete a workload; sessions of it are refused from now on.

        Raises:
            NotFoundError: there is none of that id.
        """
        if not await self._store.delete(workload_id):
            raise _no_such_workload()
        logger.info("workload %s deleted", workload_id)

    async def auth(self, body: bytes) -> tuple[dict[str, Any], WorkloadSession, str]:
        """Challenge a client.

        Returns:
            The challenge, the session and the sealed cookie value.

        Raises:
            MalformedError: the request cannot be parsed, or names another TEE than the workload's.
            NotFoundError: there is no such workload.
            EvidenceError: the SEV platform is not genuine, or its firmware too old.
            PolicyDenyError: the workload's policy allows debugging.
        """
        request = payloads.parse_auth_request(body)
        registered = await self.workload(request.workload_id)
        workload = registered.workload
        if workload.tee is not request.tee:
            raise MalformedError(f"the workload is registered for {workload.tee.value}")
        start = launch = None
        policy, platform = workload.configuration, request.platform
        if isinstance(policy, SevPolicy) and platform is not None:
            async with self._in_work():
                start, keys = await self._start_launch(platform, policy)
            launch = SevLaunch(keys, policy, platform.build)
        session, cookie = await self._sessions.issue(
            workload.tee, workload_key(workload.workload_id), registered.revision, launch
        )
        return payloads.challenge(session.nonce, start, nested=request.nested), session, cookie

    async def _start_launch(
        self, platform: SevPlatform, policy: SevPolicy
    ) -> tuple[LaunchStart, TransportKeys]:
        if policy.allows_debug and not self._allow_debug:
            raise PolicyDenyError("the registered SEV policy allows the host to debug the guest")
        build = platform.build
        if (build.major, build.minor) < policy.minimum_api:
            raise EvidenceError("the platform's firmware is older than the guest policy demands")
        key = await workbench.run(self._sev.verify, platform.chain)
        return await workbench.run(issue_launch_start, key.key, policy)

    async def attest(self, cookie: str | None, body: bytes) -> None:
        """Verify evidence and record that the session has attested.

        Raises:
            SessionError: no valid session, one that has attested, or one whose workload changed.
            MalformedError: the payload cannot be parsed.
            EvidenceError: the evidence does not verify, or is of something that is not registered.
            JweError: the guest's key cannot be encrypted to.
        """
        session = await self._sessions.open(cookie)
        attestation = payloads.parse_attestation(body)
        if await self._sessions.attested(session) is not None:
            raise used_session()
        workload = await self._current(session)
        async with self._in_work():
            if session.launch is not None:
                record = self._attest_sev(session.launch, workload, attestation)
            else:
                record = await self._attest_snp(session, workload, attestation)
        await self._sessions.attest(session, record)
        logger.info(
            "workload %s attested on %s",
            workload.workload_id,
            workload.tee,
            extra={"session": session.id.hex()[:8]},
        )

    def _attest_sev(
        self, launch: SevLaunch, workload: Workload, attestation: Attestation
    ) -> Attested:
        measurement = verify_measurement(
            launch.keys,
            launch.build,
            launch.policy,
            workload.measurement,
            payloads.parse_launch_measurement(attestation.evidence),
        )
        return Attested(measure=measurement.measure)

    async def _attest_snp(
        self, session: WorkloadSession, workload: Workload, attestation: Attestation
    ) -> Attested:
        key = parse_guest_key(attestation.public_key)
        evidence = parse_snp_evidence(payloads.parse_snp_attestation(attestation.evidence))
        report = evidence.report
        bound = ExpectedBinding(report_data=bound_report_data(session.nonce, key))
        await self._snp.verify_parsed(evidence, bound)
        if not hmac.compare_digest(report.measurement, workload.measurement):
            raise EvidenceError("the measurement is not the registered one")
        configuration = workload.configuration
        if (
            isinstance(configuration, SnpConfiguration)
            and configuration.generation is not None
            and configuration.generation is not report.generation
        ):
            raise EvidenceError("the workload is registered for another processor generation")
        if allows_debug(report.policy) and not self._allow_debug:
            raise EvidenceError("the guest policy allows the host to debug the guest")
        if key.capacity < len(workload.passphrase):
            # said now, not when the key is fetched; only to a guest that verified
            text = "the key is too small for this workload's passphrase with this padding"
            raise JweError(text, detail=text)
        modulus, exponent = key.numbers()
        return Attested(modulus=modulus, exponent=exponent, alg=key.alg)

    async def key(self, cookie: str | None, key_id: str) -> Any:
        """Release the passphrase of the session's workload.

        Args:
            key_id: must be the id of that workload.

        Returns:
            A JSON value: hexadecimal for SNP, a launch secret for SEV.

        Raises:
            SessionError: no valid session, one that has not attested, or one whose workload
                changed.
            PolicyDenyError: another key.
        """
        session = await self._sessions.open(cookie)
        attested = await self._sessions.attested(session)
        if attested is None:
            raise SessionError(
                "the session has not attested", detail="the session has not attested yet"
            )
        if not hmac.compare_digest(workload_key(key_id), session.workload):
            raise PolicyDenyError("a session gets the key of its own workload alone")
        workload = await self._current(session)
        logger.info(
            "key of workload %s released",
            workload.workload_id,
            extra={"session": session.id.hex()[:8]},
        )
        if session.launch is not None:
            return payloads.secret_packet(
                seal_launch_secret(session.launch.keys, workload.passphrase, attested.measure)
            )
        rsa_key = make_rsa_key(
            int.from_bytes(attested.modulus, "big"), int.from_bytes(attested.exponent, "big")
        )
        return seal_to_guest(GuestKey(rsa_key, attested.alg), workload.passphrase)

    async def forget_expired(self) -> int:
        """Delete the records of sessions that have ended; return how many there were."""
        return await self._sessions.forget_expired()

    async def close(self) -> None:
        """Release connections."""
        await self._snp.close()

    async def _current(self, session: WorkloadSession) -> Workload:
        """Return a session's workload as it was when the session began, or refuse."""
        registered = await self._store.find(session.workload)
        if registered is None or not hmac.compare_digest(registered.revision, session.revision):
            raise SessionError(
                "the workload was registered anew or deleted since the session began",
                detail="the workload has changed: start again with POST auth",
            )
        return registered.workload

    @asynccontextmanager
    async def _in_work(self) -> AsyncIterator[None]:
        if self._in_flight >= self._max_in_flight:
            raise TooManyRequestsError(f"{self._in_flight} verifications in work")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


def _no_such_workload() -> NotFoundError:
    return NotFoundError("no such workload", detail="no such workload")


async def clean_up(service: WorkloadService, *, every: float) -> None:
    """Delete the records of ended sessions for ever.

    Args:
        every: seconds between two runs.
    """
    while True:
        await asyncio.sleep(every)
        try:
            await service.forget_expired()
        except Exception as error:
            logger.warning("ended workload sessions could not be deleted: %s", error)
