"""The attestation policies that ship with the broker, one for each class of device."""

from functools import cache
from importlib import resources

from keybroker.model.tee import TeeClass


@cache
def builtin_policies() -> dict[str, str]:
    """Return their texts by id: ``default_cpu``, ``default_gpu``, …"""
    folder = resources.files(__name__)
    return {
        f"default_{tee_class.value}": folder.joinpath(f"default_{tee_class.value}.rego").read_text(
            "utf-8"
        )
        for tee_class in TeeClass
    }
