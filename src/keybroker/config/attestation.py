"""``[attestation_service]`` and ``[attestation_token]``: who appraises, and whose token counts."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, ClassVar, TypeAlias

import msgspec

from keybroker.config.section import Secret, Section
from keybroker.config.storage import StorageBackendConfig, StorageType
from keybroker.config.verifiers import VerifierConfig

#: Minutes between ``auth`` and ``attest``, and that a session then lasts.
DEFAULT_TIMEOUT = 5
DEFAULT_TOKEN_DURATION = 5
DEFAULT_ISSUER_NAME = "CoCo-Attestation-Service"
DEFAULT_DEVELOPER_NAME = "https://confidentialcontainers.org"
DEFAULT_PROFILE_NAME = "tag:github.com,2024:confidential-containers/Trustee"

#: A year of minutes; times beyond it are a slip of the pen and overflow some clients' clocks.
_MAX_MINUTES = 366 * 24 * 60

Minutes = Annotated[int, msgspec.Meta(ge=1, le=_MAX_MINUTES)]


class AttestationTokenConfig(Section, kw_only=True, frozen=True):
    """Whose attestation tokens are believed.

    Attributes:
        trusted_jwk_sets: JWKS or OpenID issuers, ``file://`` or ``https://``.
        trusted_certs_paths: PEM files of roots that a token's ``x5c`` chain must end in.
        extra_teekey_paths: JSON pointers to the TEE's key in the claims, beside the known ones.
        insecure_header_jwk: believe any key that stands in a token's own header. For tests.
    """

    trusted_jwk_sets: tuple[str, ...] = ()
    trusted_certs_paths: tuple[str, ...] = ()
    extra_teekey_paths: tuple[str, ...] = ()
    insecure_header_jwk: bool = False


class SignerConfig(Section, kw_only=True, frozen=True):
    """The key that signs attestation tokens.

    Attributes:
        key_path: PEM private key, EC or RSA.
        cert_url: where its certificate chain is fetched from.
        cert_path: PEM file of its certificate chain; goes into the token as ``x5c``.
    """

    key_path: str
    cert_url: str | None = None
    cert_path: str | None = None


class EarTokenConfig(Section, kw_only=True, frozen=True):
    """What an attestation token says about itself.

    Attributes:
        duration_min: minutes until the token expires.
        verbose_token: put raw evidence of additional devices into the token too.
    """

    #: Settings of the token kinds and policy folders of older releases.
    without_effect: ClassVar[tuple[str, ...]] = ("type", "policy_dir")

    duration_min: Minutes = DEFAULT_TOKEN_DURATION
    issuer_name: str = DEFAULT_ISSUER_NAME
    developer_name: str = DEFAULT_DEVELOPER_NAME
    build_name: str = msgspec.field(default_factory=lambda: f"keybroker {version('keybroker')}")
    profile_name: str = DEFAULT_PROFILE_NAME
    signer: SignerConfig | None = None
    verbose_token: bool = True


class SwidExtractorConfig(Section, kw_only=True, frozen=True):
    """Reference values from SWID tags; has no settings."""


class ExtractorsConfig(Section, kw_only=True, frozen=True):
    """Settings of the extractors of reference values."""

    swid_extractor: SwidExtractorConfig | None = None


class BuiltInRvpsConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="BuiltIn"):
    """Reference values are kept by this process.

    Attributes:
        storage_type: another back end than the attestation service's, for these values alone.
    """

    default_variant: ClassVar[bool] = True

    extractors: ExtractorsConfig | None = None
    storage_type: StorageType | None = None


class GrpcRemoteRvpsConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="GrpcRemote"):
    """Reference values are kept by another process."""

    address: str = "127.0.0.1:50003"


RvpsConfig: TypeAlias = BuiltInRvpsConfig | GrpcRemoteRvpsConfig


class BuiltInAttestationConfig(
    Section, kw_only=True, frozen=True, tag_field="type", tag="coco_as_builtin"
):
    """The attestation service in this process.

    Attributes:
        timeout: minutes between ``auth`` and ``attest``.
        storage_type: another back end than the broker's, for policies and reference values.
    """

    tag_aliases: ClassVar[tuple[str, ...]] = ("CoCoASBuiltIn",)

    timeout: Minutes = DEFAULT_TIMEOUT
    rvps_config: RvpsConfig = BuiltInRvpsConfig()
    attestation_token_broker: EarTokenConfig = msgspec.field(default_factory=EarTokenConfig)
    verifier_config: VerifierConfig = msgspec.field(default_factory=VerifierConfig)
    storage_type: StorageType | None = None


class GrpcAttestationConfig(
    Section, kw_only=True, frozen=True, tag_field="type", tag="coco_as_grpc"
):
    """An attestation service elsewhere, spoken to by gRPC.

    Attributes:
        pool_size: most connections held open.
    """

    tag_aliases: ClassVar[tuple[str, ...]] = ("CoCoASGrpc",)

    timeout: Minutes = DEFAULT_TIMEOUT
    as_addr: str = "http://127.0.0.1:50004"
    pool_size: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 100


class IntelTrustAuthorityConfig(
    Section, kw_only=True, frozen=True, tag_field="type", tag="intel_ta"
):
    """Intel Trust Authority as the attestation service.

    Attributes:
        certs_file: JWKS that its tokens are verified with: ``https://``, ``file://`` or a path.
        policy_ids: policies of its portal that must match.
        allow_unmatched_policy: go on where none of them matches.
    """

    tag_aliases: ClassVar[tuple[str, ...]] = ("IntelTA",)

    timeout: Minutes = DEFAULT_TIMEOUT
    base_url: str
    api_key: Secret
    certs_file: str
    policy_ids: tuple[str, ...] = ()
    allow_unmatched_policy: bool = False


AttestationServiceConfig: TypeAlias = (
    BuiltInAttestationConfig | GrpcAttestationConfig | IntelTrustAuthorityConfig
)


class AttestationServiceFileConfig(Section, kw_only=True, frozen=True):
    """A whole file of the attestation service on its own (``as-config.json``)."""

    #: Keys of older releases that Trustee's own files still carry.
    without_effect: ClassVar[tuple[str, ...]] = ("work_dir", "policy_engine")

    rvps_config: RvpsConfig = BuiltInRvpsConfig()
    attestation_token_broker: EarTokenConfig = msgspec.field(default_factory=EarTokenConfig)
    verifier_config: VerifierConfig = msgspec.field(default_factory=VerifierConfig)
    storage_backend: StorageBackendConfig = StorageBackendConfig()


class RvpsFileConfig(Section, kw_only=True, frozen=True):
    """A whole file of the reference value service on its own (``rvps.json``)."""

    key_aliases: ClassVar[Mapping[str, str]] = {"storage_backend": "storage"}

    storage: StorageBackendConfig = StorageBackendConfig()
    extractors: ExtractorsConfig | None = None
