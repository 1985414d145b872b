# SPDX-License-Identifier: Apache-2.0
"""Token ids of a dialogue, piece by piece.

A turn's prompt is the last prompt, the answer to it, and the tokens from there to where the next answer begins. Pieces
are never encoded again once they have been sent, so a prompt always begins with all that came before, token for token.
"""

import json
from pathlib import Path
from typing import Any, Protocol

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

# For models that were trained on no chat: what their tokenizers do not bring along.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ANSWER = "ANSWER-STANDS-HERE"


class EncodingError(ValueError):
    """The model has no usable encoding of dialogues."""


class Encoding(Protocol):
    def text(self, text: str) -> list[int]:
        """Ids of a piece of text, without any marker."""

    def opening(self, system: str | None, user: str) -> list[int]:
        """Ids from the start of a dialogue to where its first answer begins."""

    def following(self, user: str) -> list[int]:
        """Ids from the end of an answer to where the next one begins."""


class ByteEncoding:
    """UTF-8 bytes and four markers, for a model without a tokenizer."""

    SYSTEM, USER, ASSISTANT, END = range(256, 260)
    VOCABULARY = 260

    def text(self, text: str) -> list[int]:
        return list(text.encode())

    def opening(self, system: str | None, user: str) -> list[int]:
        head = [] if system is None else [self.SYSTEM, *self.text(system), self.END]
        return head + self._question(user)

    def following(self, user: str) -> list[int]:
        return [self.END, *self._question(user)]

    def _question(self, user: str) -> list[int]:
        return [self.USER, *self.text(user), self.END, self.ASSISTANT]


class TemplateEncoding:
    """A Hugging Face tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or PLAIN_TEMPLATE

    def text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def opening(self, system: str | None, user: str) -> list[int]:
        head = [] if system is None else [{"role": "system", "content": system}]
        return self.text(self._render([*head, {"role": "user", "content": user}]))

    def following(self, user: str) -> list[int]:
        messages = [("user", "?"), ("assistant", ANSWER), ("user", user)]
        rendered = self._render([{"role": role, "content": content} for role, content in messages])
        _, found, rest = rendered.partition(ANSWER)
        if not found:
            raise EncodingError("the chat template leaves answers of earlier turns out, so no turn can follow another")
        return self.text(rest)

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError  # what transformers renders with

        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise EncodingError(f"the chat template refuses a dialogue: {error}") from error
        return rendered


def for_model(model_path: str) -> Encoding:
    """The model's own tokenizer and chat template; bytes for a folder that holds none.

    Raises:
        EncodingError: neither will do.
    """
    folder = Path(model_path)
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        try:
            vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        except (OSError, ValueError, KeyError) as error:
            raise EncodingError(f"{folder} holds neither a tokenizer nor a config.json with a vocab_size") from error
        if vocabulary < ByteEncoding.VOCABULARY:
            raise EncodingError(
                f"{folder} holds no tokenizer, and a vocabulary of {vocabulary} is too small for bytes and markers, "
                f"which take {ByteEncoding.VOCABULARY}"
            )
        return ByteEncoding()
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise EncodingError("the model's tokenizer needs transformers: pip install transformers") from None
    try:
        return TemplateEncoding(AutoTokenizer.from_pretrained(model_path))
    except (OSError, ValueError) as error:
        raise EncodingError(f"the tokenizer of {model_path} cannot be loaded: {error}") from error
