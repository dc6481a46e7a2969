"""The place of CPU-heavy work: verification, appraisal and signing, away from the event loop.

A small thread pool, not processes: the expensive parts (elliptic curves, RSA, Rego) run in
OpenSSL and in C++ for well under two milliseconds, and handing evidence to another process would
cost as much again. The loop goes on because the interpreter switches threads every few
milliseconds and C code lets go of it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: One thread keeps evidence in order and the interpreter lock uncontended; two let a slow policy
#: not hold up a handshake.
_THREADS = 2

_executor: ThreadPoolExecutor | None = None


async def run(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a function on the workbench and return what it returns."""
    global _executor  # noqa: PLW0603 - one pool a process, made on first use (after any fork)
    if _executor is None:
        _executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="workbench")
    loop = asyncio.get_running_loop()
    if kwargs:
        return await loop.run_in_executor(_executor, lambda: function(*args, **kwargs))
    return await loop.run_in_executor(_executor, function, *args)
