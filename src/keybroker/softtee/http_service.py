"""What the software services of vendors share: real HTTP on the loopback interface, that counts."""

import ssl
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_B = TypeVar("_B")


class SoftwareService(ABC, Generic[_B]):
    """An HTTP service on a free port. A context manager; listens while it is entered.

    Args:
        behaviour: how it answers at first.
        tls: serve HTTPS with this certificate.

    Attributes:
        behaviour: how it answers from now on.
        requests: the paths with query that it was asked for, in order.
        asked: set when it has been asked for anything.
    """

    def __init__(self, behaviour: _B, *, tls: ssl.SSLContext | None = None) -> None:
        self.behaviour = behaviour
        self.requests: list[str] = []
        self.asked = threading.Event()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the requests are counted."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            # each handshake in the thread of its connection: a client may break one off
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening; what is held open is closed."""
        if not self._closing.is_set():
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @abstractmethod
    def _respond(self, handler: BaseHTTPRequestHandler, behaviour: _B) -> None:
        """Answer a request in this way."""

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests.append(handler.path)
            behaviour = self.behaviour
        self.asked.set()
        if self._closing.is_set():
            # a connection that was kept open ends with the service
            handler.close_connection = True
        else:
            self._respond(handler, behaviour)

    def _hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Say nothing until the service is closed."""
        self._closing.wait()
        handler.close_connection = True


def answer(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    """Send a whole answer to whoever still listens."""
    try:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        # an asker that stops reading a huge answer does what it should
        handler.close_connection = True
