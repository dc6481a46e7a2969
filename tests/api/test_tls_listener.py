"""TLS settings, shown by handshakes of OpenSSL's own client with a listener that was configured."""

import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tls_server

from keybroker.api.certificates import self_signed
from keybroker.api.tls import openssl_environment, restart_with_settings, server_context
from keybroker.config.http_server import HttpServerConfig, TlsProfile, TlsVersion
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config
from keybroker.model.errors import ConfigError

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the openssl command is not installed"
)


def _config(directory: Path, **settings: str) -> HttpServerConfig:
    files = self_signed(directory, ["localhost", "127.0.0.1"])
    lines = [f'{key} = "{value}"' for key, value in settings.items()]
    path = directory / "kbs.toml"
    path.write_text(
        "\n".join(
            (
                "[admin]",
                'authorization_mode = "DenyAll"',
                "[http_server]",
                f'private_key = "{files.private_key}"',
                f'certificate = "{files.certificate}"',
                *lines,
            )
        )
    )
    return load_config(path, KbsConfig).http_server


@contextlib.contextmanager
def _listening(directory: Path, **settings: str) -> Iterator[int]:
    config = _config(directory, **settings)
    server = subprocess.Popen(
        [sys.executable, tls_server.__file__, str(directory / "kbs.toml")],
        env=os.environ | openssl_environment(config, directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline()
        assert port, server.communicate()[1]
        yield int(port)
    finally:
        server.kill()
        server.communicate()


def _handshake(port: int, *options: str) -> dict[str, str] | None:
    """Connect as ``openssl s_client`` does; None: the server refused."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options],
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    agreed = re.search(r"New, (\S+), Cipher is (\S+)", done.stdout)
    if agreed is None or agreed[2] == "(NONE)":
        return None
    group = re.search(
        r"(?:Server Temp Key|Peer Temp Key|Negotiated TLS1.3 group): (?:ECDH, )?([\w-]+)",
        done.stdout,
    )
    return {"version": agreed[1], "cipher": agreed[2], "group": group[1] if group else ""}


def test_the_intermediate_profile_speaks_both_versions_and_only_aead(tmp_path: Path) -> None:
    with _listening(tmp_path) as port:
        for version, name in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            agreed = _handshake(port, version)
            assert agreed is not None
            assert agreed["version"] == name
        assert _handshake(port, "-tls1_1", "-cipher", "ALL@SECLEVEL=0") is None
        assert _handshake(port, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256") is None
        assert _handshake(port, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256")


def test_the_old_profile_takes_older_ciphers_but_no_older_version(tmp_path: Path) -> None:
    with _listening(tmp_path, tls_profile="old") as port:
        assert _handshake(port, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256")
        assert _handshake(port, "-tls1_3")
        assert _handshake(port, "-tls1_1", "-cipher", "ALL@SECLEVEL=0") is None


def test_the_modern_profile_speaks_nothing_below_1_3(tmp_path: Path) -> None:
    with _listening(tmp_path, tls_profile="modern") as port:
        assert _handshake(port, "-tls1_3")
        assert _handshake(port, "-tls1_2") is None


def test_only_the_configured_suites_are_taken(tmp_path: Path) -> None:
    chosen = "TLS_CHACHA20_POLY1305_SHA256"
    with _listening(
        tmp_path, tls_profile="custom", tls_min_version="1.3", tls_ciphers=chosen
    ) as port:
        agreed = _handshake(port, "-tls1_3")
        assert agreed is not None
        assert agreed["cipher"] == chosen
        for other in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"):
            assert _handshake(port, "-tls1_3", "-ciphersuites", other) is None
        assert _handshake(port, "-tls1_2") is None


def test_only_the_configured_groups_are_taken(tmp_path: Path) -> None:
    with _listening(tmp_path, tls_profile="custom", tls_groups="secp384r1:X25519") as port:
        for group in ("P-384", "X25519"):
            assert _handshake(port, "-tls1_3", "-groups", group)
        for group in ("P-256", "P-521", "X448"):
            assert _handshake(port, "-tls1_3", "-groups", group) is None


def test_the_configured_groups_hold_in_tls_1_2_too(tmp_path: Path) -> None:
    with _listening(tmp_path, tls_profile="custom", tls_groups="secp256r1:secp384r1") as port:
        agreed = _handshake(port, "-tls1_2", "-groups", "X25519:P-256")
        assert agreed is not None
        assert agreed["group"] in ("P-256", "prime256v1")
        assert _handshake(port, "-tls1_2", "-groups", "X25519:X448") is None


def test_ciphers_of_both_versions_may_be_mixed(tmp_path: Path) -> None:
    mixed = "TLS_AES_128_GCM_SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"
    with _listening(tmp_path, tls_profile="custom", tls_ciphers=mixed) as port:
        new, older = _handshake(port, "-tls1_3"), _handshake(port, "-tls1_2")
        assert new is not None
        assert older is not None
        assert new["cipher"] == "TLS_AES_128_GCM_SHA256"
        assert older["cipher"] == "ECDHE-ECDSA-AES256-GCM-SHA384"
        assert _handshake(port, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256") is None


def test_the_newest_version_can_be_limited(tmp_path: Path) -> None:
    with _listening(tmp_path, tls_profile="custom", tls_max_version="1.2") as port:
        assert _handshake(port, "-tls1_2")
        assert _handshake(port, "-tls1_3") is None


@pytest.mark.skipif(
    ssl.OPENSSL_VERSION_INFO >= (3, 5), reason="this OpenSSL has post-quantum groups"
)
def test_a_post_quantum_group_that_is_not_there_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _listening(
        tmp_path, tls_profile="custom", tls_groups="X25519MLKEM768:X25519:secp256r1"
    ) as port:
        assert _handshake(port, "-tls1_3", "-groups", "X25519")
        assert _handshake(port, "-tls1_3", "-groups", "P-384") is None
    assert "X25519MLKEM768" in caplog.text
    with pytest.raises(ConfigError, match=r"OpenSSL 3\.5"):
        openssl_environment(_config(tmp_path, tls_groups="X25519MLKEM768"), tmp_path)


@pytest.mark.skipif(
    ssl.OPENSSL_VERSION_INFO < (3, 5), reason="this OpenSSL has no post-quantum groups"
)
def test_post_quantum_groups_are_offered_by_default(tmp_path: Path) -> None:
    with _listening(tmp_path) as port:
        assert _handshake(port, "-tls1_3", "-groups", "X25519MLKEM768")


def test_a_context_without_its_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not in force"):
        server_context(_config(tmp_path, tls_groups="X25519"))


def test_a_process_restarts_itself_with_its_file(tmp_path: Path) -> None:
    _config(tmp_path, tls_profile="custom", tls_groups="P-384")
    server = subprocess.Popen(
        [sys.executable, tls_server.__file__, str(tmp_path / "kbs.toml"), "--restart"],
        env=os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert _handshake(port, "-tls1_3", "-groups", "P-384")
        assert _handshake(port, "-tls1_3", "-groups", "X25519") is None
    finally:
        server.kill()
        server.communicate()


def test_a_runtime_directory_of_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    place = tmp_path / f"keybroker-{os.geteuid()}"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(ConfigError, match="only this user"):
        restart_with_settings(_config(tmp_path, tls_groups="P-384"))
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="only this user"):
        restart_with_settings(_config(tmp_path, tls_groups="P-384"))


def test_defaults_need_no_file(tmp_path: Path) -> None:
    assert openssl_environment(_config(tmp_path), tmp_path) == {}
    assert (
        openssl_environment(HttpServerConfig(insecure_http=True, tls_groups="X25519"), tmp_path)
        == {}
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_groups": "X25518"}, "did you mean 'x25519'"),
        ({"tls_ciphers": "TLS_AES_256_GCM_SHA385"}, "did you mean 'TLS_AES_256_GCM_SHA384'"),
        ({"tls_ciphers": "NO-SUCH-CIPHER"}, "OpenSSL knows none"),
        (
            {"tls_ciphers": "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA257"},
            "did you mean 'ECDHE-RSA-AES128-GCM-SHA256'",
        ),
        ({"tls_profile": "modern", "tls_max_version": "1.2"}, "starts at TLS 1.3"),
        ({"tls_groups": "X25519\nfoo"}, "unknown group"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    files = self_signed(tmp_path, ["localhost"])
    config = HttpServerConfig(
        private_key=str(files.private_key),
        certificate=str(files.certificate),
        tls_profile=TlsProfile(settings.get("tls_profile", "intermediate")),
        tls_max_version=TlsVersion(settings.get("tls_max_version", "1.3")),
        tls_ciphers=settings.get("tls_ciphers"),
        tls_groups=settings.get("tls_groups"),
    )
    with pytest.raises(ConfigError, match=re.escape(said)):
        openssl_environment(config, tmp_path)
        server_context(config)


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="private_key and certificate"):
        server_context(HttpServerConfig())
    absent = HttpServerConfig(private_key=str(tmp_path / "a"), certificate=str(tmp_path / "b"))
    with pytest.raises(ConfigError, match="cannot be read"):
        server_context(absent)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = self_signed(tmp_path / "one", ["localhost"])
    two = self_signed(tmp_path / "two", ["localhost"])
    with pytest.raises(ConfigError, match="not a PEM certificate"):
        server_context(
            HttpServerConfig(private_key=str(one.private_key), certificate=str(two.certificate))
        )
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        [
            "openssl",
            "pkey",
            "-in",
            one.private_key,
            "-aes256",
            "-passout",
            "pass:x",
            "-out",
            encrypted,
        ],
        check=True,
    )
    with pytest.raises(ConfigError, match="is encrypted"):
        server_context(
            HttpServerConfig(private_key=str(encrypted), certificate=str(one.certificate))
        )


def test_a_self_signed_certificate_names_what_it_is_for(tmp_path: Path) -> None:
    files = self_signed(tmp_path, ["broker.example", "::1", "127.0.0.1"])
    assert files.private_key.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        ["openssl", "x509", "-in", files.certificate, "-noout", "-ext", "subjectAltName"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "DNS:broker.example" in shown
    assert "IP Address:127.0.0.1" in shown
    assert "IP Address:0:0:0:0:0:0:0:1" in shown
    before = files.certificate.read_bytes()
    assert self_signed(tmp_path, ["other.example"]) == files
    assert files.certificate.read_bytes() == before


def test_a_client_that_pins_the_self_signed_certificate_connects(tmp_path: Path) -> None:
    import socket

    with _listening(tmp_path) as port:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "https.crt"))
        with (
            socket.create_connection(("127.0.0.1", port)) as connection,
            trusting.wrap_socket(connection, server_hostname="localhost") as stream,
        ):
            assert stream.recv(1) == b"."


@pytest.mark.parametrize("names", [[], ["a b\0"], ["x" * 64 + ".example"]])
def test_a_name_that_is_none_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        self_signed(tmp_path, names)
    assert not list(tmp_path.iterdir())
