"""From the configuration to plugins."""

from collections.abc import Iterable

from keybroker.config.plugins import (
    KvStorageConfig,
    PluginConfig,
    ResourcePluginConfig,
    SamplePluginConfig,
)
from keybroker.kbs.plugins.interface import Plugin
from keybroker.kbs.plugins.resource import ResourcePlugin
from keybroker.kbs.plugins.sample import SamplePlugin
from keybroker.model.errors import ConfigError
from keybroker.storage.interface import StorageProvider

#: Namespace of the resources, as in Trustee.
RESOURCE_NAMESPACE = "repository"


async def make_plugins(
    configs: Iterable[PluginConfig], storage: StorageProvider
) -> dict[str, Plugin]:
    """Make the configured plugins.

    Raises:
        ConfigError: one that this build does not have, or one that is there twice.
    """
    plugins: dict[str, Plugin] = {}
    for config in configs:
        plugin = await _make(config, storage)
        if plugin.name in plugins:
            raise ConfigError(f"plugins: {plugin.name!r} is configured twice")
        plugins[plugin.name] = plugin
    return plugins


async def _make(config: PluginConfig, storage: StorageProvider) -> Plugin:
    if isinstance(config, ResourcePluginConfig):
        if not isinstance(config.backend, KvStorageConfig):
            raise ConfigError(
                f"plugins: this build keeps resources in its own storage, not in"
                f" {type(config.backend).__name__.removesuffix('Config')}"
            )
        return ResourcePlugin(await storage.namespace(RESOURCE_NAMESPACE))
    if isinstance(config, SamplePluginConfig):
        return SamplePlugin()
    raise ConfigError(f"plugins: this build does not serve {type(config).__name__}")
