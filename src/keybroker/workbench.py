"""The place of CPU-heavy work: verification, appraisal and signing, away from the event loop.

A few threads, not processes: the expensive parts (elliptic curves, RSA, Rego) run in OpenSSL and
in C++ for well under two milliseconds, and handing evidence to another process would cost as much
again. The loop goes on because the interpreter switches threads every few milliseconds and C code
lets go of it.

A visit costs two wake-ups and little else; the executors of the standard library cost about twice
as much, which shows beside work of some hundred microseconds.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: One thread keeps evidence in order and the interpreter lock uncontended; two let a slow policy
#: not hold up a handshake.
_THREADS = 2


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


_jobs: SimpleQueue[_Job] | None = None
_making = threading.Lock()


async def run(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a function on the workbench and return what it returns, or raise what it raises.

    A function that has begun is not interrupted when its caller is cancelled.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    (_jobs or _start()).put(_Job(function, args, kwargs, loop, future))
    return await future


def _start() -> "SimpleQueue[_Job]":
    """Start the threads on first use, which is after any fork."""
    global _jobs  # noqa: PLW0603 - one workbench a process
    with _making:
        if _jobs is None:
            jobs: SimpleQueue[_Job] = SimpleQueue()
            for number in range(_THREADS):
                threading.Thread(
                    target=_work, args=(jobs,), name=f"workbench-{number}", daemon=True
                ).start()
            _jobs = jobs
        return _jobs


def _work(jobs: "SimpleQueue[_Job]") -> None:
    while True:
        job = jobs.get()
        if job.future.cancelled():
            continue
        result: Any = None
        error: BaseException | None = None
        try:
            result = job.function(*job.args, **job.kwargs)
        except BaseException as raised:
            error = raised
        # The loop may have ended meanwhile, and its waiter with it.
        with contextlib.suppress(RuntimeError):
            job.loop.call_soon_threadsafe(_settle, job.future, result, error)
        # Evidence and secrets are not kept until the next job comes.
        del job, result, error


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        # A future cannot carry it (PEP 479).
        future.set_exception(RuntimeError("the function raised StopIteration"))
    else:
        future.set_exception(error)
