# SPDX-License-Identifier: Apache-2.0
"""Text as token ids, and back."""

from typing import Any, Protocol

from vt_sglang.chat import encoding
from vt_sglang.chat.encoding import ByteEncoding, Encoding

MARKERS = {
    ByteEncoding.SYSTEM: "<system>",
    ByteEncoding.USER: "<user>",
    ByteEncoding.ASSISTANT: "<assistant>",
    ByteEncoding.END: "<end>",
}


class Texts(Protocol):
    encoding: Encoding

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, for people to read."""


class ByteTexts:
    """UTF-8 bytes and markers: 3 to 5 times as many tokens as a tokenizer would make, and the same prefixes."""

    def __init__(self) -> None:
        self.encoding: Encoding = ByteEncoding()

    def decode(self, ids: list[int]) -> str:
        pieces = bytearray()
        for token in ids:
            pieces += MARKERS[token].encode() if token in MARKERS else bytes([token]) if 0 <= token < 256 else b"?"
        return pieces.decode(errors="replace")


class TokenizerTexts:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.encoding: Encoding = encoding.TemplateEncoding(tokenizer)
        self._tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([token for token in ids if token >= 0]))


def make(tokenizer: str | None) -> Texts:
    """Texts by a model's tokenizer, by bytes without one.

    Raises:
        vt_sglang.chat.encoding.EncodingError: there is no such tokenizer.
    """
    if tokenizer is None:
        return ByteTexts()
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise encoding.EncodingError("--tokenizer needs transformers: pip install transformers") from None
    try:
        return TokenizerTexts(AutoTokenizer.from_pretrained(tokenizer))
    except (OSError, ValueError) as error:
        raise encoding.EncodingError(f"the tokenizer of {tokenizer} cannot be loaded: {error}") from error
