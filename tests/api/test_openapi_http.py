"""The hand-written OpenAPI document is the contract: the server is held to it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from tests.conftest import BrokerFactory, RunningBroker

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def administered(start_broker: BrokerFactory, tmp_path: Path) -> RunningBroker:
    """A broker whose administrators need a token."""
    from keybroker.cli.admin_token import issue_admin_token
    from keybroker.cli.keygen import write_admin_key_pair

    write_admin_key_pair(tmp_path / "admin.key", tmp_path / "admin.pub")
    broker = start_broker(
        admin={
            "authorization_mode": "AuthenticatedAuthorization",
            "authentication": {
                "bearer_jwt": {
                    "identity_providers": [
                        {"issuer": "test", "public_key_uri": str(tmp_path / "admin.pub")}
                    ]
                }
            },
            "authorization": {
                "regex_acl": {"acls": [{"role": "admin", "allowed_endpoints": "^/kbs/.+$"}]}
            },
        }
    )
    broker.admin_token = issue_admin_token(
        (tmp_path / "admin.key").read_bytes(), role="admin", issuer="test", seconds=600
    )
    return broker


def test_schemathesis_finds_no_failure(administered: RunningBroker, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            "--config-file",
            str(ROOT / "schemathesis.toml"),
            "run",
            f"{administered.url}/openapi.json",
            "-H",
            f"Authorization: Bearer {administered.admin_token}",
            "--max-examples",
            "25",
            "--report-dir",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert administered.process.poll() is None
    assert "Traceback" not in administered.log_text


def test_the_document_that_is_served_is_the_one_in_the_repository(broker: RunningBroker) -> None:
    with broker.http() as http:
        served = http.get("/openapi.json").json()
    assert served == yaml.safe_load((ROOT / "openapi" / "kbs.yaml").read_text())
    assert served["openapi"] == "3.1.0"


def test_the_page_shows_every_operation_and_loads_nothing_from_elsewhere(
    broker: RunningBroker,
) -> None:
    with broker.http() as http:
        answer = http.get("/docs")
        served = http.get("/openapi.json").json()
    assert answer.headers["content-type"].startswith("text/html")
    for path in served["paths"]:
        assert path in answer.text
    assert "<script" not in answer.text
    assert "http://" not in answer.text.replace("https://", "")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_every_answer_of_an_error_has_the_form_of_the_document(broker: RunningBroker) -> None:
    with broker.http() as http:
        answers: list[httpx.Response] = [
            http.get("/kbs/v0/resource/a/b/c"),
            http.post("/kbs/v0/auth", content=b"{"),
            http.get("/kbs/v0/none"),
            http.put("/kbs/v0/auth"),
        ]
    for answer in answers:
        assert set(answer.json()) == {"type", "detail"}
        assert answer.headers["x-request-id"]
