"""The kinds of trusted execution environment, by the names that travel on the wire."""

from enum import StrEnum


class Tee(StrEnum):
    """A TEE or device kind, spelled as ``tee`` in a KBS ``Request`` (kbs-types 0.18)."""

    AZ_SNP_VTPM = "az-snp-vtpm"
    AZ_TDX_VTPM = "az-tdx-vtpm"
    CCA = "cca"
    CSV = "csv"
    HYGON_DCU = "hygondcu"
    NVIDIA = "nvidia"
    NVIDIA_DPU = "nvidia-dpu"
    SE = "se"
    SGX = "sgx"
    SNP = "snp"
    TDX = "tdx"
    TPM = "tpm"
    SAMPLE = "sample"
    SAMPLE_DEVICE = "sampledevice"


class TeeClass(StrEnum):
    """The class of a device: selects the policy (``default_<class>``), names the submodule."""

    CPU = "cpu"
    GPU = "gpu"
    SWITCH = "switch"
    PPCIE = "ppcie"
    DCU = "dcu"
    DPU = "dpu"
