# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the core's tests. Small geometry: pages of 4 KiB, tokens from 64 bytes to more than a page."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The helpers beside this file; pytest's importlib mode puts no folder of tests on the path.
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite(
    "core_harness",
    "core_plans",
    "core_world",
    "core_machine",
    "core_fake_cuda",
    "core_ahead",
)

from core_fake_cuda import FakeCuda  # noqa: E402
from core_harness import PAGE, TOKEN_SIZES, Geometry, MakeCache  # noqa: E402

from vt_sglang._core import KVCache  # noqa: E402


@pytest.fixture
def make_cache() -> Iterator[MakeCache]:
    """Makes host caches of small geometry; every one of them must satisfy `check` when the test is over."""
    made: list[KVCache] = []

    def make(token_bytes: int = 1024, **sizes: object) -> KVCache:
        arguments: dict[str, object] = {
            "driver": "host",
            "page_bytes": PAGE,
            "token_bytes": token_bytes,
            "slots": 6,
            "slot_tokens": max(64, 4 * PAGE // max(token_bytes, 1)),
            "budget_pages": 32,
        }
        made.append(KVCache(**(arguments | sizes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cache in made:
        cache.check()


@pytest.fixture
def cache(make_cache: MakeCache) -> KVCache:
    """Four tokens a page, 32 pages, 5 slots for requests."""
    return make_cache()


@pytest.fixture(params=TOKEN_SIZES)
def geometry(request: pytest.FixtureRequest) -> Geometry:
    """Every relation of token and page size."""
    return Geometry(request.param)


@pytest.fixture(scope="session")
def compile_fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles fake_cuda.c, perhaps with macros defined."""
    folder = tmp_path_factory.mktemp("fake_cuda")

    def build(*macros: str) -> Path:
        library = folder / f"libfake_cuda{''.join(macros)}.so"
        if not library.exists():
            source = Path(__file__).with_name("fake_cuda.c")
            flags = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
            subprocess.run(["cc", *flags, *(f"-D{it}" for it in macros), source, "-o", library], check=True)
        return library

    return build


@pytest.fixture
def fake_cuda(compile_fake_cuda: Callable[..., Path]) -> Iterator[FakeCuda]:
    """The fake CUDA driver. When the test is over nothing may be left of its caches, and no rule broken."""
    fake = FakeCuda(compile_fake_cuda())
    fake.reset()
    yield fake
    fake.hold(None)  # after a test that failed, too
    fake.delay(0)
    gc.collect()
    fake.verify_nothing_is_left()
