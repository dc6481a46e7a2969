"""``verifier_config``: what the verifiers of single TEEs need to know."""

from typing import Annotated, ClassVar, TypeAlias

import msgspec

from keybroker.config.dcap import DcapVerifierConfig
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
        extra_trusted_roots: files (PEM or DER) with an ARK that is trusted besides AMD's, and if
            wanted its ASK and ASVK: for software TEEs and for processors newer than this release.
            Each is reported in the log at start. The common name of the ARK (``ARK-Milan``,
            ``ARK-Genoa``, ``ARK-Turin``) says for which processors it may vouch.
        kds_timeout_seconds: for one whole request to the key distribution service.
    """

    vcek_sources: tuple[VcekSourceConfig, ...] = (KdsSourceConfig(),)
    extra_trusted_roots: tuple[str, ...] = ()
    kds_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0


class SampleVerifierConfig(Section, kw_only=True, frozen=True):
    """Sample evidence, which proves nothing and is for trying things out.

    Attributes:
        enabled: whether ``sample`` and ``sampledevice`` evidence is taken at all. It is by default,
            as elsewhere: the default resource policy refuses what it attests.
    """

    enabled: bool = True


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
    sample_verifier: SampleVerifierConfig = SampleVerifierConfig()
    dcap_verifier: DcapVerifierConfig = DcapVerifierConfig()
    tpm_verifier: TpmVerifierConfig = TpmVerifierConfig()
    nvidia_verifier: NvidiaVerifierConfig = LocalNvidiaConfig()
    nvidia_dpu_verifier: NvidiaDpuVerifierConfig | None = None
