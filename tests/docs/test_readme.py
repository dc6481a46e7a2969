"""The walk-throughs of the README, pasted as they stand."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

#: Ports that the README names, which a test must not take for granted.
PORTS = ("8080", "8081", "8082")

SECRET = "the secret"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    for named, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(f"127.0.0.1:{named}", f"127.0.0.1:{free}")
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def test_the_walk_throughs_can_be_pasted_line_by_line(tmp_path: Path) -> None:
    found = blocks()
    assert len(found) >= 5
    # `make env` is what this test runs in; a broker in the background is awaited as a person would.
    script = "set -m\n" + "\n".join(found).replace("make env\n", "")
    wait = "for try in $(seq 200); do curl -ksf {url}/readyz >/dev/null && break; sleep 0.1; done\n"
    script = re.sub(
        r"^(keybroker up .*--listen (\S+) .*&)\n(?=export KBS)",
        lambda match: match.group(0) + wait.format(url=f"https://{match.group(2)}"),
        script,
        flags=re.MULTILINE,
    )
    for address in re.findall(r'sockets = \["([\d.:]+)"\]', script):
        script = script.replace(
            'keybroker kbs -c "$DEMO/second.toml" &\n',
            'keybroker kbs -c "$DEMO/second.toml" &\n' + wait.format(url=f"http://{address}"),
        )
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    process = subprocess.Popen(
        ["bash"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(script, timeout=150)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    # Three times it is released: by the first policy, when affirmed, and to the passport's bearer.
    assert out.count(f"{SECRET}\n") == 3, out + err
    # And denied once, with the reason for the administrator.
    assert "launch_digest" in out + err
    assert "403" in err or "denied" in err.lower(), err
    assert "Traceback" not in out + err
    assert "no such" not in err.lower(), err


def test_every_file_that_the_readme_points_to_is_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
