"""docs/key-transfer.md, run as an operator would paste it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.key_transfer.key_servers import VaultServer, free_port
from tests.key_transfer.trust_authority_service import TrustAuthorityService
from tests.key_transfer.wire import HeldKey, b64

from keybroker.client.held_key import HeldKeyPair
from keybroker.config.kbs import KbsConfig
from keybroker.config.key_transfer import (
    KeyTransferConfig,
    KmipKeyManagerConfig,
    LockoutConfig,
    TrustAuthorityConfig,
    VaultKeyManagerConfig,
)
from keybroker.config.loader import load_config

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "key-transfer.md"

MRSIGNER = "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e"
KEY_ID = "5d3ab1c2-7a5e-4f6b-9a2e-0d1c2b3a4f5f"
POLICY_ID = "0855be44-45bd-4ff3-b545-7987e6a1c36c"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.M)


def test_the_move_from_the_original_works_line_by_line(
    openbao: VaultServer, held: HeldKey, tmp_path: Path
) -> None:
    home, port = tmp_path / "opt-kbs", free_port()
    leave_original(openbao, home)
    with TrustAuthorityService(tmp_path / "ita") as service:
        certs = home / "certs"
        certs.mkdir()
        (certs / "trustedca").symlink_to(service.trusted_ca)
        address, vault_port = openbao.url.removeprefix("http://").split(":")
        (tmp_path / "kbs.env").write_text(
            f"LOG_LEVEL=INFO\nSERVICE_PORT={port}\nSAN_LIST=127.0.0.1,localhost\n"
            "ADMIN_USERNAME=kbsadmin\nADMIN_PASSWORD=kbs admin password\n"
            f"KEY_MANAGER=VAULT\nVAULT_SERVER_IP={address}\nVAULT_SERVER_PORT={vault_port}\n"
            f"VAULT_CLIENT_TOKEN={openbao.token}\n"
            f"TRUSTAUTHORITY_API_URL={service.url}\nTRUSTAUTHORITY_BASE_URL={service.url}\n"
            f"TRUSTAUTHORITY_API_KEY=a2V5\n"
        )
        own = {
            "sgx_mrsigner": MRSIGNER,
            "sgx_isvprodid": 0,
            "sgx_isvsvn": 0,
            "attester_held_data": b64(held.user_data("SGX")),
        }
        (tmp_path / "token.jwt").write_text(service.token("SGX", own))
        (tmp_path / "held.pem").write_bytes(HeldKeyPair(held.key).to_pem())
        # The trap: a broker must not outlive a command that failed.
        script = "set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "KBS_HOME": str(home),
            "KBS_PORT": str(port),
            "KBS_CERT": str(certs / "tls" / "tls.crt"),
        }
        result = run(script + "".join(blocks("bash")), tmp_path, environment)
    log = (tmp_path / "kbs.log").read_text() if (tmp_path / "kbs.log").exists() else ""
    assert result.returncode == 0, result.stdout + result.stderr + log
    keys = json.loads((tmp_path / "keys.json").read_text())
    assert [key["id"] for key in keys] == [KEY_ID]
    assert keys[0]["transfer_policy_id"] == POLICY_ID
    assert len((tmp_path / "transferred.key").read_bytes()) == 32
    assert (tmp_path / "transferred.key").stat().st_mode & 0o777 == 0o600
    assert '"username": "operator"' in result.stdout
    assert KEY_ID in openbao.names()


def run(
    script: str, directory: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a script; whatever it started ends with it, also where it takes too long."""
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(script, process.returncode, out, errors)


def leave_original(openbao: VaultServer, home: Path) -> None:
    """What an original broker leaves behind: a key in Vault, a record and a policy on disk."""
    record = {
        "id": KEY_ID,
        "algorithm": "AES",
        "key_length": 256,
        "transfer_policy_id": POLICY_ID,
        "transfer_link": f"/kbs/v1/keys/{KEY_ID}/transfer",
        "created_at": "2023-05-04T06:30:35.085644391Z",
    }
    secret = {KEY_ID: json.dumps({**record, "key_data": b64(bytes(range(32)))})}
    openbao.call("POST", f"keybroker/{KEY_ID}", json=secret).raise_for_status()
    policy = {
        "id": POLICY_ID,
        "created_at": "2023-05-04T06:30:30Z",
        "attestation_type": "SGX",
        "sgx": {"attributes": {"mrsigner": [MRSIGNER]}},
    }
    for folder, name, document in (
        ("keys", KEY_ID, record),
        ("keys-transfer-policy", POLICY_ID, policy),
    ):
        (home / folder).mkdir(parents=True, exist_ok=True)
        (home / folder / name).write_text(json.dumps(document))


def test_the_table_of_the_document_is_a_configuration(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "kbs.toml"
    path.write_text('[admin]\nauthorization_mode = "DenyAll"\n' + text)
    table = load_config(path, KbsConfig).key_transfer
    assert table is not None
    assert table.trust_authority is not None


def test_every_key_of_the_table_is_on_the_page() -> None:
    quoted = set(
        re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`\n]+)`", DOCUMENT.read_text())))
    )
    structs = [
        KeyTransferConfig,
        LockoutConfig,
        TrustAuthorityConfig,
        VaultKeyManagerConfig,
        KmipKeyManagerConfig,
    ]
    names = {name for struct in structs for name in struct.__struct_fields__}
    assert names - {"lockout", "key_manager", "trust_authority"} - quoted == set()
