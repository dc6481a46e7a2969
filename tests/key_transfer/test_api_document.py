"""The OpenAPI document is the contract: the server is held to it by schemathesis."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.key_transfer.conftest import StartKbs

from keybroker.key_transfer.transfer_policy import ATTESTATION_TYPES

DOCUMENT = Path(__file__).parent.parent.parent / "openapi" / "key-transfer.yaml"

#: What a schema cannot say: a policy must name something, a key must be the one that is said, a
#: policy that a key names must exist, a PEM must be one, and a password is right or wrong.
SETTINGS = """
[[operations]]
include-name = ["POST /kbs/v1/key-transfer-policies", "POST /kbs/v1/keys", "POST /kbs/v1/users",
  "PUT /kbs/v1/users/{id}", "PUT /kbs/v1/keys/{id}", "POST /kbs/v1/keys/{id}",
  "POST /kbs/v1/keys/{id}/transfer", "POST /kbs/v1/token"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "404", "429"]
"""


#: These would end the very token that schemathesis comes with, were it to learn its user's id.
USER_CHANGES = ["updateUser", "deleteUser"]


@pytest.mark.parametrize("choice", ["--exclude-operation-id", "--include-operation-id"])
def test_schemathesis_finds_no_failure(start_kbs: StartKbs, tmp_path: Path, choice: str) -> None:
    admin = start_kbs(token_validity_minutes=30, lockout={"max_attempts": 1000})
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            "--config-file",
            str(tmp_path / "schemathesis.toml"),
            "run",
            f"{admin.broker.url}/kbs/v1/openapi.json",
            "-H",
            f"Authorization: Bearer {admin.token}",
            "-H",
            # The original wants the very media type; a list with it is taken as well.
            "Accept: application/json, application/jwt",
            *(argument for name in USER_CHANGES for argument in (choice, name)),
            "--max-examples",
            "12",
            "--report-dir",
            str(tmp_path),
        ],
        cwd=tmp_path,
        env=os.environ
        | {"SCHEMATHESIS_HOOKS": str(Path(__file__).parent / "schemathesis_hooks.py")},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert admin.broker.process.poll() is None
    assert "Traceback" not in admin.broker.log_text


def test_the_document_is_served_with_its_page_and_needs_no_token(start_kbs: StartKbs) -> None:
    admin = start_kbs()
    served = admin.http.get("/kbs/v1/openapi.json")
    assert served.json() == yaml.safe_load(DOCUMENT.read_text())
    page = admin.http.get("/kbs/v1/docs")
    assert page.status_code == 200
    for path in served.json()["paths"]:
        assert f"<code>{path}</code>" in page.text
    types = served.json()["components"]["schemas"]["AttestationType"]["enum"]
    assert set(types) == set(ATTESTATION_TYPES)
