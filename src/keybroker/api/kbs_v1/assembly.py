"""From the parts to the face of key transfer."""

from keybroker.api.kbs_v1.face import PREFIX, KeyTransferFace
from keybroker.api.parts import Parts
from keybroker.key_transfer.service import open_key_transfer


async def open_face(parts: Parts) -> None:
    """Make key transfer and serve it below :data:`PREFIX`, where its table is configured."""
    config = parts.config
    if config.key_transfer is None:
        return
    service = await open_key_transfer(
        config.key_transfer,
        parts.storage,
        parts.stack,
        attestation=parts.attestation,
        tokens=parts.tokens,
    )
    face = KeyTransferFace(
        service,
        parts.metrics,
        limits=parts.limits,
        max_attestations=config.limits.max_attestations_in_flight,
        pages=parts.pages,
    )
    parts.faces.append((PREFIX + "/", face))
    parts.documents[PREFIX] = "key-transfer"
    parts.jobs.append(service.clean_up)
