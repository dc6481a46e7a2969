"""``keybroker verify``: verify evidence in a file and print its claims; no server, no secrets.

Here the user is the one who decides, so unlike a broker's answer to a guest this one says exactly
which check failed. Exit code 0: the evidence is genuine; 1: refused; 2: wrong usage.

A TEE's own options and its way of verifying are a module of their own, see
:class:`keybroker.cli.verify_outcome.TeeCommand`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keybroker.attestation_service.init_data import parse_init_data
from keybroker.attestation_service.request import BoundData
from keybroker.cli import verify_dcap, verify_snp
from keybroker.cli.verify_outcome import Outcome, Question, TeeCommand, UsageError
from keybroker.model.errors import (
    ConfigError,
    EvidenceError,
    MalformedError,
    PolicyEngineError,
    TooLargeError,
)
from keybroker.model.rcar import InitData
from keybroker.model.strict_json import parse_json
from keybroker.verifiers.interface import ExpectedBinding

if TYPE_CHECKING:
    from keybroker.cli.verify_appraisal import Appraisal

#: TEE → the module that verifies its evidence.
TEES: dict[str, TeeCommand] = {"sgx": verify_dcap, "snp": verify_snp, "tdx": verify_dcap}

#: Largest file that is read; evidence with an event log stays far below.
_MAX_FILE_BYTES = 16 * 1024 * 1024


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and the options of every TEE."""
    parser = subparsers.add_parser(
        "verify",
        help="verify evidence in a file, without a server",
        description="Verify evidence in a file and print what it shows. Exit code 0: it is"
        " genuine; 1: it is refused, and the reason is printed; 2: wrong usage.",
    )
    parser.add_argument("evidence", metavar="EVIDENCE", type=Path, help="file; - reads stdin")
    parser.add_argument("--tee", choices=sorted(TEES), required=True, help="kind of evidence")
    parser.add_argument(
        "--report-data", metavar="HEX|@FILE",
        help="demand this report data, padded with zeros or cut to the field's size",
    )  # fmt: skip
    parser.add_argument(
        "--init-data", metavar="FILE", type=Path,
        help="demand that the evidence binds this init-data (TOML or JSON; names its algorithm)",
    )  # fmt: skip
    parser.add_argument(
        "--at", metavar="TIME",
        help="the moment at which certificates have to be valid: ISO 8601, UTC unless it says"
        " otherwise, or 'now' (default: now; but what has expired since is judged as of then)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, also of a refusal")
    group = parser.add_argument_group("appraisal (does not change the exit code)")
    group.add_argument(
        "--appraise", action="store_true",
        help="appraise the claims by the built-in attestation policy; so do the next two",
    )  # fmt: skip
    group.add_argument("--policy", metavar="FILE", type=Path, help="Rego policy in its place")
    group.add_argument(
        "--reference-values", metavar="FILE", type=Path,
        help="JSON object of reference values by name (default: none)",
    )  # fmt: skip
    for command in dict.fromkeys(TEES.values()):
        command.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out; return the exit code."""
    try:
        init_data = _init_data(options.init_data)
        question = Question(
            evidence=_read_evidence(options.evidence),
            expected=ExpectedBinding(
                report_data=_report_data(options.report_data), init_data=init_data.digest
            ),
            at=_moment(options.at),
        )
        outcome = TEES[options.tee].verify(question, options)
        appraisals = _appraisals(outcome, options, init_data.claims)
    except EvidenceError as error:
        _print_refusal(error.diagnostics(), as_json=options.json)
        return 1
    except (UsageError, ConfigError, PolicyEngineError) as error:
        print(f"keybroker verify: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(_as_json(outcome, appraisals), indent=2))
    else:
        _print_table(outcome, appraisals)
    return 0


def _appraisals(
    outcome: Outcome, options: argparse.Namespace, init_data_claims: Any
) -> "list[Appraisal]":
    if not (options.appraise or options.policy or options.reference_values):
        return []
    # compiling policies needs a good deal that plain verification does not
    from keybroker.cli.verify_appraisal import appraise

    reference_values: Any = {}
    if options.reference_values is not None:
        try:
            reference_values = parse_json(_read(options.reference_values))
        except MalformedError as error:
            raise UsageError(f"{options.reference_values}: {error.diagnostics()}") from None
        if not isinstance(reference_values, dict):
            raise UsageError(f"{options.reference_values}: not a JSON object of values by name")
    policy = None
    if options.policy is not None:
        try:
            policy = _read(options.policy).decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{options.policy}: not UTF-8") from None
    return appraise(
        outcome.devices,
        policy=policy,
        reference_values=reference_values,
        init_data_claims=init_data_claims,
    )


def _read_evidence(path: Path) -> bytes:
    if str(path) == "-":
        return _limited(sys.stdin.buffer.read(_MAX_FILE_BYTES + 1), path)
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(_MAX_FILE_BYTES + 1), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _limited(content: bytes, path: Path) -> bytes:
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {_MAX_FILE_BYTES} bytes")
    return content


def _report_data(text: str | None) -> bytes | None:
    if text is None:
        return None
    if text.startswith("@"):
        return _read(Path(text[1:]))
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError("--report-data is neither hexadecimal nor @FILE") from None


def _init_data(path: Path | None) -> BoundData:
    """Return digest and contents of an init-data file, by the algorithm that it names itself."""
    if path is None:
        return BoundData()
    try:
        text = _read(path).decode("utf-8")
        format_ = "json" if text.lstrip().startswith("{") else "toml"
        return parse_init_data(InitData(format_, text))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8") from None
    except (MalformedError, TooLargeError) as error:
        raise UsageError(f"{path}: {error.diagnostics()}") from None


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--at {text}: not a time in ISO 8601") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _print_refusal(reason: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"accepted": False, "reason": reason}, indent=2))
    else:
        print(f"refused: {reason}", file=sys.stderr)


def _as_json(outcome: Outcome, appraisals: "Sequence[Appraisal]") -> dict[str, Any]:
    return {
        "accepted": True,
        "summary": outcome.summary,
        "judged_at": outcome.judged_at.isoformat(),
        "chain": [
            {"name": link.name, "sha256": link.sha256, "not_after": link.not_after.isoformat()}
            for link in outcome.chain
        ],
        "root": outcome.root,
        "remarks": list(outcome.remarks),
        "devices": [
            {"tee": device.tee, "class": device.tee_class, "claims": device.claims}
            for device in outcome.devices
        ],
        "appraisals": [appraisal.document() for appraisal in appraisals],
    }


def _print_table(outcome: Outcome, appraisals: "Sequence[Appraisal]") -> None:
    print(f"accepted: {outcome.summary}")
    for place, link in enumerate(outcome.chain):
        label = "signed by" if place == 0 else "issued by"
        print(f"  {label} {link.name:<16} SHA-256 {link.sha256}")
    print(f"  root      {outcome.root}")
    for remark in outcome.remarks:
        print(f"remark: {remark}")
    for device in outcome.devices:
        print(f"claims of the {device.tee_class}:")
        width = max(map(len, device.claims), default=0)
        for name, value in device.claims.items():
            text = value if isinstance(value, str) else json.dumps(value)
            print(f"  {name:<{width}}  {text}")
    for appraisal in appraisals:
        print("appraisal: " + "\n".join(appraisal.lines()))
