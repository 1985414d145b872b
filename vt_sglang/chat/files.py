# SPDX-License-Identifier: Apache-2.0
"""Files that are never seen half written."""

import errno
import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """OSError, saying why, if `write_whole` could not put anything under this path; for before a long run."""
    target = _regular(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
        pass


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` under `path`, in place of what is there, in one step; the folder must exist.

    Raises:
        OSError: it cannot be written, or what is there is no file (a folder, a device): that stays.
    """
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
