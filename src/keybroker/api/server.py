"""The server: one process, or a supervisor with several workers that share its sockets.

The supervisor binds the sockets, loads everything once and forks. Workers share nothing but the
sockets and the storage; whichever dies is replaced, and the connections that wait in the sockets'
queues are served by the others meanwhile.
"""

import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from keybroker.api import shared_metrics
from keybroker.api.http_protocol import BoundedHttpProtocol
from keybroker.model.errors import ConfigError

logger = logging.getLogger(__name__)

#: Waiting connections that the kernel keeps for us.
BACKLOG = 2048

#: Requests in flight get this long to finish when the broker is told to stop.
GRACEFUL_SECONDS = 10

#: A worker that dies this often within this time will not be helped by starting it once more.
CRASHES = 10
CRASH_SECONDS = 30.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Bind the configured addresses.

    Args:
        addresses: ``host:port``, ``[v6]:port``; port 0 takes a free one.

    Raises:
        ConfigError: an address that cannot be parsed or bound.
    """
    sockets: list[socket.socket] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host.strip("[]"), int(port)))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except (OSError, ValueError, OverflowError) as error:
            listener.close()
            for other in sockets:
                other.close()
            raise ConfigError(f"http_server.sockets: cannot listen on {address}: {error}") from None
        sockets.append(listener)
    return sockets


def addresses_of(sockets: Sequence[socket.socket], *, secure: bool) -> list[str]:
    """Return the URLs under which bound sockets are reached."""
    scheme = "https" if secure else "http"
    urls = []
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        urls.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    return urls


def serve(
    make_app: Callable[[], ASGIApp],
    sockets: Sequence[socket.socket],
    *,
    workers: int,
    tls: Callable[[], ssl.SSLContext] | None,
    max_connections: int,
    keep_alive_seconds: float,
) -> int:
    """Serve until told to stop by SIGTERM or SIGINT.

    Args:
        make_app: makes the application, once in each worker.
        sockets: bound and listening.
        workers: number of worker processes; 1 serves in this process.
        tls: makes the TLS context, or None for plain HTTP.
        max_connections: connections of one worker; more are answered with 503.
        keep_alive_seconds: idle connections are closed after this.

    Returns:
        The exit code.
    """

    def work() -> None:
        config = uvicorn.Config(
            make_app(),
            http=BoundedHttpProtocol,
            ws="none",
            loop="uvloop" if _has_uvloop() else "asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=max(1, round(keep_alive_seconds)),
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
            backlog=BACKLOG,
            ssl_context_factory=(lambda _config, _default: tls()) if tls is not None else None,
        )
        uvicorn.Server(config).run(sockets=list(sockets))

    if workers == 1:
        _expect_stop_signals()
        work()
        return 0
    return _Supervisor(work, workers).run()


def _expect_stop_signals() -> None:
    """Make a stop signal an orderly end: uvicorn raises it once more when it has shut down."""
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: None)


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


class _Supervisor:
    """Keeps a number of forked workers alive."""

    def __init__(self, work: Callable[[], None], count: int) -> None:
        self._work = work
        self._count = count
        self._pids: set[int] = set()
        self._stopping = False
        self._deaths: deque[float] = deque(maxlen=CRASHES)

    def run(self) -> int:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        try:
            for _ in range(self._count):
                self._start()
            return self._watch()
        finally:
            shared_metrics.discard()

    def _start(self) -> None:
        # A signal that arrives around the fork waits until it is clear whose it is.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        pid = os.fork()
        if pid:
            self._pids.add(pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
            return
        # In the worker: nothing of the supervisor's may run on, whatever happens below.
        code = 1
        try:
            _expect_stop_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
            self._work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except KeyboardInterrupt:
            code = 0
        except BaseException:
            logger.exception("a worker failed")
        finally:
            logging.shutdown()
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    def _watch(self) -> int:
        while self._pids:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            except ChildProcessError:
                break
            self._pids.discard(pid)
            shared_metrics.forget(pid)
            if self._stopping:
                continue
            logger.error(
                "worker %d ended (%s); starting another", pid, os.waitstatus_to_exitcode(status)
            )
            now = time.monotonic()
            self._deaths.append(now)
            if len(self._deaths) == CRASHES and now - self._deaths[0] < CRASH_SECONDS:
                logger.critical("workers keep failing; giving up")
                self._stop(signal.SIGTERM, None)
                continue
            self._start()
        return (
            0
            if len(self._deaths) < CRASHES or self._deaths[-1] - self._deaths[0] > (CRASH_SECONDS)
            else 1
        )
