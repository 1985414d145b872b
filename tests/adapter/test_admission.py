# SPDX-License-Identifier: Apache-2.0
"""For whom admission has a long prefix mapped beside the work of others, before the request is let in."""

from types import SimpleNamespace
from typing import Any

import pytest

from vt_sglang.adapter.admission import VTensorPrefillAdder
from vt_sglang.layout import Geometry

TOKENS_A_PAGE, LONG = 16, 4  # pages that a prefix needs to be long


class Adder(VTensorPrefillAdder):
    """What the question needs, and nothing else of SGLang's."""

    def __init__(self, *, room: int, to_come: int) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self._geometry = Geometry(page_bytes=TOKENS_A_PAGE * 64, token_bytes=64)
        self._core = SimpleNamespace(copy_from_pages=LONG, prepare=self._prepare)
        self.can_run_list, self.running_batch, self.page_size = [], None, 1
        self._room_tokens, self._to_come = room, to_come

    @property
    def rem_total_tokens(self) -> float:
        return self._room_tokens

    def _prepare(self, node: int, least_pages: int, spare_pages: int) -> int:
        self.asked.append((node, least_pages, spare_pages))
        return self._to_come

    def _spare_pages(self) -> int:
        return 10

    def _still_to_take(self, _req: Any) -> int:
        return 3


def request(*, prefix: int, prompt: int, new: int) -> Any:
    return SimpleNamespace(
        prefix_indices=range(prefix),
        full_untruncated_fill_ids=range(prompt),
        output_ids=[],
        last_node=7,
        finished=lambda: False,
        sampling_params=SimpleNamespace(max_new_tokens=new, ignore_eos=True),
    )


def running(adder: Adder) -> None:
    adder.running_batch = SimpleNamespace(reqs=[request(prefix=0, prompt=1, new=1)])


@pytest.mark.parametrize(("to_come", "waits"), [(3, True), (0, False)])
def test_a_long_prefix_is_waited_for_while_it_is_mapped(to_come: int, waits: bool) -> None:
    adder = Adder(room=1000, to_come=to_come)
    running(adder)
    assert adder._is_being_prepared(request(prefix=80, prompt=100, new=50)) is waits
    assert adder.asked == [(7, LONG, 7)]


@pytest.mark.parametrize(
    ("room", "prefix", "others"),
    [(71, 80, True), (1000, 63, True), (1000, 80, False)],
    ids=["no memory for it yet", "a short prefix", "nobody else would wait"],
)
def test_nothing_is_mapped_for_it(room: int, prefix: int, others: bool) -> None:
    """20 tokens of its prompt and the 50 that it may generate need 72 in all as SGLang reckons."""
    adder = Adder(room=room, to_come=3)
    if others:
        running(adder)
    assert adder._is_being_prepared(request(prefix=prefix, prompt=100, new=50)) is False
    assert adder.asked == []


def test_with_a_token_more_there_is_memory() -> None:
    adder = Adder(room=72, to_come=3)
    running(adder)
    assert adder._is_being_prepared(request(prefix=80, prompt=100, new=50)) is True
