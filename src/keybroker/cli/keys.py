"""``keybroker keys``: the daily work with keys, transfer policies and users of ``/kbs/v1``.

Results go to standard output, as JSON where they are records; everything else to standard error.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keybroker.cli.client_attester import make_attester
from keybroker.cli.client_output import write_secret
from keybroker.client.attesters.detect import detect
from keybroker.client.errors import ClientError, InputError
from keybroker.client.held_key import HeldKeyPair
from keybroker.client.key_transfer import KeyTransferAdmin, KeyTransferGuest

URL_VARIABLE = "KBS_URL"
USERNAME_VARIABLE = "KBS_USERNAME"
PASSWORD_VARIABLE = "KBS_PASSWORD"  # noqa: S105 # nosec B105 - the name of a variable

#: No key, token, policy or password that is read from a file is longer.
_MAX_FILE_BYTES = 1 << 20


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser("keys", help="keep keys and transfer them to TEEs (/kbs/v1)")
    parser.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE, "https://127.0.0.1:9443"),
        help=f"root of the broker (default: ${URL_VARIABLE} or https://127.0.0.1:9443)",
    )
    parser.add_argument(
        "--cert-file",
        metavar="FILE",
        action="append",
        default=[],
        help="PEM file of a root to trust, such as the broker's own certificate",
    )
    parser.add_argument(
        "--username",
        default=os.environ.get(USERNAME_VARIABLE, "admin"),
        help=f"default: ${USERNAME_VARIABLE} or admin",
    )
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help=f"default: ${PASSWORD_VARIABLE} holds the password itself",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _key_commands(commands)
    _policy_commands(commands)
    _user_commands(commands)
    _transfer_command(commands)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 where it failed."""
    work: Callable[[argparse.Namespace], None] = options.work
    try:
        work(options)
    except ClientError as error:
        print(f"keybroker keys: {error}", file=sys.stderr)
        return 1
    return 0


def _key_commands(commands: Any) -> None:
    create = _command(commands, "create", _create, "make or register a key")
    create.add_argument("--algorithm", choices=["AES", "RSA", "EC"], default="AES")
    create.add_argument("--length", type=int, help="in bits (default: 256 for AES, 3072 for RSA)")
    create.add_argument("--curve", help="for EC (default: secp384r1)")
    create.add_argument("--policy", metavar="ID", help="transfer policy of the key")
    source = create.add_mutually_exclusive_group()
    source.add_argument(
        "--key-file", metavar="FILE", help="register this: octets of AES, PEM of others"
    )
    source.add_argument("--kmip-key-id", metavar="ID", help="register a key of the KMIP server")

    listing = _command(commands, "list", _list, "list keys")
    listing.add_argument("--algorithm")
    listing.add_argument("--length")
    listing.add_argument("--curve")
    listing.add_argument("--policy", metavar="ID")

    _with_id(_command(commands, "show", _show, "show a key's record"))
    _with_id(_command(commands, "delete", _delete, "delete a key"))
    set_policy = _with_id(
        _command(commands, "set-policy", _set_policy, "put a key under another transfer policy")
    )
    set_policy.add_argument("policy", metavar="POLICY", help="id of the policy")
    fetch = _with_id(_command(commands, "fetch", _fetch, "get a key as administrator"))
    _with_output(fetch)


def _policy_commands(commands: Any) -> None:
    policies = commands.add_parser("policy", help="transfer policies").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = _command(policies, "create", _create_policy, "make a transfer policy")
    create.add_argument("file", metavar="FILE", help="JSON; - reads standard input")
    _command(policies, "list", _list_policies, "list transfer policies")
    _with_id(_command(policies, "show", _show_policy, "show a transfer policy"))
    _with_id(_command(policies, "delete", _delete_policy, "delete a transfer policy"))


def _user_commands(commands: Any) -> None:
    users = commands.add_parser("user", help="users of this API").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = _command(users, "create", _create_user, "make a user")
    create.add_argument("name", metavar="NAME")
    create.add_argument("permissions", metavar="PERMISSION", nargs="+")
    create.add_argument("--new-password-file", metavar="FILE", required=True)
    _command(users, "list", _list_users, "list users")
    _with_id(_command(users, "delete", _delete_user, "delete a user"))


def _transfer_command(commands: Any) -> None:
    transfer = _with_id(
        _command(commands, "transfer", _transfer, "get a key as a workload that attests")
    )
    transfer.add_argument(
        "--attester", default="auto", help="as for keybroker client (default: this machine's TEE)"
    )
    transfer.add_argument(
        "--attestation-token", metavar="FILE", help="bring this token instead of evidence"
    )
    transfer.add_argument(
        "--held-key", metavar="FILE", help="RSA private key in PEM that the token attests"
    )
    _with_output(transfer)


def _command(
    commands: Any, name: str, work: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(work=work)
    return parser


def _with_id(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("id", metavar="ID")
    return parser


def _with_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="where the key goes"
    )


def _create(options: argparse.Namespace) -> None:
    length, curve = options.length, options.curve
    if options.algorithm == "EC":
        curve = curve or "secp384r1"
    elif length is None:
        length = 256 if options.algorithm == "AES" else 3072
    key_data = _read(options.key_file) if options.key_file else None
    with _admin(options) as admin:
        _print(
            admin.create_key(
                options.algorithm,
                length=length,
                curve=curve,
                policy_id=options.policy,
                key_data=key_data,
                kmip_key_id=options.kmip_key_id,
            )
        )


def _list(options: argparse.Namespace) -> None:
    filters = {
        "algorithm": options.algorithm,
        "keyLength": options.length,
        "curveType": options.curve,
        "transferPolicyId": options.policy,
    }
    with _admin(options) as admin:
        _print(admin.list_keys(**{name: value for name, value in filters.items() if value}))


def _show(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _print(admin.get_key(options.id))


def _delete(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        admin.delete_key(options.id)


def _set_policy(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _print(admin.set_policy(options.id, options.policy))


def _fetch(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _write(options.output, admin.fetch_key(options.id))


def _create_policy(options: argparse.Namespace) -> None:
    raw = sys.stdin.buffer.read(_MAX_FILE_BYTES) if options.file == "-" else _read(options.file)
    try:
        policy = json.loads(raw)
    except ValueError as error:
        raise InputError(f"the policy is not JSON: {error}") from None
    if not isinstance(policy, dict):
        raise InputError("a policy is a JSON object")
    with _admin(options) as admin:
        _print(admin.create_policy(policy))


def _list_policies(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _print(admin.list_policies())


def _show_policy(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _print(admin.get_policy(options.id))


def _delete_policy(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        admin.delete_policy(options.id)


def _create_user(options: argparse.Namespace) -> None:
    password = _password_in(options.new_password_file)
    with _admin(options) as admin:
        _print(admin.create_user(options.name, password, options.permissions))


def _list_users(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        _print(admin.list_users())


def _delete_user(options: argparse.Namespace) -> None:
    with _admin(options) as admin:
        admin.delete_user(options.id)


def _transfer(options: argparse.Namespace) -> None:
    held = HeldKeyPair.from_pem(_read(options.held_key)) if options.held_key else None
    with KeyTransferGuest(options.url, root_certs=options.cert_file) as guest:
        if options.attestation_token:
            if held is None:
                raise InputError("--attestation-token needs the --held-key that it attests")
            token = _read(options.attestation_token).decode("ascii", "replace").strip()
            key = guest.transfer_with_token(options.id, token, held)
        else:
            attester = make_attester(options.attester, None) or detect()
            key = guest.transfer(options.id, attester, held)
    _write(options.output, key)


def _admin(options: argparse.Namespace) -> KeyTransferAdmin:
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if options.password_file:
        password = _password_in(options.password_file)
    if not password:
        raise InputError(f"no password: give --password-file or set {PASSWORD_VARIABLE}")
    admin = KeyTransferAdmin(options.url, root_certs=options.cert_file)
    try:
        admin.login(options.username, password)
    except BaseException:
        admin.close()
        raise
    return admin


def _password_in(path: str) -> str:
    try:
        return _read(path).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8") from None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _write(path: Path, key: bytes) -> None:
    try:
        write_secret(path, key)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2))
