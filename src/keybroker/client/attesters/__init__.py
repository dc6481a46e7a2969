"""Where evidence comes from: one module a source, one interface for all."""

from keybroker.client.attesters.configfs_tsm import ConfigfsTsmAttester
from keybroker.client.attesters.detect import detect, detect_devices
from keybroker.client.attesters.file import FileAttester
from keybroker.client.attesters.interface import Attester
from keybroker.client.attesters.sample import SampleAttester, SampleDeviceAttester
from keybroker.client.attesters.softtee import SoftTeeAttester

__all__ = [
    "Attester",
    "ConfigfsTsmAttester",
    "FileAttester",
    "SampleAttester",
    "SampleDeviceAttester",
    "SoftTeeAttester",
    "detect",
    "detect_devices",
]
