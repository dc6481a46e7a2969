"""What is to be verified, and what it must be bound to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keybroker.model.hashes import HashAlgorithm
from keybroker.model.rcar import InitData, runtime_data_bytes
from keybroker.model.tee import Tee

#: The hash that guests take for the report data when nothing else was agreed (kbs_protocol).
DEFAULT_HASH_ALGORITHM = HashAlgorithm.SHA384


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """Evidence of one TEE or device, and what it must bind.

    Attributes:
        tee: kind of the evidence.
        evidence: as the guest sent it, a parsed JSON value.
        runtime_data: an object, whose canonical JSON is hashed; or the expected bytes themselves;
            or None where nothing is compared.
        hash_algorithm: hashes a runtime data object.
        init_data: the document, whose own algorithm hashes it; or the expected digest; or None
            where nothing is compared.
    """

    tee: Tee
    evidence: Any
    runtime_data: Mapping[str, Any] | bytes | None = None
    hash_algorithm: HashAlgorithm = DEFAULT_HASH_ALGORITHM
    init_data: InitData | bytes | None = None


@dataclass(frozen=True, slots=True)
class BoundData:
    """Runtime data or init-data, made ready.

    Attributes:
        digest: what the evidence must hold; None: nothing is compared.
        claims: what goes into the appraisal once the evidence holds it.
    """

    digest: bytes | None = None
    claims: Any = None


def bind_runtime_data(request: VerificationRequest) -> BoundData:
    """Hash the runtime data of a request.

    Raises:
        MalformedError: the object has no canonical JSON.
    """
    data = request.runtime_data
    if data is None:
        return BoundData()
    if isinstance(data, bytes):
        return BoundData(digest=data)
    structured = dict(data)
    digest = HashAlgorithm(request.hash_algorithm).digest(runtime_data_bytes(structured))
    return BoundData(digest, structured)
