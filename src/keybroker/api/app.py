"""Assembly: from a configuration to a running application.

Everything is made here, once, and handed down; no room reaches for another by itself.
"""

import base64
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from keybroker import __version__
from keybroker.api.exchange import BodyLimits
from keybroker.api.kbs_v0.face import PREFIX, KbsFace
from keybroker.api.kbs_v1.face import PREFIX as KEY_TRANSFER_PREFIX
from keybroker.api.kbs_v1.face import KeyTransferFace
from keybroker.api.metrics import Metrics
from keybroker.api.pages import ReadinessCheck, routes
from keybroker.api.workload.assembly import open_workloads
from keybroker.api.workload.face import API_PATH, WorkloadFace
from keybroker.attestation_service.service import AttestationService, open_attestation_service
from keybroker.config.attestation import BuiltInAttestationConfig
from keybroker.config.kbs import KbsConfig
from keybroker.config.workloads import WorkloadsConfig
from keybroker.kbs.admin import AdminAccess
from keybroker.kbs.broker import Broker
from keybroker.kbs.decision import ALLOW_RULE, RESOURCE_POLICY_ID, Decisions
from keybroker.kbs.plugins.registry import make_plugins
from keybroker.kbs.policies import RESOURCE_POLICIES, resource_policy
from keybroker.kbs.sessions import SessionKeys, Sessions, read_session_secret
from keybroker.key_transfer.service import open_key_transfer
from keybroker.model.errors import ConfigError, KeybrokerError
from keybroker.policy.store import VERDICT_NAMESPACE, PolicyStore
from keybroker.storage.interface import KeyValueStore, StorageProvider
from keybroker.storage.provider import open_configured_storage
from keybroker.tokens.verifier import TokenVerifier
from keybroker.workloads.service import WorkloadService, clean_up

logger = logging.getLogger(__name__)

#: Namespace of keys that the broker makes for itself (sealing, metric labels).
KEYS_NAMESPACE = "broker_keys"

#: How often records of ended sessions are deleted.
CLEANUP_SECONDS = 60.0


class Application:
    """The root: protocol faces by prefix, and the pages beside them.

    The faces are asked first and without a router between: they carry all the load.
    """

    def __init__(
        self, config: KbsConfig, put_in_force: str | None = None, workload_port: int | None = None
    ) -> None:
        self._config = config
        self._put_in_force = put_in_force
        self._workload_port = workload_port
        self._workload_listener: ASGIApp | None = None
        self._faces: list[tuple[str, ASGIApp]] = []
        self._pages = Starlette(lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its face."""
        if scope["type"] == "http":
            if self._workload_listener is not None and scope["server"][1] == self._workload_port:
                await self._workload_listener(scope, receive, send)
                return
            path = scope["path"]
            for prefix, face in self._faces:
                if path.startswith(prefix):
                    await face(scope, receive, send)
                    return
        await self._pages(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, pages: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await self._start(pages, stack)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            for job in self._jobs:
                tasks.start_soon(job)
            yield
            tasks.cancel_scope.cancel()

    async def _start(self, pages: Starlette, stack: AsyncExitStack) -> None:
        config = self._config
        self._jobs: list[Callable[[], Coroutine[Any, Any, None]]] = []
        readiness: dict[str, ReadinessCheck] = {}

        storage = open_configured_storage(config)
        stack.push_async_callback(storage.close)
        keys = await storage.namespace(KEYS_NAMESPACE)

        attestation = await self._attestation_service(storage, stack)
        sessions = None
        if attestation is not None:
            sessions = await self._sessions(storage, keys)
            self._jobs.append(lambda: _clean_up(sessions))
            readiness["attestation"] = attestation.readiness

        token_verifier = await TokenVerifier.create(
            config.attestation_token,
            own_signer=attestation.signer if attestation is not None else None,
        )
        stack.push_async_callback(token_verifier.close)

        policies = await open_resource_policies(storage)
        if self._put_in_force is not None:
            logger.warning("the resource policy is now the built-in %s", self._put_in_force)
            await policies.set(RESOURCE_POLICY_ID, resource_policy(self._put_in_force))

        admin = await AdminAccess.create(config.admin)
        stack.push_async_callback(admin.close)
        broker = Broker(
            attestation=attestation,
            sessions=sessions,
            token_verifier=token_verifier,
            decisions=Decisions(policies),
            admin=admin,
            plugins=await make_plugins(config.plugins, storage),
            allow_rsa1_5=config.release.allow_rsa1_5,
        )
        metrics = Metrics(
            version=__version__,
            resource_labels=config.metrics.resource_paths.value,
            label_key=await _kept_key(keys, "metric-labels"),
        )
        readiness["storage"] = lambda: _storage_problem(keys)
        readiness["resource policy"] = lambda: _policy_problem(policies)
        face = KbsFace(
            broker,
            metrics,
            limits=_limits(config),
            max_attestations=config.limits.max_attestations_in_flight,
            secure=not config.http_server.insecure_http,
        )
        self._faces.append((PREFIX + "/", face))
        documents = {"": "kbs"}
        if config.workloads is not None:
            documents[config.workloads.prefix] = "workloads"
            workloads = await open_workloads(
                config, config.workloads, storage, _session_keys(config, keys)
            )
            stack.push_async_callback(workloads.close)
            self._jobs.append(lambda: clean_up(workloads, every=CLEANUP_SECONDS))
            self._mount_workloads(config.workloads, workloads, admin, metrics)
        if config.key_transfer is not None:
            documents[KEY_TRANSFER_PREFIX] = "key-transfer"
            key_transfer = await open_key_transfer(
                config.key_transfer, storage, stack, attestation=attestation, tokens=token_verifier
            )
            self._jobs.append(key_transfer.clean_up)
            key_transfer_face = KeyTransferFace(
                key_transfer,
                metrics,
                limits=_limits(config),
                max_attestations=config.limits.max_attestations_in_flight,
                pages=pages,
            )
            self._faces.append((KEY_TRANSFER_PREFIX + "/", key_transfer_face))
        pages.router.routes.extend(
            routes(
                metrics=metrics,
                jwks=attestation.jwks if attestation is not None else None,
                readiness=readiness,
                documents=documents if config.openapi.enabled else {},
                show_metrics=config.metrics.enabled,
            )
        )

    async def _attestation_service(
        self, storage: StorageProvider, stack: AsyncExitStack
    ) -> AttestationService | None:
        config = self._config.attestation
        if config is None:
            return None
        if not isinstance(config, BuiltInAttestationConfig):
            raise ConfigError(
                f"attestation_service.type {type(config).__name__}: this build has the built-in"
                ' attestation service (type = "coco_as_builtin")'
            )
        service = await open_attestation_service(config, storage)
        stack.push_async_callback(service.close)
        return service

    async def _sessions(self, storage: StorageProvider, keys: KeyValueStore) -> Sessions:
        config = self._config
        assert config.attestation is not None
        return Sessions(
            _session_keys(config, keys),
            await storage.namespace("kbs_protocol_session", config.session_storage_type),
            lifetime=config.attestation.timeout * 60,
        )

    def _mount_workloads(
        self,
        config: WorkloadsConfig,
        service: WorkloadService,
        admin: AdminAccess,
        metrics: Metrics,
    ) -> None:
        def face(prefix: str) -> WorkloadFace:
            return WorkloadFace(
                service,
                admin,
                metrics,
                prefix=prefix,
                limits=_limits(self._config),
                open_registration=config.open_registration,
                secure=not self._config.http_server.insecure_http,
            )

        self._faces.append((config.prefix + API_PATH + "/", face(config.prefix)))
        if self._workload_port is not None:
            self._workload_listener = face("")


def _session_keys(config: KbsConfig, keys: KeyValueStore) -> SessionKeys:
    key_file = config.session.key_file
    return SessionKeys(
        keys,
        read_session_secret(key_file) if key_file is not None else None,
        config.session.rotation_hours * 3600,
    )


def _limits(config: KbsConfig) -> BodyLimits:
    return BodyLimits(
        max_bytes=config.http_server.payload_bytes,
        seconds=config.limits.request_timeout_seconds,
    )


async def open_resource_policies(storage: StorageProvider) -> PolicyStore:
    """Open the resource policies; the default one is written where there is none."""
    policies = PolicyStore(
        await storage.namespace("kbs"),
        entrypoints=(ALLOW_RULE,),
        builtins={RESOURCE_POLICY_ID: resource_policy("default")},
        known=[resource_policy(name) for name in RESOURCE_POLICIES],
        verdicts=await storage.namespace(VERDICT_NAMESPACE),
    )
    await policies.seed()
    return policies


def create_app(
    config: KbsConfig, *, put_in_force: str | None = None, workload_port: int | None = None
) -> Application:
    """Make the application; it opens storage and keys when its lifespan starts.

    Args:
        config: what to serve.
        put_in_force: name of a built-in resource policy that replaces the stored one at start.
        workload_port: port of the listener that serves registered workloads alone, if there is one.
    """
    return Application(config, put_in_force, workload_port)


async def _kept_key(store: KeyValueStore, name: str) -> bytes:
    raw = await store.get(name)
    if raw is None:
        await store.set(name, os.urandom(32), overwrite=False)
        raw = await store.get(name)
    if raw is None:
        raise ConfigError(f"the key {name} could not be kept")
    return base64.b64encode(raw)


async def _storage_problem(store: KeyValueStore) -> str | None:
    try:
        await store.get("metric-labels")
    except KeybrokerError:
        return "the storage does not answer"
    return None


async def _policy_problem(policies: PolicyStore) -> str | None:
    try:
        await policies.get(RESOURCE_POLICY_ID)
    except KeybrokerError:
        return "the resource policy cannot be used"
    return None


async def _clean_up(sessions: Sessions) -> None:
    while True:
        await anyio.sleep(CLEANUP_SECONDS)
        try:
            await sessions.forget_expired()
        except KeybrokerError as error:
            logger.warning("ended sessions could not be deleted: %s", error.diagnostics())
