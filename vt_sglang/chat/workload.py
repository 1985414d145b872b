# SPDX-License-Identifier: Apache-2.0
"""What every server is asked, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from vt_sglang.chat import dialogues, generator, script
from vt_sglang.chat.encoding import Encoding
from vt_sglang.chat.generator import Shape
from vt_sglang.chat.script import Script
from vt_sglang.chat.settings import Answers, Settings


@dataclass(frozen=True)
class Workload:
    scripts: Sequence[Script]
    clients: int
    """Clients that play at the same time."""
    output_tokens: int
    """Tokens of every answer."""

    @property
    def requests(self) -> int:
        return sum(len(script.played) for script in self.scripts)

    @property
    def lost_turns(self) -> int:
        """Turns that are left out because they do not fit the context."""
        return sum(script.lost_turns for script in self.scripts)


def prepare(settings: Settings, encoding: Encoding, most_tokens: int) -> Workload:
    """Read or generate the dialogues and encode them.

    Args:
        most_tokens: tokens that a sequence may have on the servers.

    Raises:
        DialogueError, EncodingError: of the file, or of the model's chat template.
    """
    if isinstance(settings.dialogues, Shape):
        texts = generator.generate(settings.dialogues, lambda text: len(encoding.text(text)))[: settings.limit]
    else:
        texts = dialogues.read(settings.dialogues, settings.limit)
    scripts = script.write(
        texts,
        encoding,
        output_tokens=settings.output_tokens,
        most_tokens=most_tokens,
        given_answers=settings.answers is Answers.FILE,
    )
    return Workload(scripts, settings.clients, settings.output_tokens)
