"""``[storage_backend]`` and ``[encryption]``: where bytes are kept, and under which key."""

from enum import StrEnum
from typing import Annotated

import msgspec

from keybroker.config.section import Secret, Section


class StorageType(StrEnum):
    """Where a namespace is kept. ``Sqlite`` is keybroker's own; the others are Trustee's."""

    MEMORY = "Memory"
    LOCAL_FS = "LocalFs"
    LOCAL_JSON = "LocalJson"
    POSTGRES = "Postgres"
    REDIS = "Redis"
    SQLITE = "Sqlite"

    @classmethod
    def _missing_(cls, value: object) -> "StorageType | None":
        """Take the other spellings that stand in files: ``local_fs``, ``memory``, ``SQLite``."""
        if value == "SQLite":
            return cls.SQLITE
        return next((member for member in cls if member.key == value), None)

    @property
    def key(self) -> str:
        """Name of the table under ``backends``."""
        words = {"LocalFs": "local_fs", "LocalJson": "local_json"}
        return words.get(self.value, self.value.lower())


class LocalFsConfig(Section, kw_only=True, frozen=True):
    """One file a key, in ``dir_path/<namespace>/``."""

    dir_path: str = "/opt/confidential-containers/storage/local_fs"


class LocalJsonConfig(Section, kw_only=True, frozen=True):
    """One JSON file a namespace, ``file_dir_path/<namespace>``."""

    file_dir_path: str = "/opt/confidential-containers/storage/local_json"


class PostgresConfig(Section, kw_only=True, frozen=True):
    """One table a namespace."""

    db: str = "postgres"
    username: str = "postgres"
    password: Secret | None = None
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 5432
    host: str = "localhost"


class RedisConfig(Section, kw_only=True, frozen=True):
    """Keys with the namespace as prefix. The URL may hold a password."""

    url: Secret = Secret("redis://127.0.0.1:6379")


class SqliteConfig(Section, kw_only=True, frozen=True):
    """One database file; a second one beside it, ``…-sessions…``, for what is short-lived."""

    path: str = "/opt/confidential-containers/storage/keybroker.db"


class StorageBackendsConfig(Section, kw_only=True, frozen=True):
    """What each back end needs, of which the type picks one."""

    local_fs: LocalFsConfig | None = None
    local_json: LocalJsonConfig | None = None
    postgres: PostgresConfig | None = None
    redis: RedisConfig | None = None
    sqlite: SqliteConfig | None = None


class StorageBackendConfig(Section, kw_only=True, frozen=True):
    """The one place that all persistent data goes to."""

    storage_type: StorageType = StorageType.MEMORY
    backends: StorageBackendsConfig = StorageBackendsConfig()


class KeySource(StrEnum):
    """Where the master key comes from."""

    FILE = "file"
    ENV = "env"


#: Environment variable of the master key where the file names none.
DEFAULT_KEY_VARIABLE = "KEYBROKER_MASTER_KEY"


class EncryptionConfig(Section, kw_only=True, frozen=True):
    """Encryption at rest; without this table values are stored in clear.

    Attributes:
        source: a file, or an environment variable.
        path: the file: one key a line, 32 bytes in base64; the first encrypts, all decrypt.
        variable: the environment variable: the same, separated by commas.
        encrypt_local_fs: encrypt in LocalFs as well, whose files Trustee can then not read.
        accept_plaintext: read values that were stored in clear before encryption was switched on.
    """

    source: KeySource = KeySource.FILE
    path: str | None = None
    variable: str = DEFAULT_KEY_VARIABLE
    encrypt_local_fs: bool = False
    accept_plaintext: bool = False

    def __post_init__(self) -> None:
        if self.source is KeySource.FILE and not self.path:
            raise ValueError('path is needed where source is "file"')
