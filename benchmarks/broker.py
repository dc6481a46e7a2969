"""A broker of our own for a run: loopback HTTP, encrypted SQLite, defaults for the rest."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.scripts import INTEL_COLLATERAL, INTEL_ROOT
from keybroker.storage.encryption import make_key_file

#: A broker that does not answer within this time will not.
_START_SECONDS = 30.0


@dataclass(frozen=True)
class Broker:
    """A running broker.

    Attributes:
        workers: worker processes that it was told to run.
        start_seconds: from the start of its process to the first answer of ``/healthz``.
    """

    url: str
    pid: int
    workers: int
    start_seconds: float


class StartError(Exception):
    """The broker did not start."""


@contextmanager
def running_broker(folder: Path, workers: int, platform: Path) -> Iterator[Broker]:
    """Start ``keybroker kbs`` and stop it at the end.

    Args:
        folder: an empty one for its configuration, database and log.
        workers: worker processes.
        platform: folder of the software platforms whose roots it shall trust.

    Raises:
        StartError: it did not answer; the message holds its log.
    """
    port = _free_port()
    make_key_file(folder / "master.key")
    config = folder / "config.json"
    config.write_text(json.dumps(_configuration(folder, port, workers, platform), indent=2))
    log_path = folder / "log"
    url = f"http://127.0.0.1:{port}"
    with log_path.open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "keybroker.cli.main", "kbs", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ,
        )
        try:
            _wait_for_health(process, url, log_path)
            yield Broker(url, process.pid, workers, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _configuration(folder: Path, port: int, workers: int, platform: Path) -> dict[str, object]:
    return {
        "http_server": {
            "sockets": [f"127.0.0.1:{port}"],
            "insecure_http": True,
            "worker_count": workers,
        },
        "admin": {"authorization_mode": "InsecureAllowAll"},
        "storage_backend": {
            "storage_type": "Sqlite",
            "backends": {"sqlite": {"path": str(folder / "keybroker.db")}},
        },
        "encryption": {"source": "file", "path": str(folder / "master.key")},
        "attestation_service": {
            "type": "coco_as_builtin",
            "verifier_config": {
                "snp_verifier": {"extra_trusted_roots": [str(platform / "root.pem")]},
                "dcap_verifier": {
                    "collateral_service": (platform / INTEL_COLLATERAL).as_uri(),
                    "extra_trusted_roots": [str(platform / INTEL_ROOT)],
                    "qcnl_conf": "",
                },
            },
        },
        "plugins": [{"name": "resource"}],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_health(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.perf_counter() + _START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.perf_counter() < deadline and process.poll() is None:
            try:
                if client.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.005)
    raise StartError(f"the broker did not start:\n{log.read_text(errors='replace')[-4000:]}")
