"""Bad input over HTTP: a clear error each, no traceback, the broker alive."""

import json
import socket
from typing import Any

import pytest
from tests.conftest import RunningBroker
from tests.workloads.conftest import WorkloadBrokerFactory
from tests.workloads.wire import (
    SNP_MEASUREMENT,
    Api,
    SnpSession,
    sev_parameters,
    sev_workload,
    snp_workload,
)

from keybroker.softtee.sev import SoftwareSevPlatform
from keybroker.softtee.snp import Flaw, SoftwareSnpPlatform

BASE = "/workload/kbs/v0"
JSON = {"content-type": "application/json"}

BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"tee": "snp", "tee": "sev", "extra-params": ""}',
    b'{"a": ' * 40 + b"1" + b"}" * 40,
    b'{"tee": NaN, "extra-params": ""}',
    b'{"tee": "snp"}',
    b'{"tee": "snp", "extra-params": "{"}',
    b'{"tee": "snp", "extra-params": {"workload_id": 1}}',
    b'{"tee": "sev", "extra-params": {"workload_id": "sev-1"}}',
    b'{"tee": 1, "extra-params": ""}',
]


@pytest.fixture
def api(workload_broker: RunningBroker) -> Api:
    api = Api(workload_broker)
    api.register(sev_workload())
    api.register(snp_workload())
    return api


def test_bodies_that_are_no_payload(api: Api, milan: SoftwareSnpPlatform) -> None:
    session = SnpSession.begin(api, milan)
    headers = JSON | {"cookie": f"session_id={session.cookie}"}
    for path in ("/register_workload", "/auth", "/attest"):
        for body in BODIES:
            answer = api.http.post(BASE + path, content=body, headers=headers)
            assert answer.status_code == 400, (path, body, answer.text)
            assert set(answer.json()) == {"type", "detail"}
        text = {"content-type": "text/plain"}
        assert api.http.post(BASE + path, content=b"{}", headers=text).status_code == 415
        huge = b'{"passphrase": "' + b"x" * 3_000_000 + b'"}'
        assert api.http.post(BASE + path, content=huge, headers=headers).status_code == 413
    assert session.attest().status_code == 200
    assert "Traceback" not in api.broker.log_text


def test_paths_that_are_none(api: Api) -> None:
    for path in (
        "", "/", "//auth", "/auth/", "/auth/x", "/key", "/key/", "/key/a/b", "/key/..%2fauth",
        "/key/%00", "/%61uth", "/key/a%2fb", "/workloads/", "/workloads/a/b", "/nothing",
        "/register_workload/x", "/key/" + "a" * 2000,
    ):  # fmt: skip
        for method in ("GET", "POST", "DELETE"):
            answer = api.http.request(method, BASE + path)
            assert answer.status_code in (404, 405), (method, path, answer.status_code)
    for method, path in (("GET", "/auth"), ("PUT", "/attest"), ("POST", "/key/a")):
        answer = api.http.request(method, BASE + path)
        assert answer.status_code == 405
        assert answer.headers["allow"]
    assert "Traceback" not in api.broker.log_text


def test_evidence_with_one_flaw(api: Api, milan: SoftwareSnpPlatform) -> None:
    for flaw in Flaw:
        if flaw is Flaw.OTHER_FMC:  # of Turin and later alone
            continue
        session = SnpSession.begin(api, milan)
        assert session.attest(session.evidence(flaw=flaw)).status_code == 401, flaw
        assert session.key().status_code == 401


WRONG_FORMS: list[dict[str, Any]] = [
    {"report": ""},
    {"report": "00" * 1183},
    {"report": "00" * 1185},
    {"report": "zz" * 1184},
    {"report": "0x" + "00" * 1183},
    {"report": "٠" * 2368},
    {"report": 5},
    {"gen": "naples"},
    {"gen": ""},
    {"gen": None},
    {"cert_chain": "{"},
    {"cert_chain": "5"},
    {"cert_chain": [{"cert_type": "VCEK", "data": [256]}]},
    {"cert_chain": [{"cert_type": "VCEK", "data": list(b"no certificate")}]},
    {"cert_chain": [{"cert_type": "VCEK", "data": []}] * 17},
]


def test_evidence_of_the_wrong_form(api: Api, milan: SoftwareSnpPlatform) -> None:
    session = SnpSession.begin(api, milan)
    evidence = session.evidence()
    for change in WRONG_FORMS:
        answer = session.attest(evidence | change)
        assert answer.status_code in (400, 401), (change, answer.text)
        assert session.key().status_code == 401
    assert session.attest(evidence).status_code == 200


def test_certificates_of_the_wrong_size(api: Api, sev_platform: SoftwareSevPlatform) -> None:
    for name in ("pdh", "pek", "oca", "cek", "ask", "ark"):
        for size in (0, 1, 2083, 2085):
            parameters = json.loads(json.dumps(sev_parameters(sev_platform, "sev-1")))
            group = parameters["chain"]["ca" if name in ("ask", "ark") else "sev"]
            group[name] = (group[name] + [0] * 2085)[:size]
            answer = api.auth("sev", parameters)
            # what stands behind ASK and ARK in a client's buffer does not count
            fits = name in ("ask", "ark") and size == 2083
            assert (answer.status_code == 200) is fits, (name, size)
            assert answer.status_code in (200, 400, 401)


def test_a_body_that_stalls_holds_nobody_up(
    start_workloads: WorkloadBrokerFactory, milan: SoftwareSnpPlatform
) -> None:
    broker = start_workloads(tables={"limits": {"request_timeout_seconds": 1}})
    api = Api(broker)
    api.register(snp_workload())
    host, port = broker.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stalled:
        head = f"POST {BASE}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
        stalled.sendall(head.encode())
        session = SnpSession.begin(api, milan)
        assert session.attest().status_code == 200
        assert b" 408 " in stalled.recv(4096).split(b"\r\n")[0]


def test_only_so_many_verifications_are_in_work_at_once(
    start_workloads: WorkloadBrokerFactory, sev_platform: SoftwareSevPlatform
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    broker = start_workloads(tables={"limits": {"max_attestations_in_flight": 1}})
    api = Api(broker)
    api.register(sev_workload())

    def begin(number: int) -> int:
        parameters = sev_parameters(SoftwareSevPlatform.create(), "sev-1")
        return Api(broker).auth("sev", parameters if number % 2 else trusted).status_code

    trusted = sev_parameters(sev_platform, "sev-1")
    with ThreadPoolExecutor(4) as pool:
        statuses = set(pool.map(begin, range(12)))
    assert statuses <= {200, 401, 429}
    assert api.auth("sev", trusted).status_code == 200


def test_a_registration_that_says_another_tee_than_before(
    api: Api, milan: SoftwareSnpPlatform
) -> None:
    api.register(snp_workload("sev-1"))
    session = SnpSession.begin(api, milan, "sev-1")
    evidence = session.evidence(measurement=SNP_MEASUREMENT)
    assert session.attest(evidence).status_code == 200
