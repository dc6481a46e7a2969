"""From a configuration to serving processes."""

import logging
import ssl
from collections.abc import Callable
from functools import partial

from keybroker.api import shared_metrics
from keybroker.api.logs import configure
from keybroker.api.server import addresses_of, bind, serve
from keybroker.api.tls import restart_with_settings, server_context
from keybroker.config.kbs import KbsConfig
from keybroker.config.storage import StorageType
from keybroker.model.errors import ConfigError

logger = logging.getLogger(__name__)


def launch(
    config: KbsConfig,
    *,
    listening: Callable[[list[str]], None] | None = None,
    resource_policy: str | None = None,
) -> int:
    """Serve a configuration until told to stop.

    Args:
        config: what to serve.
        listening: called with the URLs once the sockets are bound.
        resource_policy: name of a built-in resource policy to put in force at start.

    Returns:
        The exit code.

    Raises:
        ConfigError: an address, a key or a file that cannot be used.
    """
    configure(config.log)
    http = config.http_server
    workers = _workers(config)
    shared_metrics.prepare(workers)
    tls: Callable[[], ssl.SSLContext] | None = None
    if not http.insecure_http:
        restart_with_settings(http)
        tls = partial(server_context, http)
        tls()  # a wrong key or certificate is said now, by this process

    # Imported after the environment is prepared: the metrics library reads it when it is loaded.
    from keybroker.api.app import create_app

    sockets = bind(http.sockets)
    own_ports: dict[str, int] = {}
    if config.workloads is not None and config.workloads.socket is not None:
        own = bind([config.workloads.socket])
        own_ports["workloads"] = own[0].getsockname()[1]
        if any(listener.getsockname()[1] == own_ports["workloads"] for listener in sockets):
            raise ConfigError("workloads.socket: the port must be another than http_server's")
        sockets += own
    urls = addresses_of(sockets, secure=tls is not None)
    logger.info("listening on %s with %d worker(s)", ", ".join(urls), workers)
    if listening is not None:
        listening(urls)
    return serve(
        lambda: create_app(config, put_in_force=resource_policy, own_ports=own_ports),
        sockets,
        workers=workers,
        tls=tls,
        max_connections=config.limits.max_connections,
        keep_alive_seconds=config.limits.keep_alive_seconds,
    )


def _workers(config: KbsConfig) -> int:
    types = {config.storage_backend.storage_type, config.session_storage_type}
    if StorageType.MEMORY not in types:
        return config.http_server.workers
    if (config.http_server.worker_count or 1) > 1:
        logger.warning("storage in memory cannot be shared by processes: serving with one worker")
    return 1
