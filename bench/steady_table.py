# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown of what bench/steady.py wrote."""

from collections.abc import Callable, Sequence
from typing import Any

import serve_compare
import steady_served_table

PAGE_ROWS = {
    "pages created": "pages_created",
    "pages mapped": "pages_mapped",
    "pages unmapped": "pages_unmapped",
    "pages adopted": "pages_adopted",
    "pages reused": "pages_reused",
    "pages moved": "pages_moved",
    "tails copied": "tails_copied",
}
BINDS = {"bind, new": "a new conversation", "bind, next": "the next turn", "bind, last turn": "the last turn"}

Markdown = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def make(result: dict[str, Any], markdown: Markdown) -> str:
    """The tables of a result."""
    found = result["results"]
    if result["case"] == "cold":
        parts = _cold(found, markdown)
    elif result["case"] == "trace":
        return _trace(found, markdown)
    elif result["case"] == "served-trace":
        parts = _served_trace(found, markdown)
    else:
        parts = [*(_servers(found, markdown) if "rows" in found else []), *_core(found.get("core"), markdown)]
    return "\n".join([*parts, *_targets(found["targets"], markdown)])


def _load(load: dict[str, Any]) -> str:
    shape = load["load"]
    order = "in a random order" if load["random_order"] else "each client its own"
    return (
        f"{load['conversations']:,} conversations a pass, {shape['clients']} at a time, {order}: "
        f"{shape['turns']} turns of {shape['first_tokens']} and then {shape['next_tokens']} tokens, answers of "
        f"{shape['output_tokens']}, system prompt of {shape['system_tokens']:,}; the first {load['warm']} of "
        f"{load['passes']} passes are not measured"
    )


def _servers(found: dict[str, Any], markdown: Markdown) -> list[str]:
    how = "side by side, at work by turns" if found["together"] and len(found["sides"]) > 1 else "one after the other"
    parts = [f"{_load(found['load'])}. Memory for {found['total_tokens']:,} tokens; servers {how}.\n"]
    parts.append(markdown(*serve_compare.table(found["rows"])))
    drivers = found["drivers"]
    if drivers:
        rows = [
            [
                "driver calls per 1,000 tokens",
                *(f"{it['driver_calls_per_1000_tokens']:.4f}" for it in drivers.values()),
            ],
            ["pages moved per 1,000 tokens", *(f"{it['pages_moved_per_1000_tokens']:.2f}" for it in drivers.values())],
            ["scheduler in the driver, of the time", *(f"{it['share']:.3%}" for it in drivers.values())],
            *(
                [name, *(f"{it['counters'].get(key, 0):,}" for it in drivers.values())]
                for name, key in PAGE_ROWS.items()
            ),
        ]
        parts.append("The worst pass measured, and pages in all of them:\n")
        parts.append(markdown(["", *drivers], rows))
    return parts


def _core(core: dict[str, Any] | None, markdown: Markdown) -> list[str]:
    if core is None:
        return []
    cache, measured = core["cache"], core["passes"][core["load"]["warm"] :]
    text = (
        f"On the core alone ({cache['driver']} driver, {cache['budget_pages']:,} pages of "
        f"{cache['page_bytes'] / 2**20:g} MiB, {cache['slots']} slots). {_load(core['load'])}.\n"
    )

    def row(name: str, show: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(show(it) for it in measured)]

    rows = [
        row("driver calls per 1,000 tokens", lambda it: f"{it['driver_calls_per_1000_tokens']:.4f}"),
        row("pages moved per 1,000 tokens", lambda it: f"{it['pages_moved_per_1000_tokens']:.2f}"),
        row("in the driver, ms", lambda it: f"{it['counters']['driver_ns'] / 1e6:,.2f}"),
        row("cached tokens, of the prompts'", lambda it: f"{it['cached_tokens'] / it['prompt_tokens']:.1%}"),
        *(row(name, lambda it, key=key: f"{it['counters'].get(key, 0):,}") for name, key in PAGE_ROWS.items()),
        *(
            row(f"bind for {text}, p50 / p99, us", lambda it, name=name: _times(it["microseconds"].get(name)))
            for name, text in BINDS.items()
        ),
    ]
    return [text, markdown(["", *(f"pass {it + 1}" for it in range(core["load"]["warm"], len(core["passes"])))], rows)]


def _times(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['p50']:,.1f} / {found['p99']:,.1f}"


def _cold(found: dict[str, Any], markdown: Markdown) -> list[str]:
    parts = [f"A prefix of {found['prefix_tokens']:,} tokens, and {found['own_tokens']:,} of each request's own.\n"]
    if core := found.get("core"):
        rows = [
            [
                kind,
                *(f"{core[f'{kind}_us']['all'][key] / 1e3:,.3f}" for key in ("p50", "p99")),
                f"{core[kind][-1]['pages_shared']:,}",
                f"{core[kind][-1]['causes']['all']:,}",
                f"{core[kind][-1]['causes']['copied']:,}",
                f"{core[kind][-1]['causes']['moved']:,}",
            ]
            for kind in ("cold", "copied", "warm")
            if kind in core
        ]
        header = [
            "bound on the core",
            "until launch, p50, ms",
            "p99, ms",
            "pages shared",
            "driver calls",
            "copied",
            "moved",
        ]
        parts.append(markdown(header, rows))
    for side, it in found.get("servers", {}).items():
        rows = [
            [
                kind,
                f"{it[f'{kind}_ttft_ms']:,.1f}",
                *(
                    f"{it[f'{kind}_{key}']:,.{digits}f}" if f"{kind}_{key}" in it else ""
                    for key, digits in (("driver_ms", 2), ("driver_calls", 0), ("pages_moved", 0))
                ),
            ]
            for kind in ("computed", "cold", "warm")
        ]
        header = [
            f"{side}, medians of {len(found['rounds'])} rounds",
            "TTFT, ms",
            "driver, ms",
            "driver calls",
            "moved",
        ]
        parts.append(markdown(header, rows))
    return parts


def _trace(found: dict[str, Any], markdown: Markdown) -> str:
    rows = [
        [
            f"{it['tokens']:,}",
            f"{it['hit_rate']:.2%}",
            f"{it['ideal_hit_rate']:.2%}",
            f"{it['driver_calls_per_1000_tokens']:.3f}",
            f"{it['pages_moved_per_1000_tokens']:.2f}",
        ]
        for it in found["capacities"]
    ]
    header = ["tokens", "hit rate", "of an LRU of tokens", "driver calls per 1,000 tokens", "pages moved"]
    return f"{found['requests']:,} requests, {found['clients']} at a time.\n\n{markdown(header, rows)}"


def _served_trace(found: dict[str, Any], markdown: Markdown) -> list[str]:
    core = [f"{steady_served_table.core(found['core'])}\n"] if "core" in found else []
    return [f"{steady_served_table.load(found)}\n", markdown(*steady_served_table.servers(found)), *core]


def _targets(targets: dict[str, Any], markdown: Markdown) -> list[str]:
    if not targets:
        return []
    rows = [
        [name, f"{it['measured']:,.4g}", f"{it['most']:g}", "yes" if it["reached"] else "no"]
        for name, it in targets.items()
    ]
    return [markdown(["target", "measured", "at most", "reached"], rows)]
