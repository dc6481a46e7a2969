"""``[http_server]``: where the broker listens, and how TLS is spoken there."""

import ipaddress
import os
from enum import StrEnum
from typing import Annotated

import msgspec

from keybroker.config.section import Section

DEFAULT_SOCKET = "127.0.0.1:8080"

#: Largest request body, in MiB; Trustee's default.
DEFAULT_PAYLOAD_REQUEST_SIZE = 2

#: More than this in memory at once for one request is a mistake in the file, not a wish.
_MAX_PAYLOAD_REQUEST_SIZE = 1024

#: More processes than this serve nobody better.
_MAX_WORKERS = 1024


class TlsProfile(StrEnum):
    """Mozilla's profiles, and ``custom``: nothing but the fields of the file."""

    OLD = "old"
    INTERMEDIATE = "intermediate"
    MODERN = "modern"
    CUSTOM = "custom"


class TlsVersion(StrEnum):
    """TLS protocol versions that can be configured; older ones are never spoken."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


def parse_socket(socket: str) -> tuple[str, int]:
    """Split ``address:port`` into its parts; an IPv6 address stands in brackets.

    Raises:
        ValueError: not an IP address and a port from 0 to 65535.
    """
    host, colon, port = socket.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"socket {socket!r} is not of the form ADDRESS:PORT")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"socket {socket!r} does not begin with an IP address") from None
    if bracketed != (address.version == 6):
        raise ValueError(f"socket {socket!r}: an IPv6 address, and no other, stands in brackets")
    return str(address), int(port)


class HttpServerConfig(Section, kw_only=True, frozen=True):
    """The HTTP listener.

    Attributes:
        sockets: ``ADDRESS:PORT``, each with an IP address.
        insecure_http: speak HTTP without TLS.
        private_key: PEM file of the TLS key.
        certificate: PEM file of the TLS certificate, with its chain.
        payload_request_size: largest request body in MiB.
        worker_count: number of worker processes; None: one a CPU.
        tls_profile: which versions, ciphers and groups are offered.
        tls_min_version: overrides the profile.
        tls_max_version: overrides the profile.
        tls_ciphers: OpenSSL names, separated by colons; TLS 1.2 and 1.3 names may be mixed.
        tls_groups: OpenSSL names of key exchange groups, separated by colons, best first.
    """

    sockets: tuple[str, ...] = (DEFAULT_SOCKET,)
    insecure_http: bool = False
    private_key: str | None = None
    certificate: str | None = None
    payload_request_size: Annotated[int, msgspec.Meta(ge=1, le=_MAX_PAYLOAD_REQUEST_SIZE)] = (
        DEFAULT_PAYLOAD_REQUEST_SIZE
    )
    worker_count: Annotated[int, msgspec.Meta(ge=1, le=_MAX_WORKERS)] | None = None
    tls_profile: TlsProfile = TlsProfile.INTERMEDIATE
    tls_min_version: TlsVersion | None = None
    tls_max_version: TlsVersion | None = None
    tls_ciphers: str | None = None
    tls_groups: str | None = None

    def __post_init__(self) -> None:
        if not self.sockets:
            raise ValueError("sockets must name at least one address to listen on")
        for socket in self.sockets:
            parse_socket(socket)
        if (
            self.tls_min_version is not None
            and self.tls_max_version is not None
            and self.tls_min_version > self.tls_max_version
        ):
            raise ValueError(
                f"tls_min_version {self.tls_min_version} is above"
                f" tls_max_version {self.tls_max_version}"
            )

    @property
    def payload_bytes(self) -> int:
        """Largest request body in bytes."""
        return self.payload_request_size * 1024 * 1024

    @property
    def workers(self) -> int:
        """Number of worker processes to run."""
        return self.worker_count or len(os.sched_getaffinity(0))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The sockets as address and port."""
        return [parse_socket(socket) for socket in self.sockets]

    @property
    def overridden_tls_keys(self) -> list[str]:
        """Keys that are set though the profile already says what they say."""
        if self.tls_profile is TlsProfile.CUSTOM:
            return []
        names = ("tls_min_version", "tls_max_version", "tls_ciphers", "tls_groups")
        return [name for name in names if getattr(self, name) is not None]
