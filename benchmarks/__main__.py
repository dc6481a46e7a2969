"""``python -m benchmarks``: measure a broker, print a table, and JSON if asked for.

Exit codes: 0 measured (whether targets are met is in the table), 1 failed, 2 wrong usage.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.broker import Broker, StartError, running_broker
from benchmarks.crypto import crypto_seconds
from benchmarks.load import LoadError, Plan, run_load
from benchmarks.platforms import make_platforms
from benchmarks.processes import memory
from benchmarks.report import Footprint, Line, document, footprint_lines, table
from benchmarks.scripts import RESOURCE_PATH, SCENARIOS, Scenario
from keybroker.client import AdminClient, ClientError
from keybroker.kbs.policies import resource_policy
from keybroker.model.tee import Tee

#: Memory is read after this many operations.
_MEMORY_OPERATIONS = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parse(argv)
    lines: list[Line] = []
    footprints: list[Footprint] = []
    try:
        with tempfile.TemporaryDirectory(prefix="keybroker-bench-") as folder:
            if options.url:
                _measure_other(options, lines)
            else:
                for workers in options.workers:
                    home = Path(folder) / f"workers-{workers}"
                    home.mkdir()
                    footprints.append(_measure_own(options, home, workers, lines))
    except (LoadError, StartError, ClientError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(*table(lines), sep="\n")
    print()
    for footprint in footprints:
        print(*footprint_lines(footprint), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(document(lines, footprints), indent=2) + "\n")
    return 0


def _measure_own(
    options: argparse.Namespace, home: Path, workers: int, lines: list[Line]
) -> Footprint:
    platform_folder = home / "platform"
    make_platforms(platform_folder)
    done = 0
    with running_broker(home, workers, platform_folder) as broker:
        _provision(broker.url, None, None)
        for scenario in _selected(options):
            line = _measure(options, scenario, broker.url, platform_folder, broker)
            done += line.measured.operations
            lines.append(line)
        if done < _MEMORY_OPERATIONS:
            plan = _plan(options, broker.url, platform_folder)
            rest = Plan(**{**vars(plan), "operations": _MEMORY_OPERATIONS - done, "seconds": 60.0})
            done += run_load(SCENARIOS[-1], rest, None).operations
        return Footprint(workers, broker.start_seconds, done, memory(broker.pid))


def _measure_other(options: argparse.Namespace, lines: list[Line]) -> None:
    if options.provision:
        token = None
        if options.admin_token_file is not None:
            token = options.admin_token_file.read_text().strip()
        _provision(options.url, token, options.cert_file)
    for scenario in _selected(options):
        if scenario.tee is not Tee.SAMPLE and options.platform is None:
            print(f"{scenario.name}: left out, needs --platform", file=sys.stderr)
            continue
        line = _measure(options, scenario, options.url, options.platform, None)
        lines.append(line)


def _measure(
    options: argparse.Namespace,
    scenario: Scenario,
    url: str,
    platform_folder: Path | None,
    broker: Broker | None,
) -> Line:
    workers = None if broker is None else broker.workers
    print(f"{scenario.name}, {workers or '?'} worker(s) …", file=sys.stderr)
    pid = options.pid if broker is None else broker.pid
    measured = run_load(scenario, _plan(options, url, platform_folder), pid)
    return Line(scenario, workers, measured, _crypto(scenario))


@cache
def _crypto(scenario: Scenario) -> float:
    return crypto_seconds(scenario)


def _plan(options: argparse.Namespace, url: str, platform_folder: Path | None) -> Plan:
    return Plan(
        url=url,
        processes=options.clients,
        connections=options.connections,
        operations=options.operations,
        seconds=options.seconds,
        platform=platform_folder,
        cert_file=options.cert_file,
    )


def _provision(url: str, token: str | None, cert_file: Path | None) -> None:
    with AdminClient(url, token, root_certs=[cert_file] if cert_file else []) as admin:
        admin.set_resource(RESOURCE_PATH, os.urandom(32))
        admin.set_resource_policy(resource_policy("allow_all"))


def _selected(options: argparse.Namespace) -> list[Scenario]:
    wanted = options.scenario
    return [scenario for scenario in SCENARIOS if not wanted or scenario.name in wanted]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--url", help="measure this broker instead of one started for the run")
    parser.add_argument("--pid", type=int, help="its process, for its CPU time")
    parser.add_argument("--cert-file", type=Path, help="its root certificate, PEM")
    parser.add_argument(
        "--provision",
        action="store_true",
        help=f"set its resource {RESOURCE_PATH} and a policy that allows every attested guest",
    )
    parser.add_argument("--admin-token-file", type=Path, help="for --provision")
    parser.add_argument("--platform", type=Path, help="folder of software platforms that it trusts")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[scenario.name for scenario in SCENARIOS],
        help="only this one; may be given more than once",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="of our own broker (default: 1 2)"
    )
    parser.add_argument("--clients", type=int, default=2, help="client processes (default: 2)")
    parser.add_argument(
        "--connections", type=int, default=4, help="of each client process (default: 4)"
    )
    parser.add_argument(
        "--operations", type=int, default=20_000, help="at most, for each line (default: 20000)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="at most, for each line (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
