# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from vt_sglang.chat.encoding import PLAIN_TEMPLATE, ByteEncoding, EncodingError, TemplateEncoding, for_model

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message['role'] }}>{{ message['content'] | trim }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_bytes_and_markers() -> None:
    encoding = ByteEncoding()
    assert encoding.text("aé") == [97, 195, 169]
    assert encoding.opening("s", "u") == [256, 115, 259, 257, 117, 259, 258]
    assert encoding.opening(None, "u") == [257, 117, 259, 258]
    assert encoding.following("v") == [259, 257, 118, 259, 258]


def tokenizer(template: str | None) -> Any:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>")
    wrapped.chat_template = template
    return wrapped


@pytest.mark.parametrize("template", [TEMPLATE, None])
@pytest.mark.parametrize("system", ["Be brief.", None])
def test_pieces_make_up_what_the_template_makes_of_the_whole(template: str | None, system: str | None) -> None:
    wrapped = tokenizer(template)
    encoding = TemplateEncoding(wrapped)
    pieces = encoding.opening(system, "Hello") + encoding.text("Hi there.") + encoding.following("And?")
    messages = [] if system is None else [{"role": "system", "content": system}]
    for role, content in (("user", "Hello"), ("assistant", "Hi there."), ("user", "And?")):
        messages.append({"role": role, "content": content})
    whole = wrapped.apply_chat_template(
        messages, chat_template=template or PLAIN_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert wrapped.decode(pieces) == whole
    assert pieces == wrapped.encode(whole, add_special_tokens=False)


def test_template_that_refuses_is_an_error() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(EncodingError, match="no system role"):
        TemplateEncoding(tokenizer(refusing)).opening("s", "u")


def test_template_that_drops_answers_is_an_error() -> None:
    with pytest.raises(EncodingError, match="leaves answers of earlier turns out"):
        TemplateEncoding(tokenizer("{{ messages[-1]['content'] }}")).following("u")


def test_a_folder_with_a_tokenizer_is_encoded_by_it(tmp_path: Path) -> None:
    tokenizer(TEMPLATE).save_pretrained(tmp_path)
    assert for_model(str(tmp_path)).opening(None, "u") == TemplateEncoding(tokenizer(TEMPLATE)).opening(None, "u")


def test_a_folder_without_a_tokenizer_is_encoded_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 260}))
    assert isinstance(for_model(str(tmp_path)), ByteEncoding)


@pytest.mark.parametrize(
    ("config", "reason"), [('{"vocab_size": 259}', "vocabulary of 259 is too small"), ("{}", "neither a tokenizer nor")]
)
def test_a_folder_that_cannot_be_encoded_for_is_an_error(tmp_path: Path, config: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(EncodingError, match=reason):
        for_model(str(tmp_path))


def test_a_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("nonsense")
    with pytest.raises(EncodingError, match="cannot be loaded"):
        for_model(str(tmp_path))
