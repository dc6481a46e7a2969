"""``kbs-client``: Trustee's commands and flags, output for people and scripts, exit codes."""

import base64
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from broker_simulator import ADMIN_TOKEN, BrokerSimulator

from keybroker.cli.kbs_client import main
from keybroker.client import KeyKind, TeeKeyPair
from keybroker.kbs.policies import RESOURCE_POLICIES, resource_policy

PATH = "default/key/1"
SECRET_BASE64 = base64.b64encode(b"first secret").decode()


class Command:
    """Runs the command line against a broker and keeps what it printed."""

    def __init__(self, simulator: BrokerSimulator, capsys: pytest.CaptureFixture[str]) -> None:
        self._simulator = simulator
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        code = main(["--url", self._simulator.url, *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def run(
    simulator: BrokerSimulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Command:
    """The command, with no home and with the sample attester."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KBS_ATTESTER", "sample")
    return Command(simulator, capsys)


@pytest.fixture
def admin_token(tmp_path: Path) -> Path:
    path = tmp_path / "admin-token"
    path.write_text(ADMIN_TOKEN + "\n")
    return path


def test_attest_prints_the_token(simulator: BrokerSimulator, run: Command) -> None:
    assert run("attest") == 0
    assert run.out.strip() in simulator.tokens
    assert run("attest", "--json") == 0
    assert json.loads(run.out)["token"] in simulator.tokens


def test_get_resource_prints_base64(run: Command) -> None:
    assert run("get-resource", "--path", PATH) == 0
    assert run.out == SECRET_BASE64 + "\n"
    assert run("--json", "get-resource", "--path", PATH) == 0
    assert json.loads(run.out) == {"path": PATH, "resource": SECRET_BASE64}


def test_a_secret_is_written_as_it_is(run: Command, tmp_path: Path) -> None:
    assert run("get-resource", "--path", PATH, "--raw") == 0
    assert run.out == "first secret"
    target = tmp_path / "secret"
    target.touch(0o644)
    assert run("get-resource", "--path", PATH, "--output", target) == 0
    assert target.read_bytes() == b"first secret"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run.out == ""
    assert run("get-resource", "--path", PATH, "--output", tmp_path / "no/such") == 1


@pytest.mark.parametrize("kind", [KeyKind.P256, KeyKind.RSA2048])
def test_a_token_and_its_key_get_a_resource(run: Command, tmp_path: Path, kind: KeyKind) -> None:
    key, token = tmp_path / "key.pem", tmp_path / "token"
    key.write_bytes(TeeKeyPair.generate(kind).to_pem())
    assert run("attest", "--tee-key-file", key) == 0
    token.write_text(run.out)
    assert (
        run(
            *("get-resource", "--path", PATH),
            *("--attestation-token", token, "--tee-key-file", key),
        )
        == 0
    )
    assert run.out.strip() == SECRET_BASE64
    assert run("get-resource", "--path", PATH, "--attestation-token", token) == 1
    assert "--tee-key-file" in run.err


def test_init_data_is_the_positional_argument(simulator: BrokerSimulator, run: Command) -> None:
    assert run("attest", 'algorithm = "sha256"') == 0
    assert simulator.attestations[0]["init-data"]["body"] == 'algorithm = "sha256"'


def test_global_options_may_stand_anywhere(
    simulator: BrokerSimulator, run: Command, admin_token: Path
) -> None:
    late = ["--json", "--url", simulator.url]
    for arguments in (
        ["--json", "config", "--admin-token-file", admin_token, "list-resources"],
        ["config", "--json", "list-resources", "--admin-token-file", admin_token],
        ["config", "list-resources", "--admin-token-file", admin_token, "--json"],
        ["config", "--admin-token-file", admin_token, "list-resources", *late],
    ):
        assert run(*arguments) == 0
        assert json.loads(run.out) == {"resources": [PATH]}


def test_resources_are_set_listed_and_deleted(
    simulator: BrokerSimulator, run: Command, admin_token: Path, tmp_path: Path
) -> None:
    file = tmp_path / "resource"
    file.write_bytes(b"\0binary")
    config = ("config", "--admin-token-file", admin_token)
    assert run(*config, "set-resource", "--path", "a/b/c", "--resource-file", file) == 0
    assert run.out == "Set resource success\n"
    assert simulator.resources["a/b/c"] == b"\0binary"
    assert run(*config, "list-resources", "--repository", "a") == 0
    assert run.out == "a/b/c\n"
    assert run(*config, "delete-resource", "--path", "a/b/c") == 0
    assert "a/b/c" not in simulator.resources


@pytest.mark.parametrize("name", RESOURCE_POLICIES)
def test_the_built_in_resource_policies_are_the_ones_named(
    simulator: BrokerSimulator, run: Command, admin_token: Path, name: str
) -> None:
    config = ("config", "--admin-token-file", admin_token)
    assert run(*config, "set-resource-policy", "--" + name.replace("_", "-")) == 0
    assert simulator.resource_policy == resource_policy(name)
    assert run(*config, "get-resource-policy") == 0
    assert run.out == resource_policy(name) + "\n"


def test_policies_come_from_files(
    simulator: BrokerSimulator, run: Command, admin_token: Path, tmp_path: Path
) -> None:
    file = tmp_path / "policy.rego"
    file.write_text("package policy\n")
    config = ("config", "--admin-token-file", admin_token)
    assert run(*config, "set-resource-policy", "--policy-file", file) == 0
    assert simulator.resource_policy == "package policy\n"
    assert run(*config, "set-attestation-policy", "--policy-file", file) == 0
    named = ("set-attestation-policy", "--type", "rego", "--id", "gpu", "--policy-file", file)
    assert run(*config, *named) == 0
    assert sorted(simulator.policies) == ["default_cpu", "gpu"]
    assert run(*config, "get-attestation-policy", "--id", "gpu") == 0
    assert run.out == "package policy\n\n"
    assert run(*config, "list-attestation-policies") == 0
    assert run.out == "default_cpu\ngpu\n"


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        (["name", "abc"], ["abc"]),
        (["name", "7", "--as-integer"], [7]),
        (["name", "true", "--as-bool"], [True]),
        (["--as-single-value", "name", "abc"], "abc"),
        (["--as-integer", "name", "-7", "--as-single-value"], -7),
    ],
)
def test_sample_reference_values_have_the_type_that_was_asked_for(
    simulator: BrokerSimulator,
    run: Command,
    admin_token: Path,
    arguments: list[str],
    stored: Any,
) -> None:
    config = ("config", "--admin-token-file", admin_token)
    assert run(*config, "set-sample-reference-value", *arguments) == 0
    assert simulator.reference_values["name"] == stored
    assert run(*config, "get-reference-value", "--id", "name") == 0
    assert json.loads(run.out) == stored


@pytest.mark.parametrize(("flag", "value"), [("--as-integer", "x"), ("--as-bool", "yes")])
def test_a_value_of_another_type_fails(
    run: Command, admin_token: Path, flag: str, value: str
) -> None:
    config = ("config", "--admin-token-file", admin_token)
    assert run(*config, "set-sample-reference-value", "name", value, flag) == 1


def test_the_admin_token_is_looked_for_at_home(run: Command, tmp_path: Path) -> None:
    assert run("config", "list-resources") == 1
    assert "anonymously" in run.err
    assert "--admin-token-file" in run.err
    for folder, token in ((".keybroker", ADMIN_TOKEN), (".trustee", "wrong")):
        (tmp_path / "home" / folder).mkdir(parents=True)
        (tmp_path / "home" / folder / "admin-token").write_text(token)
        expected = 0 if token == ADMIN_TOKEN else 1
        assert run("config", "list-resources") == expected
        assert "anonymously" not in run.err


def test_a_denial_is_explained_to_an_administrator(
    simulator: BrokerSimulator, run: Command, admin_token: Path
) -> None:
    simulator.denied.add(PATH)
    assert run("get-resource", "--path", PATH) == 1
    assert "--explain" in run.err
    explain = ("get-resource", "--path", PATH, "--explain", "--admin-token-file", admin_token)
    assert run(*explain) == 1
    assert run.out == ""
    for expected in ("line 7", 'is "warning"', 'snp_measurement is ["bb"]', "cpu0 is warning"):
        assert expected in run.err
    assert run(*explain, "--json") == 1
    first, second = run.err.splitlines()
    assert json.loads(first)["type"] == "PolicyDeny"
    assert json.loads(second)["allowed"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["config"],
        ["no-such"],
        ["get-resource"],
        ["config", "set-resource-policy"],
        ["config", "set-resource-policy", "--allow-all", "--deny-all"],
        ["config", "set-sample-reference-value", "a", "1", "--as-bool", "--as-integer"],
        ["attest", "--jso"],
    ],
)
def test_wrong_usage_is_2(run: Command, arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert "usage:" in run.err


def test_help_is_0(run: Command) -> None:
    assert run("--help") == 0
    assert "exit codes" in run.out
    assert run("config", "set-resource-policy", "--help") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["attest", "--attester", "nonsense"],
        ["attest", "--attester", "file:/absent"],
        ["attest", "--attester", "file:snp:/absent"],
        ["attest", "--tee-key-file", "/absent"],
        ["attest", "--tee-key-file", __file__],
        ["attest", "--cert-file", "/absent"],
        ["attest", "--url", "ftp://x"],
        ["attest", "--url", "http://127.0.0.1:1"],
        ["get-resource", "--path", "a//b"],
        ["config", "--admin-token-file", "/absent", "list-resources"],
    ],
    ids=" ".join,
)
def test_a_failure_is_1_with_a_reason(run: Command, arguments: list[str]) -> None:
    assert run(*arguments) == 1
    assert run.err.startswith("kbs-client: ")
    assert "Traceback" not in run.err
    assert run(*arguments, "--json") == 1
    assert json.loads(run.err.splitlines()[-1])["error"]


def test_evidence_may_come_from_a_file(
    simulator: BrokerSimulator, run: Command, tmp_path: Path
) -> None:
    file = tmp_path / "evidence:1.json"
    file.write_text('{"svn": "1", "report_data": "AAAA"}')
    assert run("attest", "--attester", f"file:{file}") == 1
    assert "refused" in run.err
    assert simulator.attestations[0]["tee-evidence"]["primary_evidence"]["report_data"] == "AAAA"


def test_a_software_platform_is_made_once_and_kept(
    simulator: BrokerSimulator, run: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "platform"
    text = 'algorithm = "sha384"'
    for first in (True, False):
        # The simulator knows samples only: it is what it was sent that counts.
        assert run("attest", "--attester", f"softtee-snp:{folder}", text) == 1
        assert ("root.pem" in run.err) is first
    sent = [
        attestation["tee-evidence"]["primary_evidence"] for attestation in simulator.attestations
    ]
    host_data = hashlib.sha384(text.encode()).digest()[:32]
    assert [bytes(evidence["attestation_report"]["host_data"]) for evidence in sent] == [
        host_data,
        host_data,
    ]
    assert sent[0]["cert_chain"][0] == sent[1]["cert_chain"][0]


@pytest.mark.parametrize("content", [None, "{}", "[]", "{"])
def test_a_folder_without_a_platform_is_refused(
    run: Command, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "platform.json").write_text(content)
    assert run("attest", "--attester", f"softtee-snp:{tmp_path}") == 1
    assert "Traceback" not in run.err


def test_a_machine_without_a_tee_is_warned(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(Path(place).exists() for place in ("/dev/sev-guest", "/dev/tdx_guest")):
        pytest.skip("this machine is a confidential guest")
    monkeypatch.delenv("KBS_ATTESTER")
    assert run("attest") == 0
    assert "proves nothing" in run.err
    assert os.environ.get("KBS_ATTESTER") is None
