"""Where workers keep their metrics so that any of them can show the sum.

The Prometheus client decides how it keeps values when it is first imported, by an environment
variable; so this module must not import it, and :func:`prepare` must run before anything does.
"""

import os
import shutil
import tempfile
from pathlib import Path

#: Read by the Prometheus client: a folder in which each process keeps its values in files.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def prepare(workers: int) -> None:
    """Arrange for metrics that are summed over workers, if there are several."""
    os.environ.pop(VARIABLE, None)
    if workers > 1:
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="keybroker-metrics-")


def are_shared() -> bool:
    """Whether this process shares its metrics with others."""
    return VARIABLE in os.environ


def forget(pid: int) -> None:
    """Drop what a worker that ended counted as going on at this moment."""
    if are_shared():
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def discard() -> None:
    """Delete the folder."""
    directory = os.environ.get(VARIABLE)
    if directory is not None:
        shutil.rmtree(Path(directory), ignore_errors=True)
