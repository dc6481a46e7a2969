"""What the broker asks of a place that keeps keys."""

from typing import Protocol

from keybroker.key_transfer.material import KeySpec, Material
from keybroker.key_transfer.records import KeyRecord


class KeyManager(Protocol):
    """Keeps keys. Every method may raise KeyManagerError, whose detail says what is wrong."""

    async def create(self, key_id: str, spec: KeySpec, created_at: str) -> str | None:
        """Make a key and keep it.

        Args:
            key_id: under which the broker records it.

        Returns:
            The manager's own id where it has one.
        """
        ...

    async def register(
        self, key_id: str, spec: KeySpec, material: Material, created_at: str
    ) -> str | None:
        """Keep a key that was made elsewhere; returns as :meth:`create`."""
        ...

    async def adopt(self, spec: KeySpec, kmip_key_id: str) -> None:
        """Return if the manager keeps a key of this kind under an id of its own.

        Raises:
            MalformedError: it does not, or has no ids of its own.
        """
        ...

    async def fetch(self, record: KeyRecord) -> bytes:
        """Return the key: octets of AES, PKCS #8 of others, or what the server keeps.

        Raises:
            KeyGoneError: there is no such key.
        """
        ...

    async def delete(self, record: KeyRecord) -> None:
        """Destroy a key; that there is none is no error."""
        ...

    async def discard(self, key_id: str) -> None:
        """Destroy what an unfinished :meth:`create` or :meth:`register` left, if anything."""
        ...

    async def problem(self) -> str | None:
        """Say why no key can be had now, or None where all is well."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
