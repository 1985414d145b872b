# SPDX-License-Identifier: Apache-2.0
"""Tens of thousands of random operations over several geometries, beside a model that knows every byte.

The operations are the same in every run. VT_TEST_SEED=n makes them others, VT_TEST_STEPS=n fewer or more.
"""

import pytest
from core_machine import NORMAL_STEPS, SEED, STEPS, run_machine
from core_world import World

LEAST_STEPS = 7_000  # that a normal run really takes
MUST_BE_MET = {
    "OutOfPages", "alone", "cleared", "duplicate", "evicted", "limit below requests", "limit evicts", "planned",
    "planned before", "read together", "recorded", "shrunk", "tail copied", "tail extended", "tail none",
}  # fmt: skip
LEAST_FAILURES = 4  # kinds of driver calls that failed; which, differs with the version of hypothesis
MET_UNDER_LIMIT = {True: {"mapping limit"}, False: {"withheld", "withheld no more"}}  # whether mappings are limited

WORLDS = (
    World("four tokens a page", token_bytes=1024),
    World("tokens straddle pages", token_bytes=1000, guard_tokens=7),
    World("many tokens a page", token_bytes=96, symbol_tokens=17),
    World("tokens larger than a page", token_bytes=6000, budget_pages=64),
    World("few mappings", token_bytes=1000, mapping_limit=10),
    World("contents move", token_bytes=1000, guard_tokens=7, move_pages=True),
    World("mapped ahead", token_bytes=1000, guard_tokens=7, move_pages=True, map_ahead=True),
)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_core_agrees_with_the_model(world: World) -> None:
    run_machine(world, STEPS // len(WORLDS))
    assert world.met["steps"] >= min(LEAST_STEPS, STEPS // 2) // len(WORLDS)
    if STEPS >= NORMAL_STEPS and SEED == 0:
        must = MUST_BE_MET | MET_UNDER_LIMIT[world.mapping_limit > 0]
        # What is read together is not about pages, and rare where few requests are live for long.
        assert set(world.met) >= must - ({"read together"} if world.move_pages else set())
        assert ("contents moved" in world.met) == world.move_pages
        assert ("prefix copied" in world.met) == world.move_pages
        assert ("mapped ahead" in world.met) == world.map_ahead
        assert sum(name.startswith("failed ") for name in world.met) >= LEAST_FAILURES
    print(f"\n{world.name}: {dict(sorted(world.met.items()))}")
