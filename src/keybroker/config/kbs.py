"""The whole file of a broker (``kbs-config.toml``)."""

import msgspec

from keybroker.config.admin import AdminConfig
from keybroker.config.attestation import (
    AttestationServiceConfig,
    AttestationTokenConfig,
    BuiltInAttestationConfig,
)
from keybroker.config.http_server import HttpServerConfig
from keybroker.config.key_transfer import KeyTransferConfig
from keybroker.config.plugins import PluginConfig
from keybroker.config.section import Section
from keybroker.config.service import (
    LimitsConfig,
    LogConfig,
    MetricsConfig,
    OpenApiConfig,
    ReleaseConfig,
    SessionConfig,
)
from keybroker.config.storage import EncryptionConfig, StorageBackendConfig, StorageType
from keybroker.config.workloads import WorkloadsConfig


class KbsConfig(Section, kw_only=True, frozen=True):
    """Everything a broker can be told.

    ``admin`` has no default: who administers a broker must be said, as Trustee demands too.

    Attributes:
        attestation_service: None: the table is absent; see :attr:`attestation`.
        session_storage_type: another back end than the broker's, for sessions alone.
        encryption: None: values are stored in clear.
        workloads: None: registered workloads are not served.
        key_transfer: None: nothing is served on ``/kbs/v1``.
    """

    http_server: HttpServerConfig = HttpServerConfig()
    admin: AdminConfig
    attestation_token: AttestationTokenConfig = AttestationTokenConfig()
    attestation_service: AttestationServiceConfig | None = None
    storage_backend: StorageBackendConfig = StorageBackendConfig()
    session_storage_type: StorageType | None = None
    plugins: tuple[PluginConfig, ...] = ()

    encryption: EncryptionConfig | None = None
    key_transfer: KeyTransferConfig | None = None
    workloads: WorkloadsConfig | None = None
    session: SessionConfig = SessionConfig()
    metrics: MetricsConfig = MetricsConfig()
    release: ReleaseConfig = ReleaseConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    openapi: OpenApiConfig = msgspec.field(default_factory=OpenApiConfig)

    @property
    def passport_mode(self) -> bool:
        """Whether this broker attests nobody and releases on other services' tokens alone.

        So it is where no attestation service is configured but roots or keys of token issuers
        are. Trustee tells the two apart by how its binary was built; the same files work here.
        """
        trusted = self.attestation_token.trusted_certs_paths
        return self.attestation_service is None and bool(
            trusted or self.attestation_token.trusted_jwk_sets
        )

    @property
    def attestation(self) -> AttestationServiceConfig | None:
        """The attestation service to use: the configured one, else the built-in; None: passport."""
        if self.attestation_service is not None:
            return self.attestation_service
        return None if self.passport_mode else BuiltInAttestationConfig()
