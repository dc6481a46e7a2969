"""The key manager of a configuration."""

from keybroker.config.key_transfer import (
    KeyManagerConfig,
    KmipKeyManagerConfig,
    VaultKeyManagerConfig,
)
from keybroker.key_transfer.managers.interface import KeyManager
from keybroker.key_transfer.managers.local import NAMESPACE, LocalKeyManager
from keybroker.model.errors import ConfigError
from keybroker.storage.interface import StorageProvider


async def open_key_manager(config: KeyManagerConfig, storage: StorageProvider) -> KeyManager:
    """Make the key manager. No connection is made yet: its server may come later than the broker.

    Raises:
        ConfigError: its library is not installed, or certificates cannot be read.
    """
    if isinstance(config, VaultKeyManagerConfig):
        try:
            from keybroker.key_transfer.managers.vault import VaultKeyManager
        except ImportError:
            raise ConfigError(
                'key_manager type "vault" needs hvac: install keybroker[vault]'
            ) from None
        return VaultKeyManager(config)
    if isinstance(config, KmipKeyManagerConfig):
        try:
            from keybroker.key_transfer.managers.kmip import KmipKeyManager
        except ImportError:
            raise ConfigError(
                'key_manager type "kmip" needs PyKMIP: install keybroker[kmip]'
            ) from None
        return KmipKeyManager(config)
    return LocalKeyManager(await storage.namespace(NAMESPACE))
