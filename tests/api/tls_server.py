"""A TLS server in a process of its own: prints its port, then echoes one byte per connection."""

import socket
import ssl
import sys
from pathlib import Path

from keybroker.api.tls import restart_with_settings, server_context
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config


def main() -> None:
    config = load_config(Path(sys.argv[1]), KbsConfig)
    if "--restart" in sys.argv:
        restart_with_settings(config.http_server)
    context = server_context(config.http_server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as stream:
                    stream.sendall(b".")
            except (ssl.SSLError, OSError):
                connection.close()


if __name__ == "__main__":
    main()
