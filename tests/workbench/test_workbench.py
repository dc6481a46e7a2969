"""The threads of CPU-heavy work."""

import asyncio
import threading
import time

import pytest

from keybroker.workbench import run


async def test_a_result_comes_back() -> None:
    assert await run(divmod, 7, 2) == (3, 1)
    assert await run(int, "ff", base=16) == 255


class OddError(BaseException):
    """What no ``except Exception`` would catch."""


@pytest.mark.parametrize("error", [ValueError("x"), OddError("x")])
async def test_an_error_comes_back(error: BaseException) -> None:
    def fail() -> None:
        raise error

    task = asyncio.ensure_future(run(fail))
    done, _ = await asyncio.wait([task])
    assert done.pop().exception() is error


async def test_a_function_that_ends_an_iteration_does_not_hang_its_caller() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run(next, iter(()))


async def test_the_loop_goes_on_meanwhile() -> None:
    release = threading.Event()
    task = asyncio.create_task(run(release.wait, 10))
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    assert await task


async def test_a_cancelled_caller_leaves_the_threads_as_they_were() -> None:
    release = threading.Event()
    waiting = [asyncio.create_task(run(release.wait, 10)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    release.set()
    assert await run(lambda: "still working") == "still working"


def test_each_loop_has_its_answers() -> None:
    def ask(found: list[int]) -> None:
        async def several() -> list[int]:
            return list(await asyncio.gather(*(run(pow, n, 2) for n in range(50))))

        found += asyncio.run(several())

    results: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(found,)) for found in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [[n * n for n in range(50)]] * 4


def test_a_loop_that_ended_is_not_waited_for() -> None:
    release = threading.Event()

    async def leave() -> None:
        task = asyncio.create_task(run(release.wait, 10))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    release.set()
    assert asyncio.run(run(lambda: time.monotonic() > 0))
