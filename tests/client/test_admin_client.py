"""Administrators: every operation, blocking and for asyncio, and TLS."""

import datetime
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from broker_simulator import ADMIN_TOKEN, BrokerSimulator, Reply, document
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keybroker.client import AdminClient, AsyncAdminClient, GuestClient
from keybroker.client.attesters import SampleAttester
from keybroker.client.errors import (
    InputError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
    UntrustedServerError,
)


@pytest.fixture
def admin(simulator: BrokerSimulator) -> Iterator[AdminClient]:
    with AdminClient(simulator.url, ADMIN_TOKEN) as client:
        yield client


def test_secrets_are_set_listed_and_deleted(simulator: BrokerSimulator, admin: AdminClient) -> None:
    admin.set_resource("other/key/2", b"\0\xff")
    assert simulator.resources["other/key/2"] == b"\0\xff"
    assert admin.list_resources() == ["default/key/1", "other/key/2"]
    assert admin.list_resources("other") == ["other/key/2"]
    admin.delete_resource("other/key/2")
    with pytest.raises(NotFoundError):
        admin.delete_resource("other/key/2")


def test_policies_are_set_and_read(simulator: BrokerSimulator, admin: AdminClient) -> None:
    policy = "package policy\n# ünïcode ~~~???>>>\n"
    admin.set_resource_policy(policy)
    assert admin.get_resource_policy() == simulator.resource_policy == policy
    admin.set_attestation_policy(policy)
    admin.set_attestation_policy("package policy", "default_gpu")
    assert admin.list_attestation_policies() == ["default_cpu", "default_gpu"]
    assert admin.get_attestation_policy() == policy
    with pytest.raises(NotFoundError):
        admin.get_attestation_policy("absent")


@pytest.mark.parametrize("value", ["text", 7, True, ["a", "b"], {"major": 1}])
def test_reference_values_are_registered_and_read(admin: AdminClient, value: Any) -> None:
    admin.set_sample_reference_value("measurement", value)
    assert admin.get_reference_value("measurement") == value


def test_a_denial_is_explained(simulator: BrokerSimulator, admin: AdminClient) -> None:
    with GuestClient(simulator.url, SampleAttester(), devices=[]) as guest:
        token = guest.attest()
    assert admin.explain("default/key/1", token).allowed
    simulator.denied.add("default/key/1")
    explanation = admin.explain("default/key/1", token)
    assert not explanation.allowed
    (rule,) = explanation.rules
    assert (rule.line, rule.expression_line, rule.value) == (6, 7, "warning")
    (device,) = explanation.appraisal
    assert (device.submodule, device.status) == ("cpu0", "warning")
    assert device.rules[0].reference_value == ["bb"]


async def test_the_async_client_does_the_same(simulator: BrokerSimulator) -> None:
    async with AsyncAdminClient(simulator.url, ADMIN_TOKEN) as admin:
        await admin.set_resource("a/b/c", b"secret")
        assert "a/b/c" in await admin.list_resources()
        await admin.delete_resource("a/b/c")
        await admin.set_resource_policy("package policy")
        assert await admin.get_resource_policy() == "package policy"
        await admin.set_attestation_policy("package policy", "x")
        assert await admin.get_attestation_policy("x") == "package policy"
        assert await admin.list_attestation_policies() == ["x"]
        await admin.set_sample_reference_value("v", [1])
        assert await admin.get_reference_value("v") == [1]
        simulator.tokens["a.b.c"] = {}
        assert (await admin.explain("a/b/c", "a.b.c")).allowed


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_a_valid_token_the_hint_names_the_flag(
    simulator: BrokerSimulator, token: str | None
) -> None:
    with (
        AdminClient(simulator.url, token) as client,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        client.list_resources()
    assert "--admin-token-file" in caught.value.hint()


@pytest.mark.parametrize("token", ["a\nb", "ä", "a\0"])
def test_a_token_that_cannot_be_a_header_is_refused(token: str) -> None:
    with pytest.raises(InputError):
        AdminClient("http://127.0.0.1:1", token)


@pytest.mark.parametrize(
    "answer", [[], "x", None, {"resources": "abc"}, {"resources": [1]}, {"resources": {}}]
)
def test_a_list_that_is_none_is_a_protocol_error(
    simulator: BrokerSimulator, admin: AdminClient, answer: Any
) -> None:
    simulator.overrides["resource"] = [document(answer)]
    with pytest.raises(ProtocolError):
        admin.list_resources()


def test_other_nonsense_is_a_protocol_error(simulator: BrokerSimulator, admin: AdminClient) -> None:
    simulator.overrides = {
        "explain": [document([])],
        "attestation-policy": [document({"a": 1})],
        "resource-policy/resource-policy": [Reply(200, b"\xff")],
        "reference-value/x": [Reply(200, b"{")],
    }
    for ask in (
        lambda: admin.explain("a/b/c", "t"),
        admin.list_attestation_policies,
        admin.get_resource_policy,
        lambda: admin.get_reference_value("x"),
    ):
        with pytest.raises(ProtocolError):
            ask()


def test_what_has_no_json_form_is_refused(admin: AdminClient) -> None:
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(InputError):
            admin.set_sample_reference_value("x", value)
    with pytest.raises(InputError):
        admin.set_resource_policy("\ud800")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An HTTPS server that lists no resources, and the certificate that it signed itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"resources": []}')

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", folder / "cert.pem"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_broker_with_its_own_certificate_is_trusted_only_by_name(
    tls_server: tuple[str, Path],
) -> None:
    url, certificate = tls_server
    with AdminClient(url, root_certs=[certificate]) as client:
        assert client.list_resources() == []
    with AdminClient(url) as client, pytest.raises(UntrustedServerError) as caught:
        client.list_resources()
    assert "--cert-file" in caught.value.hint()


async def test_an_async_client_verifies_the_certificate_too(tls_server: tuple[str, Path]) -> None:
    async with AsyncAdminClient(tls_server[0]) as client:
        with pytest.raises(UntrustedServerError):
            await client.list_resources()
