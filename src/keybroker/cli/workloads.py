"""``keybroker workloads``: register, list and delete workloads, and measure launches."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from keybroker.cli.kbs_client import administrator_token
from keybroker.client.errors import ClientError, InputError
from keybroker.client.workloads import WorkloadClient
from keybroker.workloads.measurement import (
    DEFAULT_GUEST_FEATURES,
    Hypervisor,
    Launch,
    LaunchMode,
    launch_digest,
)

DEFAULT_URL = "http://127.0.0.1:8080/workload"

#: More than any passphrase may have; a larger file is another one.
_MAX_PASSPHRASE_FILE_BYTES = 4096


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser("workloads", help="registered workloads")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    broker = argparse.ArgumentParser(add_help=False)
    broker.add_argument(
        "--url", default=DEFAULT_URL, help="where workloads are served (default: %(default)s)"
    )
    broker.add_argument(
        "--cert-file", type=Path, metavar="FILE", help="root certificate of the broker, PEM"
    )
    broker.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="administrator's bearer token"
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON, for scripts")

    register = commands.add_parser(
        "register",
        parents=[broker, output],
        help="register a workload, or register it anew",
        description="Register a workload: what it must measure, and the passphrase it then gets.",
    )
    register.add_argument("workload_id", metavar="ID")
    register.add_argument(
        "--measurement", required=True, metavar="HEX", help="launch digest (see measure)"
    )
    register.add_argument(
        "--passphrase-file", required=True, type=Path, metavar="FILE",
        help="file of the passphrase, - for standard input; a newline at its end does not count",
    )  # fmt: skip
    register.add_argument(
        "--tee-config", default="", metavar="JSON", help="SEV: the guest policy; SNP: gen"
    )
    register.set_defaults(run=_reported(_register))

    listing = commands.add_parser(
        "list", parents=[broker, output], help="list the registered workloads"
    )
    listing.set_defaults(run=_reported(_list))

    delete = commands.add_parser(
        "delete", parents=[broker, output], help="delete a workload and its passphrase"
    )
    delete.add_argument("workload_id", metavar="ID")
    delete.set_defaults(run=_reported(_delete))

    _add_measure(commands, output)


def _add_measure(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    output: argparse.ArgumentParser,
) -> None:
    measure = commands.add_parser(
        "measure",
        parents=[output],
        help="compute a launch digest; asks no broker",
        description="Compute the launch digest of a guest from what it is launched with.",
    )
    measure.add_argument(
        "--mode", required=True, type=LaunchMode, choices=list(LaunchMode), metavar="MODE",
        help="sev, sev-es or snp",
    )  # fmt: skip
    measure.add_argument("--firmware", required=True, type=Path, metavar="FILE", help="OVMF image")
    measure.add_argument("--kernel", type=Path, metavar="FILE", help="kernel for direct boot")
    measure.add_argument("--initrd", type=Path, metavar="FILE", help="its initial ramdisk")
    measure.add_argument("--append", default="", metavar="TEXT", help="its command line")
    measure.add_argument("--vcpus", type=int, default=1, metavar="N", help="default: %(default)s")
    measure.add_argument(
        "--vcpu-type", default="EPYC-v4", metavar="NAME",
        help="model as QEMU names it (default: %(default)s)",
    )  # fmt: skip
    measure.add_argument(
        "--hypervisor", type=Hypervisor, default=Hypervisor.QEMU, choices=list(Hypervisor),
        metavar="NAME", help="qemu, ec2 or gce (default: qemu)",
    )  # fmt: skip
    measure.add_argument(
        "--guest-features", type=_integer, default=DEFAULT_GUEST_FEATURES, metavar="N",
        help="SNP: features active in the guest, 0x21 where debug swap is (default: 0x1)",
    )  # fmt: skip
    measure.set_defaults(run=_reported(_measure))


def _integer(text: str) -> int:
    return int(text, 0)


def _reported(
    command: Callable[[argparse.Namespace], None],
) -> Callable[[argparse.Namespace], int]:
    """Make of a command one that says what went wrong and returns an exit code."""

    def run(options: argparse.Namespace) -> int:
        try:
            command(options)
        except ClientError as error:
            print(f"keybroker workloads: {error}", file=sys.stderr)
            if hint := error.hint():
                print(f"  {hint}", file=sys.stderr)
            return 1
        return 0

    return run


def _client(options: argparse.Namespace) -> WorkloadClient:
    return WorkloadClient(
        options.url,
        administrator_token(options.url, options.admin_token_file),
        root_certs=[] if options.cert_file is None else [options.cert_file],
    )


def _register(options: argparse.Namespace) -> None:
    try:
        measurement = bytes.fromhex(options.measurement)
    except ValueError:
        raise InputError("the measurement is not hexadecimal") from None
    passphrase = _read_passphrase(options.passphrase_file)
    with _client(options) as client:
        client.register(options.workload_id, measurement, passphrase, tee_config=options.tee_config)
    if options.json:
        print(json.dumps({"workload_id": options.workload_id}))
    else:
        print(f"registered {options.workload_id}")


def _list(options: argparse.Namespace) -> None:
    with _client(options) as client:
        workloads = client.workloads()
    if options.json:
        rows = [
            {name: getattr(workload, name) for name in workload.__struct_fields__}
            for workload in workloads
        ]
        print(json.dumps({"workloads": rows}, indent=2))
        return
    for workload in workloads:
        moment = datetime.fromtimestamp(workload.registered_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{workload.workload_id}  {workload.tee}  {moment}Z  {workload.launch_measurement}")


def _delete(options: argparse.Namespace) -> None:
    with _client(options) as client:
        client.delete(options.workload_id)
    if options.json:
        print(json.dumps({"workload_id": options.workload_id}))
    else:
        print(f"deleted {options.workload_id}")


def _measure(options: argparse.Namespace) -> None:
    launch = Launch(
        mode=options.mode,
        firmware=options.firmware,
        kernel=options.kernel,
        initrd=options.initrd,
        append=options.append,
        vcpus=options.vcpus,
        vcpu_type=options.vcpu_type,
        hypervisor=options.hypervisor,
        guest_features=options.guest_features,
    )
    digest = launch_digest(launch).hex()
    print(json.dumps({"launch_measurement": digest}) if options.json else digest)


def _read_passphrase(path: Path) -> str:
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(_MAX_PASSPHRASE_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                raw = file.read(_MAX_PASSPHRASE_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{error.strerror}: {path}") from None
    if len(raw) > _MAX_PASSPHRASE_FILE_BYTES:
        raise InputError(f"{path} is larger than any passphrase")
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the passphrase in {path} is not UTF-8 text") from None
