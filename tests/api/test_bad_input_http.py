"""What clients send that they should not: a clear error each, and the broker lives."""

import json
import socket
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.conftest import BrokerFactory, RunningBroker

AUTH = {"version": "0.4.0", "tee": "sample", "extra-params": ""}


def alive(broker: RunningBroker) -> bool:
    with broker.http() as http:
        return http.post("/kbs/v0/auth", json=AUTH).status_code == 200


def raw(broker: RunningBroker, data: bytes, *, seconds: float = 10) -> bytes:
    """Send bytes as they are and return what comes back until the broker closes or is silent."""
    parts = urlsplit(broker.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer and b"connection: close" not in data.lower():
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[]", "Expected"),
        (b'"x"', "Expected"),
        (b"{}", "version"),
        (b'{"version":1,"tee":"sample"}', "Expected `str`"),
        (b'{"version":"0.4.0","tee":"sample","tee":"snp"}', "twice"),
        (b'{"version":"0.4.0","tee":"nosuch"}', "unknown tee"),
        (b'{"version":"0.4.0","tee":"sample","extra-params":' + b"[" * 40 + b"]" * 40 + b"}", "32"),
        (b'{"version":"0.4.0","tee":"sample","extra-params":NaN}', "NaN"),
    ],
)
def test_a_malformed_request_is_400_and_says_what_is_wrong(
    broker: RunningBroker, body: bytes, words: str
) -> None:
    with broker.http() as http:
        answer = http.post(
            "/kbs/v0/auth", content=body, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 400
    assert words in answer.json()["detail"]
    assert answer.json()["type"].startswith(
        "https://github.com/confidential-containers/kbs/errors/"
    )
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("version", ["0.1.0", "0.1.1", "0.3.0", "0.4.1", "1.0.0", "", "x"])
def test_another_protocol_version_is_told_so(broker: RunningBroker, version: str) -> None:
    with broker.http() as http:
        answer = http.post("/kbs/v0/auth", json={**AUTH, "version": version})
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("/ProtocolVersionMismatch")
    assert "0.4.0" in answer.json()["detail"]


@pytest.mark.parametrize(
    "target",
    [
        "/kbs/v0/resource/a/b/..%2fc",
        "/kbs/v0/resource/a/%2e%2e/c",
        "/kbs/v0/resource/a/b/c%00",
        "/kbs/v0/resource/../resource-policy",
        "/kbs/v0/resource/a//c",
        "/kbs/v0/resource/a/b/",
        "/kbs/v0//resource/a/b/c",
        "/kbs/v0/",
        "/kbs/v0/resource/./b/c",
        "/kbs/v0/" + "a" * 5000,
        "/kbs/v0/resource/" + "a" * 300 + "/b/c",
        "/kbs/v0/nosuchplugin/x",
        "/kbs/v0/auth/more",
        "/kbs/v1/none",
        "/nowhere",
    ],
)
def test_path_tricks_lead_nowhere(broker: RunningBroker, target: str) -> None:
    answer = raw(
        broker, f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
    )
    assert b" 404 " in answer.split(b"\r\n")[0], answer
    assert alive(broker)


@pytest.mark.parametrize(
    "target", ["/kbs/v0/resource/\xff/b/c", "http://[", "*", "/kbs/v0/resource/a/b/c d"]
)
def test_targets_that_are_no_targets_are_refused(broker: RunningBroker, target: str) -> None:
    answer = raw(broker, f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode("latin-1"))
    assert answer.split(b" ")[1][:1] == b"4", answer
    assert alive(broker)


@pytest.mark.parametrize("name", ["a b", ".hidden", "ä", "a+b"])
def test_resource_names_are_checked_even_for_administrators(
    broker: RunningBroker, name: str
) -> None:
    with broker.http() as http:
        answer = http.post(f"/kbs/v0/resource/repo/type/{name}", content=b"x")
    assert answer.status_code == 404


def test_a_body_over_the_limit_is_413_as_soon_as_that_is_known(broker: RunningBroker) -> None:
    head = "POST /kbs/v0/resource/a/b/c HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n"
    assert b" 413 " in raw(broker, head.encode())
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = "POST /kbs/v0/resource/a/b/c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert b" 413 " in raw(broker, head.encode() + chunk * 40)
    with broker.http() as http:
        assert http.post("/kbs/v0/resource/a/b/c", content=b"x" * 2 * 1024 * 1024).is_success
        assert (
            http.post("/kbs/v0/resource/a/b/c", content=b"x" * (2 * 1024 * 1024 + 1)).status_code
            == 413
        )
    assert alive(broker)


def test_a_request_that_stalls_is_sent_away(start_broker: BrokerFactory) -> None:
    broker = start_broker(limits={"request_timeout_seconds": 0.5})
    started = time.monotonic()
    answer = raw(
        broker, b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{", seconds=20
    )
    assert b" 408 " in answer
    assert time.monotonic() - started < 10
    assert alive(broker)


def test_a_head_without_end_is_sent_away(broker: RunningBroker) -> None:
    answer = raw(broker, b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 1_000_000, seconds=10)
    assert b" 431 " in answer or b" 400 " in answer
    assert alive(broker)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\n"
        b"authorization: Bearer b\r\n\r\n",
        b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-type: text/plain\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
def test_a_header_that_is_there_twice_is_malformed(broker: RunningBroker, head: bytes) -> None:
    assert b" 400 " in raw(broker, head).split(b"\r\n")[0]


def test_a_request_smuggled_by_two_lengths_is_refused(broker: RunningBroker) -> None:
    answer = raw(
        broker,
        b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    )
    assert b" 400 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS", "TRACE", "HEAD"])
def test_other_methods_are_405(broker: RunningBroker, method: str) -> None:
    with broker.http() as http:
        answer = http.request(method, "/kbs/v0/auth")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("authorization", ["Bearer", "Basic eDp5", "Bearer a.b.c", "x"])
def test_a_bad_bearer_token_is_401(broker: RunningBroker, authorization: str) -> None:
    with broker.http(headers={"authorization": authorization}) as http:
        answer = http.get("/kbs/v0/resource/a/b/c")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_nobody_is_not_authenticated(broker: RunningBroker) -> None:
    with broker.http() as http:
        for path in ("resource/a/b/c", "resource/not-a-path"):
            answer = http.get(f"/kbs/v0/{path}")
            assert answer.status_code == 401
            assert answer.json()["type"].endswith("/TokenNotFound")


def test_administration_needs_an_administrator(start_broker: BrokerFactory) -> None:
    broker = start_broker(admin={"authorization_mode": "DenyAll"})
    requests: list[tuple[str, str, Any]] = [
        ("POST", "resource/a/b/c", b"x"),
        ("DELETE", "resource/a/b/c", None),
        ("GET", "resource", None),
        ("POST", "resource-policy", b"{}"),
        ("GET", "resource-policy", None),
        ("GET", "resource-policy/resource-policy", None),
        ("POST", "attestation-policy", b"{}"),
        ("GET", "attestation-policy", None),
        ("GET", "attestation-policy/default_cpu", None),
        ("POST", "reference-value", b"{}"),
        ("GET", "reference-value/x", None),
        ("POST", "explain", b"{}"),
    ]
    with broker.http() as http:
        for method, path, body in requests:
            answer = http.request(method, f"/kbs/v0/{path}", content=body)
            assert answer.status_code in (401, 403), (method, path, answer.text)


def test_a_policy_that_does_not_compile_is_refused_and_the_old_one_stays(
    broker: RunningBroker,
) -> None:
    import base64

    def encoded(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    bad = encoded("package policy\n\nallow if {\n  x ==\n}\n")
    with broker.http() as http:
        before = http.get("/kbs/v0/resource-policy/resource-policy").text
        for path, body in (
            ("resource-policy", {"policy": bad}),
            ("attestation-policy", {"type": "rego", "policy_id": "default_cpu", "policy": bad}),
        ):
            answer = http.post(f"/kbs/v0/{path}", json=body)
            assert answer.status_code == 400
            assert "line 4" in answer.json()["detail"]
        for policy in ("*", "", encoded("\0"), base64.b64encode(b"\xff").decode()):
            assert http.post("/kbs/v0/resource-policy", json={"policy": policy}).status_code == 400
        assert http.get("/kbs/v0/resource-policy/resource-policy").text == before


def test_plain_http_to_a_tls_port_ends_nothing(start_broker: BrokerFactory, tmp_path: Any) -> None:
    from keybroker.api.certificates import self_signed

    self_signed(tmp_path, ["localhost", "127.0.0.1"])
    certificate = tmp_path / "https.crt"
    from tests.conftest import OPEN_CONFIG, merged, start_process

    config = merged(
        OPEN_CONFIG,
        {
            "http_server": {
                "insecure_http": False,
                "private_key": str(tmp_path / "https.key"),
                "certificate": str(certificate),
            }
        },
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    running = start_process(["kbs", "-c", str(path)], tmp_path, certificate=certificate)
    try:
        raw(running, b"GET / HTTP/1.1\r\n\r\n")
        parts = urlsplit(running.url)
        context = ssl.create_default_context(cafile=str(certificate))
        with (
            socket.create_connection((parts.hostname, parts.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
        with running.http() as http:
            answer = http.post("/kbs/v0/auth", json=AUTH)
        assert "Secure" in answer.headers["set-cookie"]
        assert "HttpOnly" in answer.headers["set-cookie"]
    finally:
        running.stop()
