# SPDX-License-Identifier: Apache-2.0
"""What every server is asked, and when."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from vt_sglang.chat import dialogues, generator, pace, script
from vt_sglang.chat.dialogues import Dialogue, DialogueError
from vt_sglang.chat.encoding import Encoding
from vt_sglang.chat.generator import Shape
from vt_sglang.chat.pace import Pace
from vt_sglang.chat.script import Script
from vt_sglang.chat.settings import Answers, Load, RateOf, Settings

# In a closed loop the last dialogues are played by fewer and fewer clients: a probe has several a client.
DIALOGUES_A_CLIENT = 4


@dataclass(frozen=True)
class Workload:
    scripts: Sequence[Script]
    clients: int
    """Clients that play at the same time in a closed loop."""
    output_tokens: int
    """Tokens of every answer."""
    pace: Pace = field(default_factory=Pace)

    @property
    def requests(self) -> int:
        return sum(len(script.played) for script in self.scripts)

    @property
    def lost_turns(self) -> int:
        """Turns that are left out because they do not fit the context."""
        return sum(script.lost_turns for script in self.scripts)


class Source:
    """Dialogues of a file or of a shape, encoded, as many as are asked for, and workloads made from them."""

    def __init__(self, settings: Settings, encoding: Encoding, most_tokens: int) -> None:
        """most_tokens: tokens that a sequence may have on the servers."""
        self.skipped = 0
        """Entries of the file that are no dialogues and were left out."""
        self._settings = settings
        self._encoding = encoding
        self._most_tokens = most_tokens
        self._scripts: list[Script] = []

    def scripts(self, count: int | None = None) -> list[Script]:
        """The settings' dialogues, or the first so many of the shape, or of the file as far as they go.

        Raises:
            DialogueError, EncodingError: of the file, or of the model's chat template.
        """
        shape = self._settings.dialogues
        wanted = count or (shape.num_dialogues if isinstance(shape, Shape) else 0)
        if not self._scripts or (isinstance(shape, Shape) and len(self._scripts) < wanted):
            self._scripts = script.write(
                self._texts(wanted),
                self._encoding,
                output_tokens=self._settings.output_tokens,
                most_tokens=self._most_tokens,
                given_answers=self._settings.answers is Answers.FILE,
            )
        return self._scripts[:count]

    def workload(self, repeat: int = 0) -> Workload:
        """What is played in a repeat: always the same dialogues, at other times of arrival and think times.

        Raises:
            DialogueError, EncodingError: as above, or of the file of arrival times.
        """
        settings = self._settings
        scripts = self.scripts()[: settings.limit]
        return Workload(
            scripts, settings.clients, settings.output_tokens, self._pace(scripts, settings.load, str(repeat))
        )

    def probe(self, load: float, attempt: int) -> Workload:
        """What a saturation search plays at a load: a rate in an open loop, else a number of clients."""
        settings, asked = self._settings, self._settings.saturation
        assert asked is not None
        scripts = self.scripts()
        played = max(1, sum(len(script.played) for script in scripts))
        least = ceil(asked.probe_requests * len(scripts) / played)
        if settings.load.is_open:
            least = max(least, ceil(asked.probe_seconds * self._conversations(load, scripts)))
            clients, how = settings.clients, replace(settings.load, rate=load)
        else:
            clients, how = int(load), settings.load
            least = max(least, DIALOGUES_A_CLIENT * clients)
        scripts = self.scripts(max(least, len(scripts)))[: settings.limit]
        return Workload(scripts, clients, settings.output_tokens, self._pace(scripts, how, f"attempt {attempt}"))

    def _texts(self, count: int) -> list[Dialogue]:
        shape = self._settings.dialogues
        if isinstance(shape, Shape):
            shape = replace(shape, num_dialogues=count)
            return generator.generate(shape, lambda text: len(self._encoding.text(text)))

        def skip(_: DialogueError) -> None:
            self.skipped += 1

        return dialogues.read(shape, self._settings.limit, skip if self._settings.skip_bad else None)

    def _pace(self, scripts: Sequence[Script], load: Load, seed: str) -> Pace:
        seed = f"{load.seed}, {seed}"
        starts: list[float] | None = None
        if load.rate is not None:
            starts = pace.poisson(self._conversations(load.rate, scripts), len(scripts), seed)
        elif load.arrivals is not None:
            own = isinstance(self._settings.dialogues, Path) and self._settings.dialogues.samefile(load.arrivals)
            starts = pace.timestamps(load.arrivals, len(scripts), in_order=own, time_scale=load.time_scale)
        turns = [len(script.turns) for script in scripts]
        thinks = pace.think_times(load.think_time_s, load.thinking, turns, seed) if load.think_time_s else ()
        return Pace(starts, thinks, load.max_in_flight)

    def _conversations(self, rate: float, scripts: Sequence[Script]) -> float:
        """Conversations a second at a rate of either."""
        if self._settings.load.rate_of is RateOf.CONVERSATIONS:
            return rate
        return rate * len(scripts) / max(1, sum(len(script.played) for script in scripts))
