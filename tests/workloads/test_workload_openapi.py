"""The hand-written OpenAPI document of workloads is the contract: the server is held to it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import RunningBroker
from tests.workloads.conftest import WorkloadBrokerFactory
from tests.workloads.wire import Api, snp_workload

#: What the schema cannot say: texts hold JSON of their own, byte strings are certificates, and a
#: random measurement is nobody's. It is refused with one of these.
SETTINGS = """
[[operations]]
include-name = [
    "POST /register_workload", "POST /auth", "POST /attest",
    "GET /key/{workload_id}", "GET /workloads/{workload_id}", "DELETE /workloads/{workload_id}",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404"]
"""


def test_schemathesis_finds_no_failure(
    start_workloads: WorkloadBrokerFactory,
    administration: tuple[dict[str, Any], str],
    tmp_path: Path,
) -> None:
    table, token = administration
    broker = start_workloads(tables={"admin": table})
    Api(broker, headers={"authorization": f"Bearer {token}"}).register(snp_workload())
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            "--config-file",
            str(tmp_path / "schemathesis.toml"),
            "run",
            f"{broker.url}/workload/openapi.json",
            "-H",
            f"Authorization: Bearer {token}",
            "--max-examples",
            "20",
            "--report-dir",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert broker.process.poll() is None
    assert "Traceback" not in broker.log_text


def test_the_document_and_its_page_are_served_below_the_prefix(
    workload_broker: RunningBroker,
) -> None:
    with workload_broker.http() as http:
        document = http.get("/workload/openapi.json").json()
        page = http.get("/workload/docs")
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/register_workload", "/workloads", "/workloads/{workload_id}", "/auth", "/attest",
        "/key/{workload_id}",
    }  # fmt: skip
    assert page.status_code == 200
    assert "registered workloads" in page.text
