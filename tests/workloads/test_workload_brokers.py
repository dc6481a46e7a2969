"""Brokers that serve workloads: administrators, listeners, crashes, two on one storage."""

import json
import os
import random
import re
import signal
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import BrokerFactory, RunningBroker
from tests.workloads.conftest import WorkloadBrokerFactory
from tests.workloads.wire import (
    PASSPHRASE,
    Api,
    SevSession,
    SnpSession,
    sev_workload,
    snp_workload,
)

from keybroker.softtee.sev import SoftwareSevPlatform
from keybroker.softtee.snp import SoftwareSnpPlatform


def test_registering_listing_and_deleting_need_an_administrator(
    start_workloads: WorkloadBrokerFactory, administration: tuple[dict[str, Any], str]
) -> None:
    table, token = administration
    broker = start_workloads(tables={"admin": table})
    nobody, owner = Api(broker), Api(broker, headers={"authorization": f"Bearer {token}"})
    refused = [
        nobody.post("/register_workload", sev_workload()),
        nobody.get("/workloads"),
        nobody.get("/workloads/sev-1"),
        nobody.delete("/workloads/sev-1"),
    ]
    assert [answer.status_code for answer in refused] == [401] * 4
    owner.register(sev_workload())
    owner.register(snp_workload())
    listed = owner.get("/workloads").json()["workloads"]
    assert [entry["workload_id"] for entry in listed] == ["sev-1", "snp-1"]
    assert owner.get("/workloads/snp-1").json() == listed[1]
    assert set(listed[0]) == {
        "workload_id", "tee", "launch_measurement", "tee_config", "registered_at"
    }  # fmt: skip
    assert PASSPHRASE not in owner.get("/workloads").text
    assert owner.delete("/workloads/sev-1").status_code == 200
    assert owner.get("/workloads/sev-1").status_code == 404


def test_registration_alone_can_be_opened_to_all(
    start_workloads: WorkloadBrokerFactory,
    administration: tuple[dict[str, Any], str],
    milan: SoftwareSnpPlatform,
) -> None:
    broker = start_workloads(open_registration=True, tables={"admin": administration[0]})
    api = Api(broker)
    api.register(snp_workload())
    assert api.get("/workloads").status_code == 401
    assert api.delete("/workloads/snp-1").status_code == 401
    assert SnpSession.begin(api, milan).attest().status_code == 200
    broker.wait_for_log("open_registration")


def test_nothing_is_served_unless_configured(broker: RunningBroker) -> None:
    api = Api(broker)
    assert api.post("/auth", {}).status_code == 404
    assert api.post("/register_workload", sev_workload()).status_code == 404
    assert api.http.get("/workload/openapi.json").status_code == 404


def test_a_broker_without_a_master_key_does_not_start_to_serve_workloads(
    start_broker: BrokerFactory,
) -> None:
    with pytest.raises(AssertionError, match=r"\[encryption\]"):
        start_broker(workloads={})


def test_another_prefix_and_a_listener_of_its_own(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform
) -> None:
    broker = start_workloads(prefix="/launch/guests", socket="127.0.0.1:0")
    listening = next(line for line in broker.log if "listening on" in line)
    urls = re.findall(r"http://127\.0\.0\.1:\d+", listening)
    assert len(urls) == 2
    prefixed = Api(broker, "/launch/guests/kbs/v0")
    prefixed.register(snp_workload())
    own = Api(broker, "/kbs/v0", url=urls[1])
    session = SnpSession.begin(own, milan)
    answer = own.auth("snp", {"workload_id": "snp-1"})
    assert "Path=/;" in answer.headers["set-cookie"]
    answer = prefixed.auth("snp", {"workload_id": "snp-1"})
    assert "Path=/launch/guests;" in answer.headers["set-cookie"]
    # a session is of the broker, not of the listener
    session.api = prefixed
    assert session.attest().status_code == 200
    session.api = own
    assert session.decrypt(session.key()) == PASSPHRASE
    # each listener serves what it is for
    assert own.http.get("/healthz").status_code == 404
    assert own.http.get("/kbs/v0/resource/a/b/c").status_code == 404
    assert prefixed.http.post("/kbs/v0/register_workload", json={}).status_code in (401, 404)
    assert prefixed.http.get("/launch/guests/openapi.json").status_code == 200


def test_two_brokers_on_one_storage_serve_one_session_between_them(
    start_workloads: WorkloadBrokerFactory,
    tmp_path: Path,
    sev_platform: SoftwareSevPlatform,
    milan: SoftwareSnpPlatform,
) -> None:
    home = tmp_path / "shared"
    one, other = (Api(start_workloads(directory=home)) for _ in range(2))
    assert one.broker.url != other.broker.url
    one.register(sev_workload())
    other.register(snp_workload())

    sev = SevSession.begin(one, sev_platform)
    sev.api = other
    assert sev.attest().status_code == 200
    sev.api = one
    assert sev.attest().status_code == 401
    assert sev.launch.secret(sev.key().json()).rstrip(b"\0").decode() == PASSPHRASE
    sev.api = other
    assert sev.launch.secret(sev.key().json()).rstrip(b"\0").decode() == PASSPHRASE

    snp = SnpSession.begin(other, milan)
    snp.api = one
    assert snp.attest().status_code == 200
    snp.api = other
    assert snp.decrypt(snp.key()) == PASSPHRASE
    one.register(snp_workload(passphrase="another"))
    assert snp.key().status_code == 401
    assert other.delete("/workloads/sev-1").status_code == 200
    sev.api = one
    assert sev.key().status_code == 401


def test_two_workers_of_one_broker_serve_one_session_between_them(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform
) -> None:
    broker = start_workloads(tables={"http_server": {"worker_count": 2}})
    Api(broker).register(snp_workload())
    for _ in range(6):  # every request on a connection of its own: whichever worker takes it
        session = SnpSession.begin(Api(broker), milan)
        session.api = Api(broker)
        assert session.attest().status_code == 200
        session.api = Api(broker)
        assert session.decrypt(session.key()) == PASSPHRASE


def numbered_workload(number: int) -> dict[str, Any]:
    """A registration all of whose three records say which it is."""
    return snp_workload(
        "w",
        launch_measurement=f"{number:096x}",
        tee_config=json.dumps({"gen": "milan", "number": number}),
        passphrase=f"passphrase {number}",
    )


def registered_number(api: Api, milan: SoftwareSnpPlatform) -> int:
    """Find out which registration is in force, by each of its three records."""
    found = api.get("/workloads/w").json()
    number = int(found["launch_measurement"], 16)
    assert json.loads(found["tee_config"])["number"] == number
    session = SnpSession.begin(api, milan, "w")
    measurement = bytes.fromhex(found["launch_measurement"])
    assert session.attest(session.evidence(measurement=measurement)).status_code == 200
    assert session.decrypt(session.key("w")) == f"passphrase {number}"
    return number


@pytest.mark.parametrize("storage", ["Sqlite", "LocalFs", "LocalJson"])
def test_a_crash_at_any_instant_leaves_the_old_three_records_or_the_new_three(
    start_workloads: WorkloadBrokerFactory,
    tmp_path: Path,
    milan: SoftwareSnpPlatform,
    storage: str,
) -> None:
    home = tmp_path / "home"
    backends = {
        "Sqlite": {"sqlite": {"path": str(home / "keybroker.db")}},
        "LocalFs": {"local_fs": {"dir_path": str(home / "fs")}},
        "LocalJson": {"local_json": {"file_dir_path": str(home / "json")}},
    }[storage]
    tables = {"storage_backend": {"storage_type": storage, "backends": backends}}
    moments = random.Random(20261123)
    acknowledged = sent = 1
    for turn in range(5):
        broker = start_workloads(directory=home, tables=tables)
        api = Api(broker)
        if turn == 0:
            api.register(numbered_workload(1))
        # none older than the last that was acknowledged
        assert acknowledged <= registered_number(api, milan) <= sent
        killer = threading.Timer(
            moments.uniform(0.01, 0.25), os.kill, (broker.process.pid, signal.SIGKILL)
        )
        killer.start()
        try:
            while True:
                sent += 1
                answer = api.post("/register_workload", numbered_workload(sent))
                assert answer.status_code == 200
                acknowledged = sent
        except httpx.TransportError:
            killer.join()
            broker.process.wait(20)
    broker = start_workloads(directory=home, tables=tables)
    assert acknowledged <= registered_number(Api(broker), milan) <= sent
    assert acknowledged > 1


def test_a_session_ends_when_it_should(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform
) -> None:
    broker = start_workloads(session_minutes=1)
    api = Api(broker)
    api.register(snp_workload())
    answer = api.auth("snp", {"workload_id": "snp-1"})
    expires = re.search(r"Expires=([^;]+)", answer.headers["set-cookie"])
    assert expires is not None
    left = parsedate_to_datetime(expires[1]).timestamp() - time.time()
    assert 50 <= left <= 60
