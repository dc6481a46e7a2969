"""``verifier_config``: what the verifiers of single TEEs need to know."""

from enum import StrEnum
from typing import Annotated, ClassVar, TypeAlias

import msgspec

from keybroker.config.section import Section

DEFAULT_KDS_URL = "https://kdsintf.amd.com"
DEFAULT_KDS_STORE = "/opt/confidential-containers/attestation-service/kds-store"


class KdsSourceConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="KDS"):
    """AMD's Key Distribution Service, or a proxy of it."""

    base_url: str = DEFAULT_KDS_URL


class OfflineStoreSourceConfig(
    Section, kw_only=True, frozen=True, tag_field="type", tag="OfflineStore"
):
    """A folder of certificates in Trustee's layout."""

    path: str = DEFAULT_KDS_STORE


VcekSourceConfig: TypeAlias = KdsSourceConfig | OfflineStoreSourceConfig


class SnpVerifierConfig(Section, kw_only=True, frozen=True):
    """AMD SEV-SNP.

    Attributes:
        vcek_sources: where VCEKs are looked for, in this order.
        extra_trusted_roots: PEM or DER files of ARKs that are trusted beside AMD's own.
    """

    vcek_sources: tuple[VcekSourceConfig, ...] = (KdsSourceConfig(),)
    extra_trusted_roots: tuple[str, ...] = ()


class TcbUpdateType(StrEnum):
    """Which of Intel's TCB evaluations counts: the newest, or the one in force for longer."""

    EARLY = "early"
    STANDARD = "standard"


class DcapVerifierConfig(Section, kw_only=True, frozen=True):
    """Intel TDX and SGX.

    Attributes:
        collateral_service: Intel PCS or a PCCS; or a ``file://`` path.
        use_secure_cert: False: do not verify the service's TLS certificate.
    """

    collateral_service: str = "https://api.trustedservices.intel.com/sgx/certification/v4/"
    use_secure_cert: bool | None = None
    tcb_update_type: TcbUpdateType = TcbUpdateType.EARLY


class TpmVerifierConfig(Section, kw_only=True, frozen=True):
    """TPM 2.0 quotes.

    Attributes:
        trusted_ak_keys_dir: folder of the public attestation keys that are trusted.
    """

    trusted_ak_keys_dir: str = "/etc/tpm/trusted_ak_keys"
    max_trusted_ak_keys: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100


class LocalNvidiaConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="Local"):
    """NVIDIA evidence is verified in this process."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("local",)
    default_variant: ClassVar[bool] = True


class RemoteNvidiaConfig(Section, kw_only=True, frozen=True, tag_field="type", tag="Remote"):
    """NVIDIA's own service verifies."""

    tag_aliases: ClassVar[tuple[str, ...]] = ("remote",)

    verifier_url: str = "https://nras.attestation.nvidia.com/v4/attest"


NvidiaVerifierConfig: TypeAlias = LocalNvidiaConfig | RemoteNvidiaConfig


class NvidiaDpuVerifierConfig(Section, kw_only=True, frozen=True):
    """NVIDIA DPUs.

    Attributes:
        root_ca_cert_path: PEM file of the manufacturer's root.
    """

    root_ca_cert_path: str
    max_cert_age_secs: Annotated[int, msgspec.Meta(ge=1)] = 3600


class VerifierConfig(Section, kw_only=True, frozen=True):
    """One table a verifier; an absent table means its defaults."""

    snp_verifier: SnpVerifierConfig = SnpVerifierConfig()
    dcap_verifier: DcapVerifierConfig = DcapVerifierConfig()
    tpm_verifier: TpmVerifierConfig = TpmVerifierConfig()
    nvidia_verifier: NvidiaVerifierConfig = LocalNvidiaConfig()
    nvidia_dpu_verifier: NvidiaDpuVerifierConfig | None = None
