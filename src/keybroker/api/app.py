"""Assembly: from a configuration to a running application.

Everything is made here, once, and handed down; no room reaches for another by itself.
"""

import base64
import importlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from keybroker import __version__
from keybroker.api.kbs_v0.assembly import open_face as open_kbs_face
from keybroker.api.metrics import Metrics
from keybroker.api.pages import routes
from keybroker.api.parts import Job, Parts
from keybroker.attestation_service.service import AttestationService, open_attestation_service
from keybroker.config.attestation import BuiltInAttestationConfig
from keybroker.config.kbs import KbsConfig
from keybroker.kbs.admin import AdminAccess
from keybroker.kbs.sessions import SessionKeys, read_session_secret
from keybroker.model.errors import ConfigError, KeybrokerError
from keybroker.storage.interface import KeyValueStore, StorageProvider
from keybroker.storage.provider import open_configured_storage
from keybroker.tokens.verifier import TokenVerifier

logger = logging.getLogger(__name__)

#: Namespace of keys that the broker makes for itself (sealing, metric labels).
KEYS_NAMESPACE = "broker_keys"

#: Table of the configuration → module that serves it. Only what is configured is imported.
OPTIONAL_FACES = {
    "workloads": "keybroker.api.workload.assembly",
    "key_transfer": "keybroker.api.kbs_v1.assembly",
}


class Application:
    """The root: protocol faces by prefix, and the pages beside them.

    The faces are asked first and without a router between: they carry all the load.
    """

    def __init__(
        self, config: KbsConfig, put_in_force: str | None, own_ports: dict[str, int]
    ) -> None:
        self._config = config
        self._put_in_force = put_in_force
        self._own_ports = own_ports
        self._faces: list[tuple[str, ASGIApp]] = []
        self._listeners: dict[int, ASGIApp] = {}
        self._pages = Starlette(lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its face."""
        if scope["type"] == "http":
            if self._listeners:
                listener = self._listeners.get(scope["server"][1])
                if listener is not None:
                    await listener(scope, receive, send)
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
            parts = await self._start(pages, stack)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            for job in parts.jobs:
                tasks.start_soon(_again_and_again, job)
            yield
            tasks.cancel_scope.cancel()

    async def _start(self, pages: Starlette, stack: AsyncExitStack) -> Parts:
        config = self._config
        storage = open_configured_storage(config)
        stack.push_async_callback(storage.close)
        keys = await storage.namespace(KEYS_NAMESPACE)
        attestation = await self._attestation_service(storage, stack)
        tokens = await TokenVerifier.create(
            config.attestation_token,
            own_signer=attestation.signer if attestation is not None else None,
        )
        stack.push_async_callback(tokens.close)
        admin = await AdminAccess.create(config.admin)
        stack.push_async_callback(admin.close)
        parts = Parts(
            config=config,
            storage=storage,
            session_keys=_session_keys(config, keys),
            attestation=attestation,
            tokens=tokens,
            admin=admin,
            metrics=Metrics(
                version=__version__,
                resource_labels=config.metrics.resource_paths.value,
                label_key=await _kept_key(keys, "metric-labels"),
            ),
            pages=pages,
            stack=stack,
            own_ports=self._own_ports,
        )
        parts.readiness["storage"] = lambda: _storage_problem(keys)
        if attestation is not None:
            parts.readiness["attestation"] = attestation.readiness
        await open_kbs_face(parts, put_in_force=self._put_in_force)
        for table, module in OPTIONAL_FACES.items():
            if getattr(config, table) is not None:
                await importlib.import_module(module).open_face(parts)
        pages.router.routes.extend(
            routes(
                metrics=parts.metrics,
                jwks=attestation.jwks if attestation is not None else None,
                readiness=parts.readiness,
                documents=parts.documents if config.openapi.enabled else {},
                show_metrics=config.metrics.enabled,
            )
        )
        self._listeners = parts.listeners
        self._faces = parts.faces
        return parts

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


def create_app(
    config: KbsConfig,
    *,
    put_in_force: str | None = None,
    own_ports: dict[str, int] | None = None,
) -> Application:
    """Make the application; it opens storage and keys when its lifespan starts.

    Args:
        config: what to serve.
        put_in_force: name of a built-in resource policy that replaces the stored one at start.
        own_ports: ports that were bound for single faces, by the name of their table.
    """
    if put_in_force is not None:
        logger.warning("the resource policy will be the built-in %s", put_in_force)
    return Application(config, put_in_force, own_ports or {})


#: A job that failed is not started again before this.
RETRY_SECONDS = 5.0


async def _again_and_again(job: Job) -> None:
    """Run a job for good; what fails for a while, such as the storage, must not end it."""
    while True:
        try:
            await job()
            return
        except KeybrokerError as error:
            logger.warning("background work failed: %s", error.diagnostics())
        except Exception:
            logger.exception("background work failed")
        await anyio.sleep(RETRY_SECONDS)


def _session_keys(config: KbsConfig, keys: KeyValueStore) -> SessionKeys:
    key_file = config.session.key_file
    return SessionKeys(
        keys,
        read_session_secret(key_file) if key_file is not None else None,
        config.session.rotation_hours * 3600,
    )


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
