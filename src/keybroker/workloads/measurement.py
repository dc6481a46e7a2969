"""Launch digests computed from what a guest is launched with.

The computation is that of ``sev-snp-measure``, kept by the authors of the SEV tools, which is
installed as the extra ``keybroker[measure]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from keybroker.model.errors import ConfigError

#: More virtual processors than any SEV platform runs.
MAX_VCPUS = 4096

#: SNP is active and nothing else, which is what hypervisors set unless they are told more.
DEFAULT_GUEST_FEATURES = 0x1


class LaunchMode(StrEnum):
    """How a guest is protected."""

    SEV = "sev"
    SEV_ES = "sev-es"
    SNP = "snp"


class Hypervisor(StrEnum):
    """Hypervisors, which differ in the state that processors start in."""

    QEMU = "qemu"
    EC2 = "ec2"
    GCE = "gce"


@dataclass(frozen=True, slots=True)
class Launch:
    """What a guest is launched with.

    Attributes:
        firmware: an OVMF image; with a kernel, one of the build that measures kernels.
        kernel: for direct boot, measured; without it firmware alone is.
        vcpus: matters for SEV-ES and SNP, which measure the state of each.
        vcpu_type: model as QEMU names it, such as ``EPYC-v4``; needed for the same.
        guest_features: SNP: the features that are active in the guest.
    """

    mode: LaunchMode
    firmware: Path
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    vcpus: int = 1
    vcpu_type: str = "EPYC-v4"
    hypervisor: Hypervisor = Hypervisor.QEMU
    guest_features: int = DEFAULT_GUEST_FEATURES


def vcpu_types() -> Sequence[str]:
    """Return the known models of virtual processors.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from sevsnpmeasure.vcpu_types import CPU_SIGS
    except ImportError:
        raise _not_installed() from None
    return sorted(CPU_SIGS)


def launch_digest(launch: Launch) -> bytes:
    """Compute the digest that a platform measures: 48 bytes for SNP, else 32.

    Raises:
        ConfigError: a file cannot be read or is no firmware, the firmware does not measure kernels
            though there is one, or the extra is not installed.
    """
    try:
        from sevsnpmeasure.guest import calc_launch_digest
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
        from sevsnpmeasure.vmm_types import VMMType
    except ImportError:
        raise _not_installed() from None
    if not 1 <= launch.vcpus <= MAX_VCPUS:
        raise ConfigError(f"a guest has 1 to {MAX_VCPUS} virtual processors")
    signature = CPU_SIGS.get(launch.vcpu_type)
    if signature is None:
        raise ConfigError(
            f"unknown vCPU type {launch.vcpu_type!r}; known are {', '.join(sorted(CPU_SIGS))}"
        )
    if launch.kernel is None and (launch.initrd is not None or launch.append):
        raise ConfigError("an initrd and a command line are measured only with a kernel")
    mode = {
        LaunchMode.SEV: SevMode.SEV,
        LaunchMode.SEV_ES: SevMode.SEV_ES,
        LaunchMode.SNP: SevMode.SEV_SNP,
    }[launch.mode]
    hypervisor = {
        Hypervisor.QEMU: VMMType.QEMU,
        Hypervisor.EC2: VMMType.ec2,
        Hypervisor.GCE: VMMType.gce,
    }[launch.hypervisor]
    try:
        digest: bytes = calc_launch_digest(
            mode,
            launch.vcpus,
            signature,
            str(launch.firmware),
            None if launch.kernel is None else str(launch.kernel),
            None if launch.initrd is None else str(launch.initrd),
            launch.append,
            launch.guest_features,
            vmm_type=hypervisor,
        )
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except Exception as error:
        # it reads the firmware with little care: whatever it raises is about these files
        raise ConfigError(f"the launch cannot be measured: {error}") from None
    return digest


def _not_installed() -> ConfigError:
    return ConfigError("launch digests need the extra: pip install 'keybroker[measure]'")
