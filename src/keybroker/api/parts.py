"""What the assembly hands to a face, and what a face gives back.

A face lives in a folder of its own with a module ``assembly`` that has one function::

    async def open_face(parts: Parts) -> None

It makes its rooms from the parts and registers what is to be served. It is imported only where its
table stands in the configuration.
"""

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from keybroker.api.exchange import BodyLimits
from keybroker.api.metrics import Metrics
from keybroker.attestation_service.service import AttestationService
from keybroker.config.kbs import KbsConfig
from keybroker.kbs.admin import AdminAccess
from keybroker.kbs.sessions import SessionKeys
from keybroker.storage.interface import StorageProvider
from keybroker.tokens.verifier import TokenVerifier

#: Answers None when all is well, else what is wrong, in words that hold nothing secret.
ReadinessCheck = Callable[[], Awaitable[str | None]]

#: Runs in the background as long as the application does.
Job = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything of which there is one in an application.

    Attributes:
        config: the whole configuration.
        storage: hands out namespaces.
        session_keys: seal the cookies of every face.
        attestation: the built-in attestation service, or None in passport mode.
        tokens: decides which attestation tokens count.
        admin: decides who administrates.
        metrics: what counts.
        pages: serves what is not a face's: health, documents.
        stack: closes what is pushed onto it when the application ends.
        faces: by prefix, asked in this order; for faces to add to.
        listeners: by port, faces with a socket of their own; likewise.
        jobs: background work; likewise.
        readiness: named checks of ``/readyz``; likewise.
        documents: OpenAPI documents by the path below which they are served; likewise.
        own_ports: ports bound for faces, by the name of their table.
    """

    config: KbsConfig
    storage: StorageProvider
    session_keys: SessionKeys
    attestation: AttestationService | None
    tokens: TokenVerifier
    admin: AdminAccess
    metrics: Metrics
    pages: ASGIApp
    stack: AsyncExitStack
    faces: list[tuple[str, ASGIApp]] = field(default_factory=list)
    listeners: dict[int, ASGIApp] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    readiness: dict[str, ReadinessCheck] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    own_ports: dict[str, int] = field(default_factory=dict)

    @property
    def limits(self) -> BodyLimits:
        """How much, and how long, a request's body may take."""
        return BodyLimits(
            max_bytes=self.config.http_server.payload_bytes,
            seconds=self.config.limits.request_timeout_seconds,
        )

    @property
    def secure(self) -> bool:
        """Whether clients reach this process by TLS."""
        return not self.config.http_server.insecure_http
