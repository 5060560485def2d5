"""Files that are either the old one or the new one, never half of the new one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Give a temporary path to write to; put it in the place of ``target`` when the block ends well.

    The temporary file lies in the target's own folder (a rename is atomic only inside one file system) and ends
    with the target's suffix, so that writers which look at the suffix, as SB3's ``save_to_zip_file`` does, behave
    the same. An exception, Ctrl-C included, leaves the target as it was. A killed process also does, but may leave
    its hidden temporary file behind.

    :param target: the file to write or to replace; missing folders are made, a symbolic link is followed
    :return: context manager that gives the path to write to
    :raises FileNotFoundError: if the block did not write to the path that it was given
    """
    # A link to a checkpoint on another disk must stay a link: replace the file that it points at.
    final = Path(os.path.realpath(target))
    final.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: it makes the file private (mode 0600), and the rename would carry that over.
    temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:12]}.tmp{final.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(
                f"nothing was written to {temporary} (the temporary name of {final}): write to the path that "
                "atomic_path gives, and name the target with its full suffix"
            )
        _sync(temporary)
        os.replace(temporary, final)
        _sync_folder(final.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sync(path: Path) -> None:
    """Push a file's content to the disk, so that the rename cannot overtake it in a power cut."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Push a rename to the disk. Windows cannot open folders and some network disks refuse: not fatal there."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
