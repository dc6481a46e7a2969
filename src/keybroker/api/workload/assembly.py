"""From a configuration to the service of registered workloads."""

import logging

from keybroker.api.parts import Parts
from keybroker.api.workload.face import API_PATH, WorkloadFace
from keybroker.config.attestation import BuiltInAttestationConfig
from keybroker.config.kbs import KbsConfig
from keybroker.config.verifiers import SnpVerifierConfig
from keybroker.config.workloads import WorkloadsConfig
from keybroker.kbs.sessions import SessionKeys
from keybroker.storage.interface import StorageProvider
from keybroker.verifiers.sev_chain import SevChainVerifier
from keybroker.verifiers.sev_roots import sev_trust_anchors
from keybroker.verifiers.snp import SnpVerifier
from keybroker.workloads.service import WorkloadService, clean_up
from keybroker.workloads.sessions import SESSION_NAMESPACE, WorkloadSessions
from keybroker.workloads.store import WorkloadStore, open_workload_records

logger = logging.getLogger(__name__)

#: How often records of ended sessions are deleted.
CLEANUP_SECONDS = 60.0


async def open_face(parts: Parts) -> None:
    """Make the service and serve it below the configured prefix, and on a socket of its own."""
    config = parts.config.workloads
    if config is None:
        return
    service = await open_workloads(parts.config, config, parts.storage, parts.session_keys)
    parts.stack.push_async_callback(service.close)
    parts.jobs.append(lambda: clean_up(service, every=CLEANUP_SECONDS))

    def face(prefix: str) -> WorkloadFace:
        return WorkloadFace(
            service,
            parts.admin,
            parts.metrics,
            prefix=prefix,
            limits=parts.limits,
            open_registration=config.open_registration,
            secure=parts.secure,
        )

    parts.faces.append((config.prefix + API_PATH + "/", face(config.prefix)))
    parts.documents[config.prefix] = "workloads"
    port = parts.own_ports.get("workloads")
    if port is not None:
        parts.listeners[port] = face("")


async def open_workloads(
    config: KbsConfig, workloads: WorkloadsConfig, storage: StorageProvider, keys: SessionKeys
) -> WorkloadService:
    """Make the service; its owner closes it.

    Raises:
        ConfigError: a root cannot be used, or passphrases would be stored in clear.
    """
    if workloads.open_registration:
        logger.warning(
            "workloads.open_registration: everybody who reaches this broker can register workloads"
            " and replace those of others"
        )
    if workloads.allow_debug:
        logger.warning(
            "workloads.allow_debug: passphrases are released to guests that their host can read"
        )
    sessions = WorkloadSessions(
        keys,
        await storage.namespace(SESSION_NAMESPACE, config.session_storage_type),
        lifetime=workloads.session_minutes * 60,
    )
    return WorkloadService(
        WorkloadStore(
            await open_workload_records(config, storage), max_workloads=workloads.max_workloads
        ),
        sessions,
        sev=SevChainVerifier(sev_trust_anchors(workloads.extra_trusted_sev_roots)),
        snp=SnpVerifier(snp_verifier_config(config, workloads), storage),
        allow_debug=workloads.allow_debug,
        max_in_flight=config.limits.max_attestations_in_flight,
    )


def snp_verifier_config(config: KbsConfig, workloads: WorkloadsConfig) -> SnpVerifierConfig:
    """Return how SNP reports are verified: as configured here, else as by the built-in service."""
    if workloads.snp_verifier is not None:
        return workloads.snp_verifier
    attestation = config.attestation
    if isinstance(attestation, BuiltInAttestationConfig):
        return attestation.verifier_config.snp_verifier
    return SnpVerifierConfig()
