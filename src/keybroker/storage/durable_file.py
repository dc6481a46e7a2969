"""Write and read single files so that a crash leaves the old content or the new, never a mixture.

A new content goes into a temporary file beside the target, is flushed, renamed over it (or linked,
where the target must not exist), and then the directory is flushed. Writers hold a lock on the
directory itself, which needs no file of its own and ends with the process that holds it.

Modification times are set from a clock that counts nanoseconds: the kernel's own stamps are those
of its last tick, some milliseconds coarse, and two writes within one would look like none.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from keybroker.model.errors import StorageError

#: No key and no namespace starts with a dot, so nothing of ours is ever mistaken for one.
_TEMPORARY_PREFIX = ".tmp-"

#: A temporary file that old is left over from a crash.
_LEFT_OVER_SECONDS = 3600

#: What tells two contents of a file apart: modification time in nanoseconds, inode, size.
Stamp = tuple[int, int, int]


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say what an error of the operating system means for the administrator."""
    return StorageError(f"{path}: {error.strerror or error}")


def make_directories(path: Path) -> None:
    """Make a directory and those above it that are missing, all of mode 0700.

    Raises:
        OSError: one of them cannot be made.
    """
    if not path.is_dir():
        make_directories(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def open_directory(path: Path) -> None:
    """Make the directory (mode 0700) if it is missing and drop what a crash left in it.

    Raises:
        StorageError: it cannot be made or read, or is not a directory.
    """
    try:
        make_directories(path)
        for entry in os.scandir(path):
            if entry.name.startswith(_TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    if (
                        entry.stat(follow_symlinks=False).st_mtime
                        < time.time() - _LEFT_OVER_SECONDS
                    ):
                        Path(entry.path).unlink()
    except OSError as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold the lock of a directory against every other writer; gives its file descriptor.

    Raises:
        StorageError: whatever the operating system reports within.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(directory, error) from error


def write_file(directory: int, name: str, content: bytes, *, overwrite: bool) -> bool:
    """Write a file of mode 0600; return False where it was there and ``overwrite`` is false.

    Args:
        directory: descriptor from :func:`locked`.
    """
    temporary = _TEMPORARY_PREFIX + secrets.token_hex(8)
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            now = time.time_ns()
            os.utime(file.fileno(), ns=(now, now))
            os.fsync(file.fileno())
        if overwrite:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            # A link never replaces, so this holds even against writers that know no lock.
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.unlink(temporary, dir_fd=directory)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        if isinstance(error, FileExistsError) and not overwrite:
            return False
        raise
    _flush_directory(directory)
    return True


def delete_file(directory: int, name: str) -> bool:
    """Delete a file; return whether there was one.

    Args:
        directory: descriptor from :func:`locked`.
    """
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    _flush_directory(directory)
    return True


def _flush_directory(directory: int) -> None:
    now = time.time_ns()
    os.utime(directory, ns=(now, now))
    os.fsync(directory)


def stamp(path: Path) -> Stamp | None:
    """Return what tells this content of a file from others; None: there is no such file.

    Raises:
        StorageError: the operating system says so.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error) from error
    return status.st_mtime_ns, status.st_ino, status.st_size


def open_file(path: Path) -> int | None:
    """Open a regular file to read, never through a symbolic link; None: there is none.

    Raises:
        StorageError: it is something else, or cannot be opened.
    """
    try:
        # Without blocking: a pipe in the directory must not hold up the broker.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"{path} is not a regular file")
    return descriptor


def read_open_file(descriptor: int, path: Path) -> tuple[bytes, Stamp]:
    """Read all of an open file, close it, and return its content and stamp.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            return file.read(), (status.st_mtime_ns, status.st_ino, status.st_size)
    except OSError as error:
        raise storage_error(path, error) from error
