"""Finds the attester that ``--attester`` names."""

from keybroker.client.attesters import (
    Attester,
    ConfigfsTsmAttester,
    FileAttester,
    SampleAttester,
)
from keybroker.client.errors import InputError
from keybroker.model.errors import MalformedError
from keybroker.model.rcar import parse_tee
from keybroker.model.tee import Tee


def make_attester(name: str) -> Attester | None:
    """Make an attester.

    Args:
        name: ``auto``, ``tsm``, ``sample``, ``file:PATH`` or ``file:TEE:PATH``.

    Returns:
        The attester, or None for this machine's own.

    Raises:
        InputError: no such attester.
        AttesterError: it cannot be had here.
    """
    kind, _, argument = name.partition(":")
    match kind, argument:
        case "auto", "":
            return None
        case "tsm", "":
            return ConfigfsTsmAttester()
        case "sample", "":
            return SampleAttester()
        case "file", path if path:
            return _file_attester(path)
    raise InputError(
        f"there is no attester {name!r}: use auto, tsm, sample or file:PATH"
    )


def _file_attester(argument: str) -> FileAttester:
    name, colon, path = argument.partition(":")
    tee: Tee | None = None
    if colon:
        try:
            tee = parse_tee(name)
        except MalformedError:
            path = argument  # the colon is the path's own
    return FileAttester(path if colon else argument, tee)
