"""Several processes on one storage, and processes that are killed while they write."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import storage_backends
from storage_backends import FILE_BACKENDS, opened, opened_store

_ROUNDS = 8


def _child(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, storage_backends.__file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def _children(*commands: tuple[str, ...]) -> Iterator[list["subprocess.Popen[str]"]]:
    children = [_child(*command) for command in commands]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_of_two_processes_exactly_one_wins_each_key(backend: str, tmp_path: Path) -> None:
    count = 60
    commands = [("claim", backend, str(tmp_path), worker, str(count)) for worker in "ab"]
    with _children(*commands) as children:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        outputs = [await asyncio.to_thread(child.communicate) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    won = [{int(line) for line in output.split()} for output, _ in outputs]
    assert not won[0] & won[1]
    assert won[0] | won[1] == set(range(count))
    provider = opened(backend, tmp_path)
    store = await opened_store(provider)
    for worker, numbers in zip("ab", won, strict=True):
        for number in numbers:
            assert await store.get(f"claim/{number}") == worker.encode()
    await provider.close()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_no_increment_of_two_processes_is_lost(backend: str, tmp_path: Path) -> None:
    provider = opened(backend, tmp_path)
    store = await opened_store(provider)
    await store.set("counter", b"0")
    with _children(*[("increment", backend, str(tmp_path), "40")] * 2) as children:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        outputs = [await asyncio.to_thread(child.communicate) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert await store.get("counter") == b"80"
    await provider.close()


@pytest.mark.parametrize("backend", FILE_BACKENDS)
async def test_a_killed_writer_loses_nothing_that_was_acknowledged(
    backend: str, tmp_path: Path
) -> None:
    dice = random.Random(backend)
    for round_number in range(_ROUNDS):
        worker = f"w{round_number}"
        acknowledged: list[int] = []
        with _children(("write", backend, str(tmp_path), worker)) as (child,):
            assert child.stdout is not None
            for _ in range(dice.randint(1, 60)):
                line = await asyncio.to_thread(child.stdout.readline)
                assert line, child.communicate()[1]
                acknowledged.append(int(line))
            child.send_signal(signal.SIGKILL)
            rest, _ = await asyncio.to_thread(child.communicate)
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line[-1] == "\n"]
        provider = opened(backend, tmp_path)
        store = await opened_store(provider)
        items = {
            key: value for key, value in (await store.items()).items() if key.startswith(worker)
        }
        await provider.close()
        last: dict[str, int] = {}
        for number in acknowledged:
            last[f"{worker}/{number % 16}"] = number
        assert last.keys() <= items.keys()
        for key, value in items.items():
            number, _, body = value.partition(b":")
            assert body == b"v" * 5000, "half a value"
            # The value is the last acknowledged one, or a later one that was still in flight.
            assert int(number) >= last.get(key, 0)
            assert int(number) % 16 == int(key.rpartition("/")[2])


async def test_a_writer_is_not_held_up_by_readers_of_another_process(tmp_path: Path) -> None:
    with _children(("write", "Sqlite", str(tmp_path), "w")) as (child,):
        assert child.stdout is not None
        await asyncio.to_thread(child.stdout.readline)
        provider = opened("Sqlite", tmp_path)
        store = await opened_store(provider)
        for _ in range(2000):
            assert await store.get("w/0") is not None
        await provider.close()
        assert child.poll() is None
