# SPDX-License-Identifier: Apache-2.0
"""Files that are never seen half written, and the folders that they go to.

A folder that is missing is made, if that in which it lies is there: more than one are missing where a name is mistyped.
"""

import errno
import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """OSError, saying why, if `write_whole` could not put anything under this path; for before a long run."""
    target = _regular(path)
    folder = target.parent if _has_folder(path, target) else target.parent.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name}."):
        pass


def make_folder(path: Path) -> None:
    """Make the folder of a file that is to be written, if it is missing. OSError, saying why, if it cannot be made."""
    target = _regular(path)
    if not _has_folder(path, target):
        target.parent.mkdir(exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` under `path`, in place of what is there, in one step; the folder is made if need be.

    Raises:
        OSError: it cannot be written, or what is there is no file (a folder, a device): that stays.
    """
    make_folder(path)
    target = _regular(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # a temporary file is its owner's alone
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _regular(path: Path) -> Path:
    """Where a link leads; replacing a device by a file would take it from everybody."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "what is there is no file; name another", str(path))
    return target


def _has_folder(path: Path, target: Path) -> bool:
    """Whether the folder of `target` is there; OSError if it could not be made either."""
    folder = target.parent
    if folder.is_dir():
        return True
    shown = folder if path.is_symlink() else path.parent
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, f"{shown} is no folder", str(path))
    if not folder.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {shown}, nor one to make it in", str(path))
    return False
