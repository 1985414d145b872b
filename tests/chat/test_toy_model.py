# SPDX-License-Identifier: Apache-2.0
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vt_sglang.chat import toy_model

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

PROMPT_TOKENS, OUTPUT_TOKENS, TRIALS = 300, 16, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "toy"
    assert toy_model.ensure(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def greedy(model: Any, prompts: np.ndarray[Any, Any], tokens: int) -> tuple[Any, Any]:
    """Continuations [batch, tokens] and their logits [batch, tokens, vocabulary]."""
    ids = torch.from_numpy(prompts)
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return said.sequences[:, ids.shape[1] :], torch.stack(said.logits, dim=1)


def test_all_weights_are_there(folder: Path) -> None:
    _, loading = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())


def test_one_early_token_changes_the_answer(model: Any) -> None:
    drawn = np.random.default_rng(1)
    changed = 0
    for _ in range(TRIALS):
        prompt = drawn.integers(0, 256, PROMPT_TOKENS)
        other = prompt.copy()
        other[5] = (other[5] + 1 + drawn.integers(0, 255)) % 256
        said, _ = greedy(model, np.stack([prompt, other]), OUTPUT_TOKENS)
        changed += bool((said[0] != said[1]).any())
    assert changed >= TRIALS - 1


def test_answers_do_not_loop(model: Any) -> None:
    prompts = np.random.default_rng(2).integers(0, 256, (4, PROMPT_TOKENS))
    said, _ = greedy(model, prompts, 64)
    for answer in said.tolist():
        tail = answer[32:]
        assert all(tail[period:] != tail[:-period] for period in range(1, 17))
        assert len(set(answer)) > 32


def test_margins_are_far_above_rounding_errors(model: Any) -> None:
    """Where two computations of the same logits differ, the best token must still be the best in both."""
    import copy

    prompts = np.random.default_rng(3).integers(0, 256, (8, PROMPT_TOKENS))
    said, logits = greedy(model, prompts, OUTPUT_TOKENS)
    best, ids = logits.double().topk(2)
    margins = best[..., 0] - best[..., 1]
    whole = torch.cat([torch.from_numpy(prompts), said], dim=1)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(whole).logits[:, PROMPT_TOKENS - 1 : -1].gather(-1, ids)
    errors = ((exact[..., 0] - exact[..., 1]) - margins).abs()
    print(f"\nsmallest margin {margins.min():.1e}, median {margins.median():.2f}; largest error {errors.max():.1e}")
    assert errors.max() < 1e-4
    assert margins.min() > 10 * errors.max()
    assert margins.median() > 1e4 * errors.max()


def test_equal_seeds_give_equal_files_and_another_seed_gives_others(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        toy_model.ensure(tmp_path / str(seed), seed)
    for name in (toy_model.CONFIG, toy_model.WEIGHTS):
        content = (folder / name).read_bytes()
        assert (tmp_path / "0" / name).read_bytes() == content
        assert (tmp_path / "1" / name).read_bytes() != content


def test_a_complete_model_is_not_written_again(tmp_path: Path) -> None:
    assert toy_model.ensure(tmp_path)
    before = [os.stat(tmp_path / name).st_ino for name in (toy_model.CONFIG, toy_model.WEIGHTS)]
    assert not toy_model.ensure(tmp_path)
    assert [os.stat(tmp_path / name).st_ino for name in (toy_model.CONFIG, toy_model.WEIGHTS)] == before


@pytest.mark.parametrize("damage", ["cut", "empty", "no weights", "no configuration", "another configuration"])
def test_an_incomplete_model_is_written_again(tmp_path: Path, damage: str) -> None:
    toy_model.ensure(tmp_path)
    config, weights = tmp_path / toy_model.CONFIG, tmp_path / toy_model.WEIGHTS
    whole = config.read_bytes(), weights.read_bytes()
    match damage:
        case "cut":
            os.truncate(weights, len(whole[1]) - 1)
        case "empty":
            os.truncate(weights, 0)
        case "no weights":
            weights.unlink()
        case "no configuration":
            config.unlink()
        case "another configuration":
            config.write_text(json.dumps(toy_model.config(1)))
    assert toy_model.ensure(tmp_path)
    assert (config.read_bytes(), weights.read_bytes()) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [toy_model.CONFIG, toy_model.WEIGHTS]
