"""Making keys, away from the workbench: an RSA key of 7680 bits takes a core for half a minute.

On the workbench two such requests would keep all evidence from being verified. Here they wait for
each other in a thread of their own.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from keybroker.key_transfer.material import AES, KeySpec, Material, generate
from keybroker.model.errors import TooManyRequestsError

#: Keys that may wait to be made; what comes beyond is told to come back.
MAX_WAITING = 32

_executor: ThreadPoolExecutor | None = None
_waiting = 0


async def generate_key(spec: KeySpec) -> Material:
    """Make a key.

    Raises:
        TooManyRequestsError: too many wait.
    """
    global _executor, _waiting  # noqa: PLW0603 - one thread a process, made after any fork
    if spec.algorithm == AES:
        return generate(spec)
    if _waiting >= MAX_WAITING:
        raise TooManyRequestsError("too many keys are being made")
    if _executor is None:
        _executor = ThreadPoolExecutor(1, thread_name_prefix="key-generation")
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_executor, generate, spec)
    finally:
        _waiting -= 1
