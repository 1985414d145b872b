# SPDX-License-Identifier: Apache-2.0
"""Looks at a server, one after the other."""

import time
from typing import Any

from vt_sglang.watch.sample import Sample, from_info, from_metrics
from vt_sglang.watch.source import NoAnswerError, Source

INFO_EVERY_S = 5.0
"""Where /metrics gives the figures, /server_info is asked for the busiest prefixes only so often: the scheduler answers
it between two forwards, and has to look at all of its tree."""

NO_METRICS = "no /metrics: start the server with --enable-metrics for requests queued and live rates of output"
NO_VTENSOR = (
    "not a server on virtual tensors (--radix-cache-backend vtensor): where cached tokens were found, pages, the "
    "driver and the busiest prefixes are not known"
)
NO_INFO = "no /server_info: the busiest prefixes are not known"


class Reader:
    """Takes samples of one server."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._info: dict[str, Any] | None = None
        self._info_s = -INFO_EVERY_S

    def read(self) -> Sample:
        """One sample. NoAnswerError if the server does not answer."""
        text = self._source.metrics()
        now = time.monotonic()
        if text is None or now - self._info_s >= INFO_EVERY_S:
            self._info, self._info_s = self._source.info(), now
        if text is None and self._info is None:
            raise NoAnswerError(f"{self._source.url} has neither /metrics nor /server_info; is this an SGLang server?")
        return sample(text, self._info, now)

    def forget(self) -> None:
        """The server went away: what it said of itself may not hold for the next one."""
        self._info, self._info_s = None, -INFO_EVERY_S


def sample(text: str | None, info: dict[str, Any] | None, time_s: float) -> Sample:
    """What a /metrics text and a /server_info say together; of what is in both, the text, which is never older.

    NoAnswerError if the text is none of an SGLang's.
    """
    figures: dict[str, float] = {}
    busiest = None
    if info is not None:
        try:
            figures, busiest = from_info(info)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise NoAnswerError("/server_info is not what this version of vt-sglang reads") from None
    if text is not None:
        try:
            live = from_metrics(text)
        except ValueError as error:
            raise NoAnswerError(f"/metrics is not in Prometheus' format: {error}") from None
        if "prompt_tokens" in live or "running" in live:
            # Two looks at the same count, seconds apart, would make rates of nothing.
            sizes = ("page_bytes", "token_bytes")
            figures = {name: value for name, value in figures.items() if name in sizes} | live
        else:
            text = None
    has_vtensor = "pages_pinned" in figures
    notes = []
    if text is None:
        notes.append(NO_METRICS)
    if not has_vtensor:
        notes.append(NO_VTENSOR)
    elif info is None:
        notes.append(NO_INFO)
    about = info or {}
    return Sample(
        time_s=time_s,
        figures=figures,
        has_metrics=text is not None,
        has_vtensor=has_vtensor,
        busiest=busiest,
        model=about.get("served_model_name") or about.get("model_path"),
        version=about.get("version"),
        notes=notes,
    )
