"""``[[plugins]]``: what the broker serves to attested guests, picked by ``name``."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeAlias

import msgspec

from keybroker.config.section import Secret, Section


class KvStorageConfig(
    Section, kw_only=True, frozen=True, tag_field="storage_backend_type", tag="kvstorage"
):
    """Resources in the broker's own storage, namespace ``repository``."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("KvStorage",)
    default_variant: ClassVar[bool] = True


class AliyunConfig(
    Section, kw_only=True, frozen=True, tag_field="storage_backend_type", tag="Aliyun"
):
    """Resources in Alibaba Cloud's key management service."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("aliyun",)

    client_key: Secret
    kms_instance_id: str
    password: Secret
    cert_pem: str


class AwsConfig(Section, kw_only=True, frozen=True, tag_field="storage_backend_type", tag="Aws"):
    """Resources in AWS Secrets Manager."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("aws",)

    region: str | None = None
    endpoint_url: str | None = None


class GcpConfig(Section, kw_only=True, frozen=True, tag_field="storage_backend_type", tag="Gcp"):
    """Resources in Google Cloud Secret Manager."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("gcp",)

    project_id: str
    endpoint_url: str | None = None


class VaultConfig(
    Section, kw_only=True, frozen=True, tag_field="storage_backend_type", tag="Vault"
):
    """Resources in a HashiCorp Vault or OpenBao, key-value engine version 1."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("vault",)

    vault_url: str
    token: Secret
    mount_path: str = "secret"
    verify_ssl: bool = False
    ca_certs: tuple[str, ...] | None = None


ResourceBackendConfig: TypeAlias = (
    KvStorageConfig | AliyunConfig | AwsConfig | GcpConfig | VaultConfig
)


class ResourcePluginConfig(Section, kw_only=True, frozen=True, tag_field="name", tag="resource"):
    """Secret resources; the keys of the back end stand in the plugin's own table."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("ResourceStorage",)
    #: Trustee's documentation calls the key so in one place.
    key_aliases: ClassVar[Mapping[str, str]] = {"type": "storage_backend_type"}
    flattened: ClassVar[str | None] = "backend"

    backend: ResourceBackendConfig = KvStorageConfig()


class SamplePluginConfig(Section, kw_only=True, frozen=True, tag_field="name", tag="sample"):
    """A plugin that shows how one is made."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("Sample",)

    item: str


class SelfSignedNebulaCaConfig(Section, kw_only=True, frozen=True):
    """Arguments of ``nebula-cert ca``."""

    name: str | None = None
    argon_iterations: Annotated[int, msgspec.Meta(ge=0)] | None = None
    argon_memory: Annotated[int, msgspec.Meta(ge=0)] | None = None
    argon_parallelism: Annotated[int, msgspec.Meta(ge=0)] | None = None
    curve: str | None = None
    duration: str | None = None
    groups: str | None = None
    ips: str | None = None
    out_qr: str | None = None
    subnets: str | None = None


class NebulaCaPluginConfig(Section, kw_only=True, frozen=True, tag_field="name", tag="nebula-ca"):
    """Certificates for a Nebula overlay network."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("NebulaCaPlugin",)
    #: Trustee's documentation has the one spelling, its code the other.
    key_aliases: ClassVar[Mapping[str, str]] = {"ca_config": "self_signed_ca"}

    nebula_cert_bin_path: str | None = None
    work_dir: str = "/opt/confidential-containers/kbs/nebula-ca"
    self_signed_ca: SelfSignedNebulaCaConfig = SelfSignedNebulaCaConfig()


class Pkcs11PluginConfig(Section, kw_only=True, frozen=True, tag_field="name", tag="pkcs11"):
    """Keys in a hardware security module.

    Attributes:
        module: path of the PKCS#11 library.
        pin: the user's PIN.
        lookup_label: label of the key pair.
    """

    tag_aliases: ClassVar[tuple[str, ...]] = ("Pkcs11",)

    module: str
    slot_index: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    pin: Secret
    rsa_mechanism: str = "RsaPkcsOaep"
    lookup_label: str = ""


class ExternalBackendConfig(Section, kw_only=True, frozen=True):
    """A plugin in another process, at ``/kbs/v0/external/<name>/``."""

    #: Trustee's documentation shows it; the scheme of the endpoint decides.
    without_effect: ClassVar[tuple[str, ...]] = ("tls_mode",)

    name: str
    endpoint: str
    ca_cert_path: str | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint must start with http:// or https://")
        if self.endpoint.startswith("https://") and self.ca_cert_path is None:
            raise ValueError("an https:// endpoint needs ca_cert_path")


class ExternalPluginConfig(Section, kw_only=True, frozen=True, tag_field="name", tag="external"):
    """Plugins in other processes, spoken to by gRPC."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("ExternalPlugin",)

    backends: tuple[ExternalBackendConfig, ...]


class ProvisionerPluginConfig(
    Section, kw_only=True, frozen=True, tag_field="name", tag="provisioner"
):
    """Makes a random key for a machine and stores it as a resource.

    Attributes:
        key_length: size of the key in bytes.
    """

    tag_aliases: ClassVar[tuple[str, ...]] = ("Provisioner",)

    key_length: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32


PluginConfig: TypeAlias = (
    ResourcePluginConfig
    | SamplePluginConfig
    | NebulaCaPluginConfig
    | Pkcs11PluginConfig
    | ExternalPluginConfig
    | ProvisionerPluginConfig
)
