"""The trial of a policy, in a process of its own: ``python -m keybroker.policy.trial``.

The engine can end its whole process on a policy that is odd but syntactically fine, and a policy
can ask for more time or memory than there is. A broker that holds sessions must not learn that on
itself, so every policy is compiled and evaluated here first, with limits, and only what passes is
compiled in the broker.

The job comes as JSON on standard input, answers leave as JSON lines on standard output: one a
step, so that what was found before an abort is known.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from keybroker.policy.modules import (
    ASKED,
    PLAIN,
    POLICY_MODULE,
    policy_data,
    policy_input,
    policy_modules,
)
from keybroker.policy.rego import CONFLICT, UNDEFINED, RegoEngine, RegoError

#: Processor seconds; the shipped policies take 0.05.
CPU_SECONDS = 10

#: Resident memory of the whole process; the shipped policies stay below 60 MB. The engine's
#: allocator reserves address space by the hundred gigabytes, so address space cannot be limited.
MEMORY_BYTES = 512 * 1024 * 1024

#: Stack of the evaluating thread: a quarter of what the broker's threads have, so that what fits
#: here fits there.
STACK_BYTES = 2 * 1024 * 1024

#: How the process ends when its memory runs over.
EXIT_MEMORY = 77

#: Inputs a policy is tried on: none at all, a composite token, claims as an attestation policy
#: sees them. A trial looks for aborts, not for answers.
_TRIAL_INPUTS: tuple[Mapping[str, Any], ...] = (
    {},
    {
        "eat_profile": "trial",
        "submods": {
            "cpu0": {
                "ear.status": "affirming",
                "ear.trustworthiness-vector": {"executables": 3, "hardware": 2},
                "ear.veraison.annotated-evidence": {
                    "snp": {"measurement": "00", "policy_debug_allowed": False},
                    "init_data_claims": {"agent_policy_claims": {"containers": []}},
                },
            },
        },
    },
    {
        "snp": {"measurement": "00", "policy_debug_allowed": False, "reported_tcb_snp": 1},
        "tdx": {"quote": {"header": {}, "body": {"mr_td": "00"}}, "uefi_event_logs": []},
        "sample": {"svn": "1", "debug": False, "platform_version": {"major": 1, "minor": 0}},
        "init_data_claims": {"agent_policy_claims": {"containers": []}},
        "runtime_data_claims": {"nonce": "", "tee-pubkey": {"kty": "EC"}},
    },
)

_TRIAL_REQUEST = {
    "plugin": "resource",
    "resource-path": ["repository", "type", "tag"],
    "query": {"name": "value"},
    "method": "GET",
}


def try_policy(source: str, entrypoints: Sequence[str]) -> dict[str, Any]:
    """Compile a policy and evaluate it on the trial inputs.

    Returns:
        ``{"passed": true}``, or ``passed`` false with ``message``, and ``offset`` (in bytes) where
        the engine names a place in the policy.
    """
    try:
        engine = RegoEngine(policy_modules(source, entrypoints), policy_data({}), [PLAIN, ASKED])
    except RegoError as error:
        offset = error.offset if error.module == POLICY_MODULE else None
        return {"passed": False, "message": error.message, "offset": offset}
    answered = False
    for value in _TRIAL_INPUTS:
        for entry, request in ((PLAIN, None), (ASKED, _TRIAL_REQUEST)):
            try:
                engine.query(entry, policy_input(value, request))
                answered = True
            except RegoError as error:
                # Two values for one rule may be due to these inputs; all else is the policy's.
                if error.message != CONFLICT:
                    return {"passed": False, "message": error.message, "offset": None}
    if not answered:
        return {"passed": False, "message": CONFLICT, "offset": None}
    return {"passed": True}


def probe(job: Mapping[str, Any], answers: TextIO) -> None:
    """Ask a policy with rules added to it, group by group; one line each.

    Args:
        job: ``source``, ``groups`` (each an ``addition`` to the source and ``entrypoints``),
            ``input``, ``request``, ``reference_values``.
        answers: gets ``{"defined": [entrypoint, …]}`` or ``{"error": …}`` a group.
    """
    value = policy_input(job["input"], job["request"])
    entry = PLAIN if job["request"] is None else ASKED
    data = policy_data(job["reference_values"])
    for group in job["groups"]:
        source = f"{job['source']}\n{group['addition']}\n"
        try:
            engine = RegoEngine(policy_modules(source, group["entrypoints"]), data, [entry])
            found = engine.query(entry, value)
            _say({"defined": [] if found is UNDEFINED else list(found)}, answers)
        except RegoError as error:
            _say({"error": error.message}, answers)


def _say(answer: Mapping[str, Any], answers: TextIO) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _watch_memory() -> None:
    page = resource.getpagesize()
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - reread in place
        while True:
            statm.seek(0)
            if int(statm.read().split()[1]) * page > MEMORY_BYTES:
                os._exit(EXIT_MEMORY)
            time.sleep(0.005)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if sys.platform == "linux":
        threading.Thread(target=_watch_memory, daemon=True).start()


def _work(job: Mapping[str, Any], answers: TextIO) -> None:
    if job["kind"] == "try":
        _say(try_policy(job["source"], job["entrypoints"]), answers)
    else:
        probe(job, answers)


def main() -> None:
    """Do the job on standard input."""
    # The engine prints errors of its own on standard output: answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _limit()
    job = json.loads(sys.stdin.buffer.read())
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_work, args=(job, answers), daemon=True)
    worker.start()
    worker.join()
    answers.flush()
    # Nothing the engine does while it is taken down may change the verdict.
    os._exit(0)


if __name__ == "__main__":
    main()
