"""Fixtures for every test: recorded evidence, and real brokers in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

#: A broker answers within a second; a machine that runs other tests meanwhile is given more.
START_SECONDS = 30.0

_LISTENING = re.compile(r"listening on (https?://[^\s,\"]+)")


@pytest.fixture(scope="session")
def evidence_dir() -> Path:
    """The folder of real evidence."""
    default = Path(__file__).parent.parent.parent / "shared" / "evidence"
    path = Path(os.environ.get("KEYBROKER_EVIDENCE_DIR", default))
    if not path.is_dir():
        pytest.skip(f"no recorded evidence at {path} (set KEYBROKER_EVIDENCE_DIR)")
    return path


@dataclass
class RunningBroker:
    """A broker in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    directory: Path
    certificate: Path | None = None
    admin_token: str | None = None
    log: list[str] = field(default_factory=list)

    @property
    def log_text(self) -> str:
        """Everything that was written to standard error so far."""
        return "\n".join(self.log)

    def wait_for_log(self, words: str, seconds: float = 20) -> None:
        """Wait until the log has these words: it is written beside the answers, not before them."""
        deadline = time.monotonic() + seconds
        while words not in self.log_text:
            assert time.monotonic() < deadline, f"{words!r} is not in the log:\n{self.log_text}"
            time.sleep(0.01)

    def http(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for this broker."""
        verify: Any = True if self.certificate is None else _tls(self.certificate)
        return httpx.Client(base_url=self.url, verify=verify, timeout=30, **options)

    @property
    def admin_headers(self) -> dict[str, str]:
        """What makes a request an administrator's."""
        return {} if self.admin_token is None else {"authorization": f"Bearer {self.admin_token}"}

    def workers(self) -> list[int]:
        """Process ids of the workers of a broker that has several."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self) -> int:
        """Stop the broker and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def _tls(certificate: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(certificate))


def start_process(
    arguments: list[str],
    directory: Path,
    *,
    certificate: Path | None = None,
    environment: dict[str, str] | None = None,
) -> RunningBroker:
    """Start a keybroker command that listens, and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "keybroker.cli.main", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    found = threading.Event()
    url: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line.rstrip("\n"))
            match = _LISTENING.search(line)
            if match and not url:
                url.append(match.group(1))
                found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not found.wait(START_SECONDS) or not url:
            raise AssertionError("the broker did not start:\n" + "\n".join(log))
        broker = RunningBroker(process, url[0], directory, certificate, log=log)
        _wait_until_ready(broker)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return broker


def _wait_until_ready(broker: RunningBroker) -> None:
    deadline = time.monotonic() + START_SECONDS
    last = ""
    with broker.http() as client:
        while time.monotonic() < deadline:
            if broker.process.poll() is not None:
                raise AssertionError("the broker ended:\n" + broker.log_text)
            try:
                answer = client.get("/readyz")
                if answer.status_code == 200:
                    return
                last = answer.text
            except httpx.TransportError as error:
                last = str(error)
            time.sleep(0.02)
    raise AssertionError(f"the broker is not ready: {last}\n{broker.log_text}")


BrokerFactory = Callable[..., RunningBroker]

#: A broker that anyone may administrate; tests override what they are about.
OPEN_CONFIG: dict[str, Any] = {
    "http_server": {"sockets": ["127.0.0.1:0"], "insecure_http": True, "worker_count": 1},
    "admin": {"authorization_mode": "InsecureAllowAll"},
    "attestation_service": {"type": "coco_as_builtin"},
    "plugins": [{"name": "resource"}],
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another, table by table."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[BrokerFactory]:
    """Start brokers with SQLite storage; they are stopped when the test ends.

    Called with keyword tables that are laid over :data:`OPEN_CONFIG`; a table that is None is
    left out.
    """
    running: list[RunningBroker] = []

    def start(directory: Path | None = None, **tables: Any) -> RunningBroker:
        home = directory or tmp_path / f"broker-{len(running)}"
        home.mkdir(parents=True, exist_ok=True)
        defaults = {
            "storage_backend": {
                "storage_type": "Sqlite",
                "backends": {"sqlite": {"path": str(home / "keybroker.db")}},
            }
        }
        config = merged(merged(OPEN_CONFIG, defaults), tables)
        config = {name: table for name, table in config.items() if table is not None}
        path = home / "config.json"
        path.write_text(json.dumps(config), "utf-8")
        broker = start_process(["kbs", "-c", str(path)], home)
        running.append(broker)
        return broker

    yield start
    for broker in running:
        broker.stop()


@pytest.fixture
def broker(start_broker: BrokerFactory) -> RunningBroker:
    """A running broker that anyone may administrate, over plain HTTP on loopback."""
    return start_broker()
