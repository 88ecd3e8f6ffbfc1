"""Whether files have changed."""

from __future__ import annotations

from pathlib import Path

FileStamp = tuple[int, int, int, int]
"""Inode, size, times of the last change of content and of anything."""


def file_stamps(*paths: Path | None) -> tuple[FileStamp | None, ...]:
    """A value that is another one once any of the files, links followed, has been replaced, written, removed or made.

    Costs one system call a file. Take it before the files are read: what changes meanwhile is then seen the next time.
    """
    return tuple(_stamp(path) for path in paths if path is not None)


def _stamp(path: Path) -> FileStamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
