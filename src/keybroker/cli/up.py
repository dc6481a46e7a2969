"""``keybroker up``: everything in one process, for a first try and for small installations.

On first start it makes, in one folder: a master key, a certificate for TLS, an administrator's key
and token, the SQLite storage, and a configuration file that says all this and can be edited.
"""

import argparse
import os
import sys
from pathlib import Path

from keybroker.api.certificates import self_signed
from keybroker.api.launch import launch
from keybroker.cli.admin_token import issue_admin_token
from keybroker.cli.keygen import write_admin_key_pair
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config
from keybroker.model.errors import ConfigError
from keybroker.storage.encryption import make_key_file

#: Overrides where things are kept.
HOME_VARIABLE = "KEYBROKER_HOME"

DEFAULT_SOCKET = "127.0.0.1:8080"

ISSUER = "keybroker-up"
AUDIENCE = "keybroker"

#: The token that ``up`` makes is for trying things out on one's own machine.
ADMIN_TOKEN_SECONDS = 365 * 24 * 3600


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "up", help="run everything in one process; makes what is missing on first start"
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".keybroker"),
        help=f"where everything is kept (default: ${HOME_VARIABLE} or ~/.keybroker)",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        default=DEFAULT_SOCKET,
        help=f"on first start: where to listen (default: {DEFAULT_SOCKET}; port 0: a free one)",
    )
    parser.add_argument(
        "--snp-root",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="on first start: trust this ARK beside AMD's, such as that of a software TEE",
    )
    parser.add_argument(
        "--allow-all",
        action="store_true",
        help="release everything to any attested client, even the sample TEE: for development",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make what is missing, then serve until told to stop."""
    home = options.home.absolute()
    path = home / "config.toml"
    if not path.exists():
        try:
            _make_home(home, options.listen, [root.absolute() for root in options.snp_root])
        except OSError as error:
            raise ConfigError(f"{home} cannot be prepared: {error}") from None
    config = load_config(path, KbsConfig)

    def listening(urls: list[str]) -> None:
        _say(home, path, urls)

    return launch(
        config,
        listening=listening,
        resource_policy="allow_all" if options.allow_all else None,
    )


def _make_home(home: Path, listen: str, roots: list[Path]) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_key_file(home / "master.key")
    host = listen.rpartition(":")[0].strip("[]")
    self_signed(home, ["localhost", "127.0.0.1", "::1", host])
    write_admin_key_pair(home / "admin.key", home / "admin.pub")
    token = issue_admin_token(
        (home / "admin.key").read_bytes(),
        role="admin",
        issuer=ISSUER,
        audience=AUDIENCE,
        seconds=ADMIN_TOKEN_SECONDS,
    )
    descriptor = os.open(home / "admin-token", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    # The file that makes the home complete comes last: a start that broke off begins anew.
    partial = home / "config.toml.partial"
    partial.write_text(_configuration(home, listen, roots), "utf-8")
    partial.rename(home / "config.toml")


def _configuration(home: Path, listen: str, roots: list[Path]) -> str:
    public_key = _text(home / "admin.pub")
    return f"""# Made by `keybroker up`; every key is explained in docs/configuration.md.

[http_server]
sockets = [{_text(listen)}]
private_key = {_text(home / "https.key")}
certificate = {_text(home / "https.crt")}
worker_count = 1

[admin]
authorization_mode = "AuthenticatedAuthorization"

[admin.authentication.bearer_jwt]
identity_providers = [
    {{ issuer = "{ISSUER}", audience = "{AUDIENCE}", public_key_uri = {public_key} }},
]

[admin.authorization.regex_acl]
acls = [{{ role = "admin", allowed_endpoints = "^/kbs/.+$" }}]

[attestation_service]
type = "coco_as_builtin"

[attestation_service.verifier_config.snp_verifier]
extra_trusted_roots = [{", ".join(_text(root) for root in roots)}]

[storage_backend]
storage_type = "Sqlite"

[storage_backend.backends.sqlite]
path = {_text(home / "keybroker.db")}

[encryption]
source = "file"
path = {_text(home / "master.key")}

[[plugins]]
name = "resource"
"""


def _text(value: object) -> str:
    """Quote a TOML basic string."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(character) < 0x20 for character in text):
        raise ConfigError("a path holds a control character")
    return f'"{text}"'


def _say(home: Path, path: Path, urls: list[str]) -> None:
    url = urls[0]
    admin = f"--admin-token-file {home / 'admin-token'}"
    client = f"kbs-client --url {url} --cert-file {home / 'https.crt'}"
    print(
        f"keybroker is listening on {', '.join(urls)}\n\n"
        f"  configuration  {path}\n"
        f"  everything     {home}\n"
        f"  API            {url}/docs\n\n"
        "set a secret, and read it as a guest:\n\n"
        f"  {client} config {admin} set-resource --path default/test/key --resource-file FILE\n"
        f"  {client} get-resource --path default/test/key\n",
        flush=True,
    )
    sys.stdout.flush()
