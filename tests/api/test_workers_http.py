"""Several workers: they share everything, and losing one loses nothing."""

import base64
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.conftest import BrokerFactory, RunningBroker

from keybroker.client import AdminClient, GuestClient, TeeKeyPair
from keybroker.client.attesters.sample import SampleAttester
from keybroker.kbs.policies import resource_policy

SECRETS = 500


@pytest.fixture
def workers(start_broker: BrokerFactory) -> RunningBroker:
    return start_broker(http_server={"worker_count": 2})


def retrying(call: Any, *, seconds: float = 20) -> Any:
    """Repeat a request whose connection broke: the worker behind it may just have been killed."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise


def test_no_secret_is_lost_when_workers_are_killed(workers: RunningBroker) -> None:
    with AdminClient(workers.url) as administrator:
        administrator.set_resource_policy(resource_policy("allow_all"))
    key = TeeKeyPair.generate()
    with GuestClient(workers.url, SampleAttester(), devices=[], tee_key=key) as guest:
        token = guest.attest()
    secrets = {f"repo/type/{number}": os.urandom(64) for number in range(SECRETS)}
    stop = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        chance = random.Random(7)
        while not stop.wait(chance.uniform(0.05, 0.4)) and len(killed) < 8:
            alive = workers.workers()
            if len(alive) == 2:
                victim = chance.choice(alive)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    headers = {"authorization": f"Bearer {token}"}

    def write_and_read(path: str) -> bytes:
        def write() -> httpx.Response:
            return httpx.post(f"{workers.url}/kbs/v0/resource/{path}", content=secrets[path])

        def read() -> httpx.Response:
            return httpx.get(f"{workers.url}/kbs/v0/resource/{path}", headers=headers)

        assert retrying(write).status_code == 200
        answer = retrying(read)
        assert answer.status_code == 200, answer.text
        return key.open_response(answer.content)

    try:
        with ThreadPoolExecutor(4) as pool:
            answers = dict(zip(secrets, pool.map(write_and_read, secrets), strict=True))
    finally:
        stop.set()
        killer.join()
    assert answers == secrets
    assert killed
    with AdminClient(workers.url) as administrator:
        assert retrying(administrator.list_resources) == sorted(secrets)


def test_sessions_and_policies_are_shared_by_all_workers(workers: RunningBroker) -> None:
    assert len(workers.workers()) == 2
    with AdminClient(workers.url) as administrator:
        administrator.set_resource("a/b/c", b"secret")
    # A new connection for each request: the kernel hands it to either worker.
    with httpx.Client() as plain:
        challenge = plain.post(
            f"{workers.url}/kbs/v0/auth",
            json={"version": "0.4.0", "tee": "sample", "extra-params": ""},
        )
    cookies = {"kbs-session-id": challenge.cookies["kbs-session-id"]}
    from keybroker.client.handshake import primary_report_data
    from keybroker.model.hashes import HashAlgorithm
    from keybroker.model.rcar import RuntimeData

    key = TeeKeyPair.generate()
    runtime_data = RuntimeData(nonce=challenge.json()["nonce"], tee_pubkey=dict(key.public_jwk()))
    attestation = {
        "runtime-data": {"nonce": runtime_data.nonce, "tee-pubkey": runtime_data.tee_pubkey},
        "tee-evidence": {
            "primary_evidence": SampleAttester().evidence(
                primary_report_data(runtime_data, "", HashAlgorithm.SHA384)
            )
        },
    }
    tokens = {
        httpx.post(f"{workers.url}/kbs/v0/attest", json=attestation, cookies=cookies).json()[
            "token"
        ]
        for _ in range(20)
    }
    assert len(tokens) == 1

    def status() -> int:
        return httpx.get(f"{workers.url}/kbs/v0/resource/a/b/c", cookies=cookies).status_code

    for name, expected in (("allow_all", 200), ("deny_all", 403), ("allow_all", 200)):
        policy = base64.urlsafe_b64encode(resource_policy(name).encode()).decode().rstrip("=")
        answer = httpx.post(f"{workers.url}/kbs/v0/resource-policy", json={"policy": policy})
        assert answer.status_code == 200
        # In force at once, in whichever worker answers.
        assert {status() for _ in range(20)} == {expected}


def test_metrics_are_summed_over_workers(workers: RunningBroker) -> None:
    for _ in range(30):
        httpx.post(f"{workers.url}/kbs/v0/auth", json={"version": "0.4.0", "tee": "sample"})
    httpx.post(f"{workers.url}/kbs/v0/resource/my/secret/name", content=b"x")
    text = httpx.get(f"{workers.url}/metrics").text
    lines = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(lines["kbs_auth_requests_total"]) == 30
    assert float(lines["kbs_auth_successes_total"]) == 30
    assert float(lines["kbs_http_requests_total"]) == 31
    writes = [name for name in lines if name.startswith("kbs_resource_writes_total{")]
    assert len(writes) == 1
    assert "my/secret/name" not in text


def test_a_broker_that_is_told_to_stop_stops(workers: RunningBroker) -> None:
    assert workers.stop() == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{workers.url}/healthz", timeout=2)
