"""Taking over what an original broker left on its disk: records of keys and transfer policies.

The original keeps one JSON file a record, named by its id, in ``keys`` and
``keys-transfer-policy`` below its home (``/opt/kbs``). The keys themselves stay where they are, in
Vault or on the KMIP server. Users are not taken over: their passwords are hashed with bcrypt, which
this broker does not verify; the administrator is made anew from the configuration.

Each file is taken over once, so that what was deleted here does not come back at the next start.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keybroker.key_transfer.material import parse_spec
from keybroker.key_transfer.policy_store import PolicyStore
from keybroker.key_transfer.records import NEVER, NIL_ID, KeyRecord, encode, parse_id
from keybroker.key_transfer.transfer_policy import parse_stored_policy
from keybroker.model.errors import ConfigError, MalformedError
from keybroker.model.strict_json import parse_struct
from keybroker.storage.interface import KeyValueStore

logger = logging.getLogger(__name__)

#: A record has a few hundred bytes.
MAX_RECORD_BYTES = 64 * 1024


class _OriginalKey(msgspec.Struct, frozen=True):
    """A key record as the original writes it."""

    id: str
    algorithm: str
    key_length: int = 0
    curve_type: str = ""
    kmip_key_id: str = ""
    transfer_policy_id: str = NIL_ID
    created_at: str = NEVER


@dataclass(frozen=True, slots=True)
class TakenOver:
    """How many records were taken over, and how many could not be."""

    keys: int = 0
    policies: int = 0
    refused: int = 0


async def take_over(
    home: str, *, records: KeyValueStore, policies: PolicyStore, taken: KeyValueStore
) -> TakenOver:
    """Take over what was not taken over before.

    Args:
        home: home folder of the original.
        records: where key records go.
        policies: where transfer policies go.
        taken: remembers what was taken over, by file.

    Raises:
        ConfigError: the folder cannot be read.
    """
    counts = {"keys": 0, "policies": 0, "refused": 0}
    for folder, kind in (("keys-transfer-policy", "policies"), ("keys", "keys")):
        for path in await asyncio.to_thread(_files, Path(home) / folder):
            mark = f"{kind}-{path.name.lower()}"
            if await taken.get(mark) is not None:
                continue
            try:
                raw = await asyncio.to_thread(_read, path)
                if kind == "policies":
                    policy = parse_stored_policy(msgspec.json.decode(raw))
                    await policies.add(policy, overwrite=False)
                else:
                    record = parse_original_key(raw)
                    await records.set(record.id, encode(record), overwrite=False)
            except (MalformedError, msgspec.DecodeError) as error:
                counts["refused"] += 1
                logger.error("%s is not taken over: %s", path, error)
                continue
            await taken.set(mark, b"")
            counts[kind] += 1
    result = TakenOver(**counts)
    if result != TakenOver():
        logger.info(
            "taken over from %s: %d keys, %d transfer policies; %d refused",
            home,
            result.keys,
            result.policies,
            result.refused,
        )
    return result


def parse_original_key(raw: bytes) -> KeyRecord:
    """Read a key record of the original.

    Raises:
        MalformedError: it is not one.
    """
    key = parse_struct(raw, _OriginalKey)
    spec = parse_spec(key.algorithm, key.key_length or None, key.curve_type or None)
    return KeyRecord(
        id=parse_id(key.id),
        algorithm=spec.algorithm,
        key_length=spec.length,
        curve_type=spec.curve,
        kmip_key_id=key.kmip_key_id or None,
        transfer_policy_id=parse_id(key.transfer_policy_id),
        created_at=key.created_at,
    )


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"key_transfer.import_from: {folder}: {error.strerror}") from None
    return [path for path in found if _is_record(path)]


def _is_record(path: Path) -> bool:
    try:
        parse_id(path.name)
    except MalformedError:
        return False
    return path.is_file()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"key_transfer.import_from: {path}: {error.strerror}") from None
    if len(raw) > MAX_RECORD_BYTES:
        raise MalformedError("too large for a record")
    return raw
