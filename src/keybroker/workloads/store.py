"""Where registered workloads are kept.

A registration is three records: measurement, configuration and secret. They are kept as one value
under one key, so that every back end, whose single writes are atomic and durable, keeps them as a
whole: a crash at any instant leaves the old three or the new three, and a reader never sees a
mixture. Each registration carries a revision of its own, by which a session knows whether the
workload is still the one that it was started for.

The value holds a passphrase and is envelope-encrypted before any storage sees it.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from keybroker.config.kbs import KbsConfig
from keybroker.config.storage import StorageType
from keybroker.model.errors import ConfigError, MalformedError, StorageError, TooManyRequestsError
from keybroker.storage.encryption import EncryptedStore, load_keyring
from keybroker.storage.interface import ComparingStore, KeyValueStore, StorageProvider
from keybroker.workloads.registration import (
    TEE_BY_MEASUREMENT_BYTES,
    Workload,
    parse_tee_config,
)

#: Namespace of the registrations.
NAMESPACE = "workload"

#: A revision tells one registration of a workload from another; 16 random bytes.
REVISION_BYTES = 16

#: A workload is stored under so many bytes of its id's SHA-256: an id may hold more characters
#: than a storage key, and the session cookie, which names the workload, must stay short.
KEY_BYTES = 16

_FORMAT = 1


class _Measurement(msgspec.Struct, frozen=True):
    launch_measurement: bytes


class _Config(msgspec.Struct, frozen=True):
    tee_config: str


class _Secret(msgspec.Struct, frozen=True):
    passphrase: bytes

    def __repr__(self) -> str:
        return "_Secret(…)"


class _Record(msgspec.Struct, frozen=True):
    """The stored value: three records and what holds them together."""

    format: int
    workload_id: str
    revision: bytes
    registered_at: int
    measurement: _Measurement
    config: _Config
    secret: _Secret


@dataclass(frozen=True, slots=True)
class RegisteredWorkload:
    """A workload as it is registered at a moment.

    Attributes:
        revision: changes whenever the workload is registered anew.
        registered_at: Unix time in seconds.
    """

    workload: Workload
    revision: bytes
    registered_at: int


def workload_key(workload_id: str) -> bytes:
    """Return the name of a workload in storage and in sessions: 16 bytes."""
    return hashlib.sha256(workload_id.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


class WorkloadStore:
    """The registered workloads.

    Args:
        records: the namespace :data:`NAMESPACE`, encrypted.
        max_workloads: how many there may be.
    """

    def __init__(self, records: KeyValueStore, *, max_workloads: int) -> None:
        self._records = records
        self._max_workloads = max_workloads

    async def register(self, workload: Workload) -> None:
        """Keep a workload; one of the same id is replaced as a whole.

        Raises:
            MalformedError: another workload has a key that starts alike.
            TooManyRequestsError: there are as many as may be.
        """
        key = workload_key(workload.workload_id)
        stored = await self._records.get(key.hex())
        if stored is None:
            if len(await self._records.keys()) >= self._max_workloads:
                raise TooManyRequestsError(
                    f"{self._max_workloads} workloads are registered",
                    detail="as many workloads as may be are registered",
                )
        elif _decode(stored).workload_id != workload.workload_id:
            raise MalformedError("choose another workload_id")
        record = _Record(
            format=_FORMAT,
            workload_id=workload.workload_id,
            revision=os.urandom(REVISION_BYTES),
            registered_at=int(time.time()),
            measurement=_Measurement(workload.measurement),
            config=_Config(workload.tee_config),
            secret=_Secret(workload.passphrase),
        )
        await self._records.set(key.hex(), msgspec.msgpack.encode(record))

    async def find(self, key: bytes) -> RegisteredWorkload | None:
        """Return the workload of a :func:`workload_key`, or None."""
        stored = await self._records.get(key.hex())
        return None if stored is None else _registered(_decode(stored))

    async def get(self, workload_id: str) -> RegisteredWorkload | None:
        """Return a workload, or None."""
        found = await self.find(workload_key(workload_id))
        return found if found is not None and found.workload.workload_id == workload_id else None

    async def delete(self, workload_id: str) -> bool:
        """Delete a workload; return whether there was one."""
        if await self.get(workload_id) is None:
            return False
        return await self._records.delete(workload_key(workload_id).hex())

    async def all(self) -> Sequence[RegisteredWorkload]:
        """Return all workloads by their ids."""
        stored = (await self._records.items()).values()
        found = [_registered(_decode(value)) for value in stored]
        return sorted(found, key=lambda entry: entry.workload.workload_id)


def _decode(stored: bytes) -> _Record:
    try:
        record = msgspec.msgpack.decode(stored, type=_Record)
    except msgspec.DecodeError:
        raise StorageError("a stored workload cannot be read") from None
    if record.format != _FORMAT:
        raise StorageError(f"a stored workload has format {record.format}, not {_FORMAT}")
    return record


def _registered(record: _Record) -> RegisteredWorkload:
    measurement = record.measurement.launch_measurement
    try:
        tee = TEE_BY_MEASUREMENT_BYTES[len(measurement)]
        configuration = parse_tee_config(record.config.tee_config, tee)
    except (KeyError, MalformedError):
        raise StorageError("a stored workload does not hold what was registered") from None
    workload = Workload(
        workload_id=record.workload_id,
        measurement=measurement,
        tee_config=record.config.tee_config,
        configuration=configuration,
        passphrase=record.secret.passphrase,
    )
    return RegisteredWorkload(workload, record.revision, record.registered_at)


def check_encryption(config: KbsConfig) -> None:
    """Refuse a configuration by which passphrases would outlive the process in clear.

    Raises:
        ConfigError: the storage is not in memory, and there is no master key.
    """
    if config.encryption is None and config.storage_backend.storage_type is not StorageType.MEMORY:
        raise ConfigError(
            "[workloads] keeps passphrases, which are never stored in clear: add the table"
            " [encryption] with a master key"
        )


async def open_workload_records(config: KbsConfig, storage: StorageProvider) -> KeyValueStore:
    """Open the namespace of registrations, encrypted wherever it outlives the process.

    Raises:
        ConfigError: as :func:`check_encryption`.
    """
    check_encryption(config)
    records = await storage.namespace(NAMESPACE)
    if (
        config.encryption is None
        or config.storage_backend.storage_type is StorageType.MEMORY
        or isinstance(records, EncryptedStore)
    ):
        return records
    # LocalFs, whose other namespaces Trustee can read; this one it does not know.
    return EncryptedStore(
        cast(ComparingStore, records),  # as every back end is
        load_keyring(config.encryption),
        NAMESPACE,
        accept_plaintext=config.encryption.accept_plaintext,
    )
