"""Finds the attesters of this machine."""

import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from keybroker.client.attesters.configfs_tsm import (
    TSM_REPORT_ROOT,
    ConfigfsTsmAttester,
    EntryMaker,
    report_entry,
)
from keybroker.client.attesters.interface import Attester
from keybroker.client.attesters.sample import SampleAttester, SampleDeviceAttester
from keybroker.client.errors import AttesterError

logger = logging.getLogger(__name__)

#: Devices that only an SNP or TDX guest has.
_TEE_DEVICES = ("dev/sev-guest", "dev/tdx_guest")

#: Its presence adds the sample device, as in the guest components.
_SAMPLE_DEVICE_VARIABLE = "ENABLE_SAMPLE_DEVICE"


def detect(root: Path = Path("/"), *, entry: EntryMaker = report_entry) -> Attester:
    """Return the attester of this machine: TDX or SNP through configfs, else the sample one.

    A machine that has a TEE which cannot be used is an error rather than a sample: a guest must
    not lose its identity without a word.

    Args:
        root: of the file system.
        entry: how a TSM report directory comes and goes.

    Raises:
        AttesterError: there is a TEE, and it cannot be used.
    """
    report_root = root / TSM_REPORT_ROOT.relative_to("/")
    if report_root.is_dir():
        try:
            return ConfigfsTsmAttester(report_root, entry=entry)
        except AttesterError as error:
            if not _is_without_provider(error):
                raise
    for device in _TEE_DEVICES:
        if (root / device).exists():
            raise AttesterError(
                f"/{device} exists, so this is a confidential guest, but {TSM_REPORT_ROOT} does"
                " not: it needs Linux 6.7 with CONFIG_TSM_REPORTS and configfs mounted"
            )
    logger.warning(
        "no TEE found on this machine: attesting as a sample, which proves nothing and which"
        " brokers refuse unless told otherwise"
    )
    return SampleAttester()


def _is_without_provider(error: AttesterError) -> bool:
    # The kernel's answer to mkdir where the TSM module is there and no TEE registered with it.
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENXIO


def detect_devices(environment: Mapping[str, str] = os.environ) -> list[Attester]:
    """Return the attesters of further devices of this machine."""
    return [SampleDeviceAttester()] if _SAMPLE_DEVICE_VARIABLE in environment else []
