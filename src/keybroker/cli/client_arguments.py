"""The command line of ``kbs-client``: Trustee's commands and flags, and a few more.

Options that belong to every command are taken before and after it.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from keybroker import __version__
from keybroker.client.admin import DEFAULT_POLICY_ID

DEFAULT_URL = "http://127.0.0.1:8080"

#: Names the attester where ``--attester`` does not.
ATTESTER_VARIABLE = "KBS_ATTESTER"

_EPILOG = """\
exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage

Options of every command may stand before or after it. Administrators' commands take the token
from --admin-token-file, else from ~/.trustee/admin-token, else from ~/.keybroker/admin-token,
else they ask anonymously.
"""

_ATTESTER_HELP = (
    "what makes evidence: auto (this machine's TEE), tsm, sample, file:[TEE:]PATH or"
    f" softtee-snp:DIR (default: ${ATTESTER_VARIABLE}, else auto)"
)

_PATH_HELP = "path of the resource: repository/type/tag, or kbs:///repository/type/tag"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; ``command`` holds the name of the command that was given.

    Raises:
        SystemExit: help was asked for (code 0), or the usage is wrong (code 2).
    """
    options = _make_parser().parse_args(argv)
    defaults: tuple[tuple[str, object], ...] = (
        ("url", DEFAULT_URL),
        ("cert_file", None),
        ("json", False),
        ("admin_token_file", None),
        ("attester", os.environ.get(ATTESTER_VARIABLE) or "auto"),
    )
    for name, value in defaults:
        vars(options).setdefault(name, value)
    return options


def _make_parser() -> argparse.ArgumentParser:
    common = _options()
    common.add_argument("--url", help=f"root URL of the broker (default: {DEFAULT_URL})")
    common.add_argument(
        "--cert-file", type=Path, metavar="FILE", help="root certificate of the broker, PEM"
    )
    common.add_argument("--json", action="store_true", help="print JSON, for scripts")
    admin = _options()
    admin.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="administrator's bearer token"
    )
    parser = argparse.ArgumentParser(
        prog="kbs-client",
        description="Talk to a key broker, as a guest or as an administrator.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"kbs-client {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _guest_commands(_adder(commands, [common]), admin)
    config = commands.add_parser(
        "config",
        help="set and read what a broker is set up with",
        description="Set and read what a broker is set up with; needs an administrator's token.",
        parents=[common, admin],
        allow_abbrev=False,
    )
    subcommands = config.add_subparsers(required=True, metavar="COMMAND")
    _config_commands(_adder(subcommands, [common, admin]))
    return parser


#: Adds a command by its name and what it does, with further parents if any.
_Adder = Callable[..., argparse.ArgumentParser]


def _adder(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    parents: list[argparse.ArgumentParser],
) -> _Adder:
    def add(name: str, text: str, *more: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[*parents, *more],
            allow_abbrev=False,
        )
        parser.set_defaults(command=name)
        return parser

    return add


def _options() -> argparse.ArgumentParser:
    # Without defaults: one given before the command must not be overwritten after it.
    return argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)


def _guest_commands(add: _Adder, admin: argparse.ArgumentParser) -> None:
    guest = argparse.ArgumentParser(add_help=False)
    guest.add_argument(
        "--tee-key-file",
        type=Path,
        metavar="FILE",
        help="private key of the TEE, PEM (default: a new one on P-256)",
    )
    guest.add_argument("--attester", default=argparse.SUPPRESS, help=_ATTESTER_HELP)
    guest.add_argument(
        "init_data",
        nargs="?",
        help="plain text of the init-data that was measured at launch, TOML or JSON",
    )
    add("attest", "attest and print the attestation token", guest)

    get = add("get-resource", "attest and print a secret, in base64", guest, admin)
    get.add_argument("--path", required=True, help=_PATH_HELP)
    get.add_argument(
        "--attestation-token",
        type=Path,
        metavar="FILE",
        help="show this token instead of attesting; needs its --tee-key-file",
    )
    get.add_argument("--raw", action="store_true", help="print the secret's bytes as they are")
    get.add_argument(
        "--output", type=Path, metavar="FILE", help="write the secret's bytes to a file, mode 0600"
    )
    get.add_argument(
        "--explain",
        action="store_true",
        help="if the policy denies it, say why; needs an administrator's token",
    )


def _config_commands(add: _Adder) -> None:
    policy = add("set-attestation-policy", "set a policy that appraises evidence")
    policy.add_argument("--type", default="rego", help="kind of policy (default: rego)")
    policy.add_argument("--id", default=DEFAULT_POLICY_ID, help=f"default: {DEFAULT_POLICY_ID}")
    policy.add_argument("--policy-file", type=Path, required=True, metavar="FILE")

    get_policy = add("get-attestation-policy", "print a policy that appraises evidence")
    get_policy.add_argument("--id", default=DEFAULT_POLICY_ID, help=f"default: {DEFAULT_POLICY_ID}")
    add("list-attestation-policies", "print the names of the policies that appraise evidence")

    resource_policy = add("set-resource-policy", "set the policy that decides on releases")
    which = resource_policy.add_mutually_exclusive_group(required=True)
    which.add_argument("--policy-file", type=Path, metavar="FILE")
    for flag, text in (
        ("--allow-all", "every attested guest gets everything"),
        ("--deny-all", "nobody gets anything"),
        ("--affirming", "only guests whose every device is affirmed"),
        ("--default", "attested guests, except with sample evidence"),
    ):
        name = flag.removeprefix("--").replace("-", "_")
        which.add_argument(flag, dest="built_in", action="store_const", const=name, help=text)
    add("get-resource-policy", "print the policy that decides on releases")

    resource = add("set-resource", "store a secret")
    resource.add_argument("--path", required=True, help=_PATH_HELP)
    resource.add_argument("--resource-file", type=Path, required=True, metavar="FILE")
    delete = add("delete-resource", "delete a secret")
    delete.add_argument("--path", required=True, help=_PATH_HELP)
    listing = add("list-resources", "print the paths of all secrets")
    listing.add_argument("--repository", help="only those of this repository")

    value = add("get-reference-value", "print a reference value")
    value.add_argument("--id", required=True, help="name of the reference value")
    sample = add(
        "set-sample-reference-value",
        "register a reference value without provenance; the sample extractor must be on",
    )
    sample.add_argument("name", help="of the reference value")
    sample.add_argument("value", help="text unless told otherwise")
    kind = sample.add_mutually_exclusive_group()
    kind.add_argument("--as-integer", action="store_true", help="the value is an integer")
    kind.add_argument("--as-bool", action="store_true", help="the value is true or false")
    sample.add_argument(
        "--as-single-value", action="store_true", help="not as the only member of a list"
    )
