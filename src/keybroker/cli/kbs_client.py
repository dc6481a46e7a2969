"""``kbs-client`` and ``keybroker client``: the SDK from the command line.

Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to standard output, everything else to
standard error.
"""

import argparse
import base64
import contextlib
import ipaddress
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keybroker.cli.client_arguments import parse_arguments
from keybroker.cli.client_attester import make_attester
from keybroker.cli.client_output import Output, readable_output, warn, write_secret
from keybroker.client import AdminClient, GuestClient, TeeKeyPair
from keybroker.client.errors import ClientError, DeniedError, InputError
from keybroker.client.handshake import make_init_data
from keybroker.kbs.policies import resource_policy

#: Below the home directory: Trustee's place, then ours.
ADMIN_TOKEN_FILES = (".trustee/admin-token", ".keybroker/admin-token")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        options = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    output = Output(options.json)
    try:
        with readable_output(), _warnings_shown():
            return _COMMANDS[options.command](options, output)
    except ClientError as error:
        output.error(error)
        return 1
    except KeyboardInterrupt:
        return 130


def _attest(options: argparse.Namespace, output: Output) -> int:
    with _guest(options) as guest:
        token = guest.attest()
    output.result(token, {"token": token})
    return 0


def _get_resource(options: argparse.Namespace, output: Output) -> int:
    token: str | None = None
    if options.attestation_token is not None:
        if options.tee_key_file is None:
            raise InputError("--attestation-token needs the --tee-key-file that it was made for")
        token = _read_text(options.attestation_token).strip()
    with _guest(options, token) as guest:
        if token is None:
            token = guest.attest()
        try:
            secret = guest.get_resource(options.path)
        except DeniedError as error:
            if not options.explain:
                raise
            output.error(error, with_hint=False)  # what it would suggest is done here
            with _admin(options) as admin:
                output.explanation(admin.explain(options.path, token))
            return 1
    if options.output is not None:
        try:
            write_secret(options.output, secret)
        except OSError as error:
            raise InputError(f"{error.strerror}: {options.output}") from None
    if options.raw:
        sys.stdout.buffer.write(secret)
    elif options.output is None:
        encoded = base64.b64encode(secret).decode()
        output.result(encoded, {"path": options.path, "resource": encoded})
    return 0


def _set_attestation_policy(options: argparse.Namespace, output: Output) -> int:
    policy = _read_text(options.policy_file)
    with _admin(options) as admin:
        admin.set_attestation_policy(policy, options.id, options.type)
    output.result("Set attestation policy success", {"policy_id": options.id})
    return 0


def _get_attestation_policy(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        policy = admin.get_attestation_policy(options.id)
    output.result(policy, {"policy_id": options.id, "policy": policy})
    return 0


def _list_attestation_policies(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        names = admin.list_attestation_policies()
    output.result("\n".join(names), {"policies": names})
    return 0


def _set_resource_policy(options: argparse.Namespace, output: Output) -> int:
    if options.policy_file is not None:
        policy = _read_text(options.policy_file)
    else:
        policy = resource_policy(options.built_in)
    with _admin(options) as admin:
        admin.set_resource_policy(policy)
    output.result("Set resource policy success", {"policy": options.built_in or "file"})
    return 0


def _get_resource_policy(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        policy = admin.get_resource_policy()
    output.result(policy, {"policy": policy})
    return 0


def _set_resource(options: argparse.Namespace, output: Output) -> int:
    secret = _read_bytes(options.resource_file)
    with _admin(options) as admin:
        admin.set_resource(options.path, secret)
    # Trustee's client prints the secret here; a terminal's history is no place for it.
    output.result("Set resource success", {"path": options.path, "bytes": len(secret)})
    return 0


def _delete_resource(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        admin.delete_resource(options.path)
    output.result("Delete resource success", {"path": options.path})
    return 0


def _list_resources(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        paths = admin.list_resources(options.repository)
    output.result("\n".join(paths), {"resources": paths})
    return 0


def _get_reference_value(options: argparse.Namespace, output: Output) -> int:
    with _admin(options) as admin:
        value = admin.get_reference_value(options.id)
    Output(as_json=True).result("", {"id": options.id, "value": value} if output.as_json else value)
    return 0


def _set_sample_reference_value(options: argparse.Namespace, output: Output) -> int:
    value: Any = options.value
    if options.as_integer:
        try:
            value = int(value)
        except ValueError:
            raise InputError(f"{value!r} is not an integer") from None
    elif options.as_bool:
        if value not in ("true", "false"):
            raise InputError(f"{value!r} is neither true nor false")
        value = value == "true"
    if not options.as_single_value:
        value = [value]
    with _admin(options) as admin:
        admin.set_sample_reference_value(options.name, value)
    output.result("Reference Values Updated", {"id": options.name, "value": value})
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Output], int]] = {
    "attest": _attest,
    "get-resource": _get_resource,
    "set-attestation-policy": _set_attestation_policy,
    "get-attestation-policy": _get_attestation_policy,
    "list-attestation-policies": _list_attestation_policies,
    "set-resource-policy": _set_resource_policy,
    "get-resource-policy": _get_resource_policy,
    "set-resource": _set_resource,
    "delete-resource": _delete_resource,
    "list-resources": _list_resources,
    "get-reference-value": _get_reference_value,
    "set-sample-reference-value": _set_sample_reference_value,
}


def _guest(options: argparse.Namespace, token: str | None = None) -> GuestClient:
    tee_key = None
    if options.tee_key_file is not None:
        tee_key = TeeKeyPair.from_pem(_read_bytes(options.tee_key_file))
    init_data = make_init_data(options.init_data) if options.init_data is not None else None
    return GuestClient(
        options.url,
        make_attester(options.attester, init_data) if token is None else None,
        tee_key=tee_key,
        token=token,
        init_data=init_data,
        root_certs=_root_certs(options),
    )


def _admin(options: argparse.Namespace) -> AdminClient:
    token = administrator_token(options.url, options.admin_token_file)
    return AdminClient(options.url, token, root_certs=_root_certs(options))


def administrator_token(url: str, named: Path | None) -> str | None:
    """Return the administrator's token, if there is one; warn where it is not as it should be.

    Args:
        url: where the token is to be sent.
        named: file that holds the token; None: one of the usual places.

    Raises:
        InputError: the file cannot be read.
    """
    token = _admin_token(named)
    if token is None:
        warn(
            "no administrator token: asking anonymously, which works only with"
            ' authorization_mode = "InsecureAllowAll"'
        )
    elif urlsplit(url).scheme == "http" and not _is_loopback(url):
        warn("the administrator token goes over plain HTTP: use an https URL")
    return token


def _admin_token(named: Path | None) -> str | None:
    if named is not None:
        return _read_text(named).strip()
    for name in ADMIN_TOKEN_FILES:
        with contextlib.suppress(FileNotFoundError, RuntimeError):  # no file, no home
            path = Path.home() / name
            path.stat()
            return _read_text(path).strip()
    return None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _root_certs(options: argparse.Namespace) -> list[Path]:
    return [] if options.cert_file is None else [options.cert_file]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{error.strerror}: {path}") from None


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"not UTF-8 text: {path}") from None


class _WarningHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextlib.contextmanager
def _warnings_shown() -> Iterator[None]:
    logger = logging.getLogger("keybroker.client")
    handler = _WarningHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
