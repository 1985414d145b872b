# SPDX-License-Identifier: Apache-2.0
"""Random operations on the fake CUDA driver, where batches fail in their midst."""

import pytest
from core_fake_cuda import CudaWorld, FakeCuda
from core_machine import NORMAL_STEPS, STEPS, run_machine

CUDA_WORLDS = (
    CudaWorld("tokens straddle pages", token_bytes=1000, guard_tokens=7),
    CudaWorld("tokens larger than a page", token_bytes=6000, budget_pages=40),
    CudaWorld("few mappings", token_bytes=1000, mapping_limit=14),
    CudaWorld("contents move", token_bytes=1000, guard_tokens=7, move_pages=True),
    CudaWorld("mapped ahead", token_bytes=1000, guard_tokens=7, move_pages=True, map_ahead=True),
)


@pytest.mark.parametrize("world", CUDA_WORLDS, ids=lambda world: world.name)
def test_core_agrees_with_the_model(fake_cuda: FakeCuda, world: CudaWorld) -> None:
    """The state machine, shortened."""
    world.fake = fake_cuda
    run_machine(world, STEPS // 10)


def test_core_agrees_with_the_model_however_late_its_thread(fake_cuda: FakeCuda) -> None:
    """What waits for the thread when others come to need it differs from run to run; what they get does not."""
    world = CudaWorld("mapped late", token_bytes=1000, guard_tokens=7, move_pages=True, map_ahead=True, late=True)
    world.fake = fake_cuda
    fake_cuda.delay(300)
    with fake_cuda.exempt():
        run_machine(world, STEPS // 20)
    assert world.met["mapped ahead"] > 0 or STEPS < NORMAL_STEPS
