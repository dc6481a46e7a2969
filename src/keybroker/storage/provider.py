"""Open the storage that a configuration describes and hand out its namespaces."""

import asyncio
import logging
from pathlib import Path

from keybroker.config.kbs import KbsConfig
from keybroker.config.storage import StorageBackendConfig, StorageType
from keybroker.model.errors import ConfigError
from keybroker.storage.encryption import EncryptedStore, Keyring, MasterKey, load_keyring
from keybroker.storage.interface import (
    ComparingStore,
    KeyValueStore,
    StorageProvider,
    check_namespace,
)
from keybroker.storage.local_fs import LocalFsStore
from keybroker.storage.local_json import LocalJsonStore
from keybroker.storage.memory import MemoryStore
from keybroker.storage.sqlite import SqliteDatabase, SqliteStore

_log = logging.getLogger(__name__)

#: Namespaces whose values are worthless after some minutes: written without flushing the disk.
SHORT_LIVED_NAMESPACES = frozenset({"kbs_protocol_session", "workload_session"})


def open_storage(
    config: StorageBackendConfig,
    keyring: Keyring | MasterKey | None = None,
    *,
    encrypt_local_fs: bool = False,
    accept_plaintext: bool = False,
) -> StorageProvider:
    """Open the configured storage.

    Args:
        config: the ``storage_backend`` table.
        keyring: master keys; None: values are stored in clear, which is said in the log.
        encrypt_local_fs: encrypt in LocalFs as well.
        accept_plaintext: read values stored before encryption was switched on.

    Raises:
        ConfigError: the type's table under ``backends`` is missing, or this build lacks the type.
    """
    if isinstance(keyring, MasterKey):
        keyring = Keyring((keyring,))
    check_storage_type(config, config.storage_type)
    return _Storage(config, keyring, encrypt_local_fs, accept_plaintext)


def check_storage_type(config: StorageBackendConfig, type_: StorageType) -> None:
    """Say whether namespaces of the type can be opened.

    Raises:
        ConfigError: the type's table under ``backends`` is missing, or this build lacks the type.
    """
    if type_ in (StorageType.POSTGRES, StorageType.REDIS):
        raise ConfigError(
            f"storage_type {type_.value!r} is not in this build; use Sqlite, LocalFs, LocalJson"
            " or Memory"
        )
    if type_ is not StorageType.MEMORY and getattr(config.backends, type_.key) is None:
        raise ConfigError(
            f"storage_type {type_.value!r} needs the table storage_backend.backends.{type_.key}"
        )


def open_configured_storage(config: KbsConfig) -> StorageProvider:
    """Open the storage of a broker, with the master keys that its configuration names.

    Raises:
        ConfigError: as :func:`open_storage`, or there is no usable master key.
    """
    encryption = config.encryption
    if encryption is None:
        return open_storage(config.storage_backend)
    return open_storage(
        config.storage_backend,
        load_keyring(encryption),
        encrypt_local_fs=encryption.encrypt_local_fs,
        accept_plaintext=encryption.accept_plaintext,
    )


def sessions_path(path: Path) -> Path:
    """Return the file for short-lived values beside a database: ``x.db`` → ``x-sessions.db``."""
    return path.with_name(f"{path.stem}-sessions{path.suffix}")


class _Storage:
    def __init__(
        self,
        config: StorageBackendConfig,
        keyring: Keyring | None,
        encrypt_local_fs: bool,
        accept_plaintext: bool,
    ) -> None:
        self._config = config
        self._keyring = keyring
        self._accept_plaintext = accept_plaintext
        self._encrypted_types = {StorageType.SQLITE, StorageType.LOCAL_JSON}
        if encrypt_local_fs:
            self._encrypted_types.add(StorageType.LOCAL_FS)
        self._said_in_clear: set[StorageType] = set()
        self._stores: dict[tuple[str, StorageType], KeyValueStore] = {}
        self._databases: dict[Path, SqliteDatabase] = {}
        self._opening = asyncio.Lock()

    async def namespace(self, name: str, storage_type: str | None = None) -> KeyValueStore:
        check_namespace(name)
        type_ = self._config.storage_type if storage_type is None else StorageType(storage_type)
        store = self._stores.get((name, type_))
        if store is not None:
            return store
        check_storage_type(self._config, type_)
        async with self._opening:
            store = self._stores.get((name, type_))
            if store is None:
                store = self._encrypted(
                    await asyncio.to_thread(self._open, name, type_), name, type_
                )
                self._stores[name, type_] = store
        return store

    def _encrypted(self, store: ComparingStore, name: str, type_: StorageType) -> KeyValueStore:
        if self._keyring is not None and type_ in self._encrypted_types:
            return EncryptedStore(
                store, self._keyring, name, accept_plaintext=self._accept_plaintext
            )
        if type_ is not StorageType.MEMORY and type_ not in self._said_in_clear:
            self._said_in_clear.add(type_)
            _log.warning("values are stored in clear in %s", type_.value)
        return store

    def _open(self, name: str, type_: StorageType) -> ComparingStore:
        backends = self._config.backends
        if type_ is StorageType.SQLITE and backends.sqlite is not None:
            path = Path(backends.sqlite.path)
            short_lived = name in SHORT_LIVED_NAMESPACES
            path = sessions_path(path) if short_lived else path
            if path not in self._databases:
                self._databases[path] = SqliteDatabase(path, durable=not short_lived)
            return SqliteStore(self._databases[path], name)
        if type_ is StorageType.LOCAL_FS and backends.local_fs is not None:
            return LocalFsStore(Path(backends.local_fs.dir_path), name)
        if type_ is StorageType.LOCAL_JSON and backends.local_json is not None:
            return LocalJsonStore(Path(backends.local_json.file_dir_path), name)
        return MemoryStore()

    async def close(self) -> None:
        databases = list(self._databases.values())
        self._databases.clear()
        self._stores.clear()
        for database in databases:
            await asyncio.to_thread(database.close)
