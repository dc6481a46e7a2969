"""Runs the trial process and reads its answers."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from keybroker.policy.trial import EXIT_MEMORY

#: Wall-clock limit of a trial. Its processor limit is shorter, so only a starved machine gets here.
TRIAL_SECONDS = 30.0

#: Trial processes at once: a flood of policies must not take the machine.
_MAX_TRIALS = 2

#: Answers longer than this are no verdict; an explanation of a policy of 1 MiB stays below.
_MAX_ANSWER_BYTES = 16 * 1024 * 1024

_turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def run_trial(job: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """Give a job to a fresh process (:mod:`keybroker.policy.trial`).

    Returns:
        The answers it gave, and why it ended early, or None when it ended well.
    """
    async with _turn():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "keybroker.policy.trial",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                out, _ = await process.communicate(json.dumps(job).encode())
        except TimeoutError:
            return [], "it takes too long to evaluate"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return _answers(out), _ending(process.returncode)


def _answers(out: bytes) -> list[dict[str, Any]]:
    if len(out) > _MAX_ANSWER_BYTES:
        return []
    return [json.loads(line) for line in out.splitlines() if line]


def _ending(code: int | None) -> str | None:
    if code == 0:
        return None
    if code == EXIT_MEMORY:
        return "it takes too much memory to evaluate"
    if code == -24:  # SIGXCPU, before SIGKILL at the hard limit
        return "it takes too long to evaluate"
    if code == -9:
        return "it takes too long or too much memory to evaluate"
    return "the policy engine cannot evaluate it"


def _turn() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    for other in [other for other in _turns if other.is_closed()]:
        del _turns[other]
    return _turns.setdefault(loop, asyncio.Semaphore(_MAX_TRIALS))
