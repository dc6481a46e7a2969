"""Agreeing on the hash that binds the runtime data, before there is evidence."""

from collections.abc import Mapping
from typing import Any

from keybroker.attestation_service.request import DEFAULT_HASH_ALGORITHM
from keybroker.model.errors import MalformedError
from keybroker.model.hashes import HashAlgorithm
from keybroker.model.tee import Tee

#: Members of ``extra-params``: what the guest can, and what the broker chose (kbs_protocol).
SUPPORTED = "supported-hash-algorithms"
SELECTED = "selected-hash-algorithm"

#: TEEs whose evidence binds a digest of one length only.
_NEEDED = {Tee.SE: HashAlgorithm.SHA512}

#: What is chosen for a guest that cannot do the usual one.
_PREFERENCE = (HashAlgorithm.SHA384, HashAlgorithm.SHA512, HashAlgorithm.SHA256, HashAlgorithm.SM3)


def agree_on_hash(tee: Tee, extra_params: Any) -> tuple[HashAlgorithm, Any]:
    """Choose the hash for the report data.

    Args:
        tee: kind of the guest.
        extra_params: of its Request: usually ``{"supported-hash-algorithms": […]}``, or "".

    Returns:
        The algorithm, and what the Challenge's ``extra-params`` must say: the algorithm where it
        is not the one that guests take by default, else "".

    Raises:
        MalformedError: the guest supports none that will do, or its list is not one.
    """
    needed = _NEEDED.get(tee)
    if not isinstance(extra_params, Mapping) or SUPPORTED not in extra_params:
        return needed or DEFAULT_HASH_ALGORITHM, ""
    offered = extra_params[SUPPORTED]
    if not isinstance(offered, list):
        raise MalformedError(f"{SUPPORTED} must be a list")
    supported = {_parse(name) for name in offered if isinstance(name, str)}
    for algorithm in (needed,) if needed is not None else _PREFERENCE:
        if algorithm in supported:
            usual = needed is None and algorithm is DEFAULT_HASH_ALGORITHM
            return algorithm, "" if usual else {SELECTED: algorithm.value}
    wanted = needed.value if needed is not None else "one that the broker knows"
    raise MalformedError(f"{SUPPORTED} must hold {wanted} for {tee.value}")


def _parse(name: str) -> HashAlgorithm | None:
    try:
        return HashAlgorithm.parse(name)
    except ValueError:
        return None
