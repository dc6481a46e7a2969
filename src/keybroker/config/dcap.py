"""``verifier_config.dcap_verifier``: where collateral for TDX and SGX comes from."""

from enum import StrEnum
from typing import Annotated

import msgspec

from keybroker.config.section import Section

#: Intel's Provisioning Certification Service.
INTEL_PCS_URL = "https://api.trustedservices.intel.com/sgx/certification/v4/"

#: Where Intel's own libraries look for their settings.
DEFAULT_QCNL_CONF = "/etc/sgx_default_qcnl.conf"


class TcbUpdateType(StrEnum):
    """Which of Intel's TCB evaluations counts: the newest, or the one in force for longer."""

    EARLY = "early"
    STANDARD = "standard"


class DcapVerifierConfig(Section, kw_only=True, frozen=True):
    """Intel TDX and SGX.

    What is not given here is taken from ``qcnl_conf`` where that file exists, else a default.

    Attributes:
        collateral_service: Intel PCS or a PCCS; or ``file://`` and the path of a file by Intel's
            PCS Client Tool, or of a folder of collateral. Default: Intel PCS.
        use_secure_cert: false: do not verify the service's TLS certificate.
        tcb_update_type: default ``early``.
        qcnl_conf: Intel's ``sgx_default_qcnl.conf``; "" to ignore it.
        extra_trusted_roots: files (PEM or DER) with a root that is trusted beside Intel's; for
            software TEEs. Each is reported in the log at start.
        timeout_seconds: for the collateral of one platform, all its parts.
    """

    collateral_service: str | None = None
    use_secure_cert: bool | None = None
    tcb_update_type: TcbUpdateType | None = None
    qcnl_conf: str = DEFAULT_QCNL_CONF
    extra_trusted_roots: tuple[str, ...] = ()
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=120)] = 5.0
