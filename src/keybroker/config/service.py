"""Tables that are keybroker's own: sessions, metrics, release, limits, log, API document."""

from enum import StrEnum
from typing import Annotated

import msgspec

from keybroker.config.section import Section

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class SessionConfig(Section, kw_only=True, frozen=True):
    """``[session]``: the key that seals session cookies.

    Attributes:
        key_file: file of the key (32 bytes in base64) that all replicas share; None: the key is
            made and kept in the storage.
        rotation_hours: hours after which a stored key is followed by a new one; cookies sealed
            with the one before stay valid until they expire.
    """

    key_file: str | None = None
    rotation_hours: Annotated[int, msgspec.Meta(ge=1, le=8784)] = 24


class ResourcePaths(StrEnum):
    """How a resource path shows in a metric's label."""

    HASHED = "hashed"
    PLAIN = "plain"
    OFF = "off"


class MetricsConfig(Section, kw_only=True, frozen=True):
    """``[metrics]``: what ``/metrics`` tells.

    Attributes:
        enabled: serve ``/metrics``.
        resource_paths: which secrets are asked for can itself be a secret, hence hashed.
    """

    enabled: bool = True
    resource_paths: ResourcePaths = ResourcePaths.HASHED


class ReleaseConfig(Section, kw_only=True, frozen=True):
    """``[release]``: how secrets are encrypted to a guest.

    Attributes:
        allow_rsa1_5: take guests that ask for ``RSA1_5``, whose padding is known to be weak.
    """

    allow_rsa1_5: bool = False


class LimitsConfig(Section, kw_only=True, frozen=True):
    """``[limits]``: what one client can take from the others.

    Attributes:
        request_timeout_seconds: until a request must be answered; its body must arrive in time.
        keep_alive_seconds: until an idle connection is closed.
        max_connections: connections held open by one worker.
        max_attestations_in_flight: evidence verified at the same time by one worker; more is 429.
    """

    request_timeout_seconds: Seconds = 60.0
    keep_alive_seconds: Seconds = 75.0
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 4096
    max_attestations_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256


class LogLevel(StrEnum):
    """Least severity that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Form of a line: ``auto`` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogConfig(Section, kw_only=True, frozen=True):
    """``[log]``: what is written to standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


class OpenApiConfig(Section, kw_only=True, frozen=True):
    """``[openapi]``: the API document and the page that shows it.

    Attributes:
        enabled: serve both.
    """

    enabled: bool = True
