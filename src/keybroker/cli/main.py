"""The ``keybroker`` command: finds the subcommand and runs it.

Only the module of the command that was asked for is imported, so that each starts fast.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from keybroker import __version__
from keybroker.model.errors import KeybrokerError

#: Command → module in :mod:`keybroker.cli` and its line of help.
COMMANDS = {
    "up": ("up", "run everything in one process; makes keys, a token and storage on first start"),
    "kbs": ("kbs", "run the broker from a configuration file"),
    "verify": ("verify", "verify evidence in a file, without a server"),
    "collateral": ("collateral", "fetch, import and list collateral for TDX and SGX"),
    "workloads": ("workloads", "register, list and delete workloads; measure launches"),
    "client": ("kbs_client", "talk to a broker, as a guest or as an administrator (kbs-client)"),
    "keys": ("keys", "keep keys and transfer them to TEEs (the /kbs/v1 API)"),
    "keygen": ("keygen", "make keys for administrators, tokens and TLS"),
    "admin-token": ("admin_token", "issue an administrator's token"),
    "check-config": ("check_config", "say what a configuration file means"),
}


class _Command(Protocol):
    def add_parser(
        self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]"
    ) -> None: ...


class _Main(Protocol):
    def main(self, argv: Sequence[str] | None = None) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 well, 1 failed, 2 wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        return _help(name)
    module = importlib.import_module(f"keybroker.cli.{COMMANDS[name][0]}")
    if name == "client":
        return cast(_Main, module).main(arguments[1:])
    parser = argparse.ArgumentParser(prog="keybroker")
    cast(_Command, module).add_parser(parser.add_subparsers(required=True))
    try:
        options = parser.parse_args(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except KeybrokerError as error:
        print(f"keybroker {name}: {error.diagnostics()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has left (``| head``): nothing more can be said to them, nor may
        # the interpreter try to when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _help(name: str) -> int:
    if name in ("--version", "-V"):
        print(f"keybroker {__version__}")
        return 0
    wrong = name not in ("", "-h", "--help", "help")
    out = sys.stderr if wrong or not name else sys.stdout
    if wrong:
        print(f"keybroker: there is no command {name!r}\n", file=out)
    print("usage: keybroker COMMAND …\n", file=out)
    for command, (_, text) in COMMANDS.items():
        print(f"  {command:<14}{text}", file=out)
    print("\nkeybroker COMMAND --help says more of each.", file=out)
    return 2 if wrong or not name else 0


if __name__ == "__main__":
    sys.exit(main())
