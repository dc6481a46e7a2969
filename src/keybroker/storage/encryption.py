"""Envelope encryption over any store: a stolen disk or database dump holds no secret.

Each value is encrypted under a data key of its own, and that key under the master key, which is
not stored beside the values::

    magic   4   "KBE" and the format version, 1
    key id  8   which master key
    nonce  12   of the wrapped data key
    wrapped 48  data key, AES-256-GCM under the master key, with its tag
    sealed  n   value, AES-256-GCM under the data key, with its tag

Both seals cover the header, the namespace and the key that the value is stored under, so an
attacker who can write to the storage cannot put one secret in the place of another. They can put
back an older value of the same key; that needs an anchor outside the storage.

The nonce of a wrapped key is random: a master key is good for 2**32 writes (NIST SP 800-38D,
section 8.3), far beyond the life of a broker's storage. A data key seals one value only, hence its
nonce can be constant.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keybroker.config.storage import EncryptionConfig, KeySource
from keybroker.model.errors import ConfigError, StorageError
from keybroker.storage.interface import ComparingStore

_MAGIC = b"KBE\x01"
_KEY_BYTES = 32
_ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + _ID_BYTES
_WRAPPED_AT = _HEADER_BYTES + _NONCE_BYTES
_SEALED_AT = _WRAPPED_AT + _KEY_BYTES + _TAG_BYTES

#: Unique because no data key ever seals a second value.
_SEAL_NONCE = bytes(_NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A 256-bit key that wraps data keys; its ``id`` tells it from others and reveals nothing."""

    secret: bytes = field(repr=False)
    id: bytes = field(init=False)
    aead: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.secret) != _KEY_BYTES:
            raise ValueError(f"a master key has {_KEY_BYTES} bytes")
        name = hmac.new(self.secret, b"keybroker master key id", hashlib.sha256).digest()
        object.__setattr__(self, "id", name[:_ID_BYTES])
        object.__setattr__(self, "aead", AESGCM(self.secret))

    @classmethod
    def generate(cls) -> "MasterKey":
        """Make a new random key."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    def encode(self) -> str:
        """Return the key in base64, as it stands in a file or variable."""
        return base64.b64encode(self.secret).decode("ascii")


@dataclass(frozen=True, slots=True)
class Keyring:
    """Master keys: the first encrypts, each of them decrypts."""

    keys: tuple[MasterKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("a keyring needs a key")

    @property
    def primary(self) -> MasterKey:
        """The key of new values."""
        return self.keys[0]

    def find(self, key_id: bytes) -> MasterKey | None:
        """Return the key of that id."""
        return next((key for key in self.keys if key.id == key_id), None)


def is_encrypted(stored: bytes) -> bool:
    """Whether bytes from a store look encrypted by this module."""
    return stored.startswith(_MAGIC)


def encrypt(keyring: Keyring, namespace: str, key: str, value: bytes) -> bytes:
    """Encrypt a value for its place."""
    data_key = secrets.token_bytes(_KEY_BYTES)
    return _wrap(keyring.primary, namespace, key, data_key) + AESGCM(data_key).encrypt(
        _SEAL_NONCE, value, _place(b"value", namespace, key)
    )


def decrypt(keyring: Keyring, namespace: str, key: str, stored: bytes) -> bytes:
    """Decrypt a value from its place.

    Raises:
        StorageError: not encrypted, encrypted under a key that is not in the ring, changed, or
            moved here from another place.
    """
    data_key = _unwrap(keyring, namespace, key, stored)
    try:
        return AESGCM(data_key).decrypt(
            _SEAL_NONCE, stored[_SEALED_AT:], _place(b"value", namespace, key)
        )
    except InvalidTag:
        raise _damaged(namespace) from None


def rewrapped(keyring: Keyring, namespace: str, key: str, stored: bytes) -> bytes:
    """Return the stored bytes with the data key wrapped by the primary master key.

    Raises:
        StorageError: as :func:`decrypt`.
    """
    data_key = _unwrap(keyring, namespace, key, stored)
    return _wrap(keyring.primary, namespace, key, data_key) + stored[_SEALED_AT:]


def _place(what: bytes, namespace: str, key: str) -> bytes:
    # A namespace holds no zero byte, a key neither, so the parts cannot run into each other.
    return b"\0".join((_MAGIC, what, namespace.encode(), key.encode()))


def _wrap(master: MasterKey, namespace: str, key: str, data_key: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    wrapped = master.aead.encrypt(nonce, data_key, master.id + _place(b"key", namespace, key))
    return _MAGIC + master.id + nonce + wrapped


def _unwrap(keyring: Keyring, namespace: str, key: str, stored: bytes) -> bytes:
    if not is_encrypted(stored) or len(stored) < _SEALED_AT + _TAG_BYTES:
        raise StorageError(
            f"a value in namespace {namespace} is not encrypted; to take over values that were"
            " stored before encryption was switched on, set encryption.accept_plaintext"
        )
    master = keyring.find(stored[len(_MAGIC) : _HEADER_BYTES])
    if master is None:
        raise StorageError(
            f"a value in namespace {namespace} is encrypted under a master key that is not given"
        )
    try:
        return master.aead.decrypt(
            stored[_HEADER_BYTES:_WRAPPED_AT],
            stored[_WRAPPED_AT:_SEALED_AT],
            master.id + _place(b"key", namespace, key),
        )
    except InvalidTag:
        raise _damaged(namespace) from None


def _damaged(namespace: str) -> StorageError:
    return StorageError(
        f"a value in namespace {namespace} was changed or moved since it was encrypted"
    )


class EncryptedStore:
    """A namespace whose values are encrypted before the store beneath sees them."""

    def __init__(
        self,
        store: ComparingStore,
        keyring: Keyring,
        namespace: str,
        *,
        accept_plaintext: bool = False,
    ) -> None:
        """Wrap a store.

        Args:
            namespace: name of the namespace, to which values are bound.
            accept_plaintext: hand out values that are not encrypted as they are. Who can write to
                the storage could then plant values, so this is for the time of a migration.
        """
        self._store = store
        self._keyring = keyring
        self._namespace = namespace
        self._accept_plaintext = accept_plaintext

    def _open(self, key: str, stored: bytes) -> bytes:
        if self._accept_plaintext and not is_encrypted(stored):
            return stored
        return decrypt(self._keyring, self._namespace, key, stored)

    async def get(self, key: str) -> bytes | None:
        stored = await self._store.get(key)
        return None if stored is None else self._open(key, stored)

    async def version(self, key: str) -> object | None:
        return await self._store.version(key)

    async def set(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        sealed = encrypt(self._keyring, self._namespace, key, value)
        return await self._store.set(key, sealed, overwrite=overwrite)

    async def replace(self, key: str, value: bytes, *, expected: bytes) -> bool:
        stored = await self._store.get(key)
        if stored is None or not hmac.compare_digest(self._open(key, stored), expected):
            return False
        sealed = encrypt(self._keyring, self._namespace, key, value)
        return await self._store.replace(key, sealed, expected=stored)

    async def delete(self, key: str) -> bool:
        return await self._store.delete(key)

    async def delete_before(self, key: str) -> int:
        return await self._store.delete_before(key)

    async def keys(self) -> list[str]:
        return await self._store.keys()

    async def items(self) -> Mapping[str, bytes]:
        return {key: self._open(key, stored) for key, stored in (await self._store.items()).items()}

    async def revision(self) -> object:
        return await self._store.revision()

    async def rewrap(self) -> int:
        """Bring every value under the primary master key; return how many were not.

        After that the other keys of the ring can be thrown away. Values in clear are encrypted
        where they are accepted. Safe while the broker runs: a value that is written meanwhile is
        left as its writer made it, which is under the primary key.

        Raises:
            StorageError: a value cannot be decrypted.
        """
        changed = 0
        for key, stored in (await self._store.items()).items():
            if is_encrypted(stored):
                if stored[len(_MAGIC) : _HEADER_BYTES] == self._keyring.primary.id:
                    continue
                renewed = rewrapped(self._keyring, self._namespace, key, stored)
            else:
                renewed = encrypt(self._keyring, self._namespace, key, self._open(key, stored))
            changed += await self._store.replace(key, renewed, expected=stored)
        return changed


def load_keyring(config: EncryptionConfig) -> Keyring:
    """Read the master keys from where the configuration says.

    Raises:
        ConfigError: there is none, or one is not 32 bytes in base64; the key file can be read by
            others than its owner.
    """
    if config.source is KeySource.ENV:
        origin = f"the environment variable {config.variable}"
        text = os.environ.get(config.variable, "")
        entries: Iterable[str] = text.replace(",", "\n").splitlines()
    else:
        path = Path(config.path or "")
        origin = f"the master key file {path}"
        entries = _read_key_file(path).splitlines()
    words = [entry.strip() for entry in entries]
    words = [word for word in words if word and not word.startswith("#")]
    if not words:
        raise ConfigError(f"{origin} holds no key")
    try:
        keys = tuple(MasterKey(base64.b64decode(word, validate=True)) for word in words)
    except (ValueError, binascii.Error):
        raise ConfigError(
            f"{origin} holds something that is not {_KEY_BYTES} bytes in base64"
        ) from None
    return Keyring(keys)


def _read_key_file(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except OSError as error:
        raise ConfigError(f"the master key file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the master key file {path} is not text") from None
    # The group may read: Kubernetes hands secrets to a process that way.
    if mode & 0o007:
        raise ConfigError(f"the master key file {path} can be read by anybody; use chmod 600")
    return text


def make_key_file(path: Path) -> MasterKey:
    """Write a new master key to a file of mode 0600 that is not there yet, durably.

    Raises:
        ConfigError: the file exists or cannot be made.
    """
    key = MasterKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.encode() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"the master key file {path} cannot be made: {error.strerror}") from None
    return key
