"""The embedded default: keys in the broker's own storage, encrypted where that is."""

from keybroker.key_transfer.errors import KeyGoneError
from keybroker.key_transfer.generation import generate_key
from keybroker.key_transfer.material import KeySpec, Material
from keybroker.key_transfer.records import KeyRecord
from keybroker.model.errors import KeybrokerError, MalformedError
from keybroker.storage.interface import KeyValueStore

#: Namespace of the keys.
NAMESPACE = "key_transfer_material"


class LocalKeyManager:
    """Keeps keys under their ids in one namespace."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    async def create(self, key_id: str, spec: KeySpec, created_at: str) -> str | None:
        return await self.register(key_id, spec, await generate_key(spec), created_at)

    async def register(
        self,
        key_id: str,
        spec: KeySpec,  # noqa: ARG002 - the record says what kind of key it is
        material: Material,
        created_at: str,  # noqa: ARG002
    ) -> str | None:
        await self._store.set(key_id, material.octets)
        return None

    async def adopt(self, spec: KeySpec, kmip_key_id: str) -> None:  # noqa: ARG002
        raise MalformedError("kmip_key_id needs a KMIP key manager; register key_data instead")

    async def fetch(self, record: KeyRecord) -> bytes:
        octets = await self._store.get(record.id)
        if octets is None:
            raise KeyGoneError
        return octets

    async def delete(self, record: KeyRecord) -> None:
        await self._store.delete(record.id)

    async def discard(self, key_id: str) -> None:
        await self._store.delete(key_id)

    async def problem(self) -> str | None:
        try:
            await self._store.revision()
        except KeybrokerError:
            return "the storage of keys does not answer"
        return None

    async def close(self) -> None:
        return
