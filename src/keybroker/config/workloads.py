"""``[workloads]``: the registered-workload API (reference-kbs). Off where the table is absent."""

import re
from typing import Annotated

import msgspec

from keybroker.config.http_server import parse_socket
from keybroker.config.section import Section
from keybroker.config.verifiers import SnpVerifierConfig

#: Longest a session may last: three hours, as clients of the API know it.
MAX_SESSION_MINUTES = 180

_PREFIX = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")

#: Paths that other faces and pages have.
_TAKEN = ("kbs", "metrics", "healthz", "readyz", "openapi.json", "docs", ".well-known")


class WorkloadsConfig(Section, kw_only=True, frozen=True):
    """Registered workloads.

    Attributes:
        prefix: where the API is mounted on the broker's own listener: a client's server URL is
            that of the broker with this behind it.
        socket: ``ADDRESS:PORT`` of a listener that serves nothing else, at its root; its port must
            be its own. None: there is none.
        open_registration: whether anybody may register a workload, as in the original. Whoever
            reaches the broker can then replace any workload and its passphrase; listing and
            deleting need an administrator all the same.
        allow_debug: release to guests whose host may debug them, that is, read their memory.
        session_minutes: until a session ends, counted from its start.
        max_workloads: workloads that can be registered; each takes up to some KiB of storage.
        extra_trusted_sev_roots: files with an ARK in AMD's binary form that is trusted for SEV
            besides AMD's, for software TEEs. Each is reported in the log at start.
        snp_verifier: where certificates for SEV-SNP come from and which roots are trusted besides
            AMD's; None: as the built-in attestation service has it.
    """

    prefix: str = "/workload"
    socket: str | None = None
    open_registration: bool = False
    allow_debug: bool = False
    session_minutes: Annotated[int, msgspec.Meta(ge=1, le=MAX_SESSION_MINUTES)] = (
        MAX_SESSION_MINUTES
    )
    max_workloads: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    extra_trusted_sev_roots: tuple[str, ...] = ()
    snp_verifier: SnpVerifierConfig | None = None

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(
                f"prefix {self.prefix!r} must be a path such as /workload, without a slash at its"
                " end"
            )
        first = self.prefix.split("/")[1]
        if first in _TAKEN:
            raise ValueError(f"prefix {self.prefix!r}: the broker itself serves /{first}")
        if self.socket is not None:
            parse_socket(self.socket)
