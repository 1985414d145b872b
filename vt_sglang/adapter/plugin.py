# SPDX-License-Identifier: Apache-2.0
"""The entry point `sglang.srt.plugins`: puts the adapter into SGLang, or says clearly why it cannot.

SGLang logs what goes wrong in a plug-in and serves without it. A server that was asked for virtual tensors must not
start without them, so a failure here ends the process if they were asked for, and otherwise leaves a backend in place
that fails with the reason when it is chosen.
"""

import logging
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import vt_sglang
from vt_sglang.adapter import compat

logger = logging.getLogger(__name__)

BACKEND = "vtensor"
"""Value of `--radix-cache-backend`, and name of the attention backend."""


def install() -> None:
    """Register the backends and hooks. Called by SGLang in every process, before it reads its arguments."""
    try:
        compat.check_version()
        compat.check_signatures()
        from vt_sglang import _core  # noqa: F401  # the hooks are of no use without the core
        from vt_sglang.adapter import hooks

        hooks.register()
    except Exception as error:
        _failed(error)


def _failed(error: Exception) -> None:
    if isinstance(error, compat.IncompatibleSGLangError):
        reason = str(error)
    elif isinstance(error, ImportError) and "_core" in str(error):
        reason = f"its compiled core cannot be loaded ({error}); {_advice()}"
    else:
        reason = f"{type(error).__name__}: {error}"
    message = f"vt-sglang cannot be used: {reason}"
    if _requested(sys.argv[1:]):
        sys.exit(message)  # SystemExit passes through SGLang's `except Exception`
    logger.warning("%s. Servers that do not ask for it run as ever.", message)
    _register_failing_backend(message, error)


def _advice() -> str:
    """An installed package has its core; the source folder has none, and comes first where Python is run in it."""
    source = Path(vt_sglang.__file__).parents[1]
    if (source / "csrc").is_dir():
        return (
            f"this is its source folder, {source}, which hides what is installed: run in another folder, or install it "
            "in place (pip install -e .)"
        )
    return "install the package again"


def _requested(arguments: list[str]) -> bool:
    """Whether a command line asks for virtual tensors."""
    flag = "--radix-cache-backend"
    return f"{flag}={BACKEND}" in arguments or (flag, BACKEND) in pairwise(arguments)


def _register_failing_backend(message: str, cause: Exception) -> None:
    def refuse(_context: Any) -> NoReturn:
        raise RuntimeError(message) from cause

    try:
        from sglang.srt.mem_cache.registry import register_radix_cache_backend

        register_radix_cache_backend(BACKEND, refuse)
    except Exception:  # an SGLang without the registry refuses the name itself
        logger.debug("no radix-cache registry to tell", exc_info=True)
