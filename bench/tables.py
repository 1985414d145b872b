# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/performance.md anew from the JSON files in bench/results.

    python bench/tables.py [--check]

A table stands between `<!-- NAME -->` and `<!-- end -->`, NAME being that of the result it is made from. `--check`
changes nothing and exits with 1 if a table is not what the results say.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import serve_compare
import steady_table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/performance.md"
RESULTS = ROOT / "bench/results"

_PLACE = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _where(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    machine = result["machine"]
    gpus = machine.get("gpus") or [machine.get("gpu")]
    names = [name for name in (*gpus, machine.get("cpu") or machine.get("processor")) if name]
    return f"`{result.get('command_line') or result['command']}`, {result['date'][:10]}, {names[0]}; {versions}.\n\n"


def _tree(result: dict[str, Any]) -> str:
    rows = [
        [
            row["operation"],
            f"{row['sglang_us']:,.1f}",
            f"{row['vtensor_us']:,.1f}",
            f"{row['ratio']:,.0f}",
            f"{row['target']:,}" if row["target"] else "",
            f"{row['floor_us']:,.1f}" if row["floor_us"] is not None else "",
        ]
        for row in result["results"]
    ]
    return _markdown(["operation", "SGLang, us", "vtensor, us", "times faster", "target", "floor, us"], rows)


def _decode(result: dict[str, Any]) -> str:
    """Results from before there was a kernel for Hopper lack its column; from before FlashAttention-3 was measured over
    virtual tensors, that; and older ones what being ready to share costs."""
    names = {
        "fa3_page1": "FA3 page 1",
        "fa3_page64": "FA3 page 64",
        "fa3_contiguous": "FA3 contiguous",
        "triton": "Triton",
        "hopper": "Hopper",
        "ready": "ready to share",
    }
    sides = _measured(result, names)
    own = "hopper" if "hopper" in sides else "triton"
    # "The better" is that of the two on pages.
    ratios = {
        "over page 1": lambda row: row["fa3_page1_us"] / row[f"{own}_us"],
        "over the better": itemgetter("ratio"),
    }
    if "ready" in sides:
        ratios["ready, over the better"] = itemgetter("ready_ratio")
    rows = [
        [
            row["shape"],
            *(f"{row[f'{side}_us']:,.1f}" for side in sides),
            *(f"{ratio(row):.3f}" for ratio in ratios.values()),
            f"{row['floor_us']:,.1f}",
            f"{row['floor_us'] / row[f'{own}_us']:.0%}",
        ]
        for row in result["results"]
    ]
    means = [f"{fmean(map(ratio, result['results'])):.3f}" for ratio in ratios.values()]
    header = ["batch x tokens, us", *(names[it] for it in sides), *ratios, "floor", "of the floor"]
    return _markdown(header, [*rows, ["mean", *[""] * len(sides), *means, "", ""]])


def _measured(result: dict[str, Any], sides: Iterable[str]) -> list[str]:
    """Those sides that have a time in every row."""
    return [side for side in sides if all(f"{side}_us" in row for row in result["results"])]


def _prefill(result: dict[str, Any]) -> str:
    """Results from before there was a kernel for Hopper lack its columns, and older ones what `auto` takes, and the
    floor."""
    names = {
        "fa3_page1": "FA3 page 1",
        "sglang_triton": "SGLang's Triton",
        "fa3_contiguous": "FA3 contiguous",
        "triton": "Triton",
        "hopper": "Hopper",
    }
    sides = _measured(result, names)
    own = sides[-1]
    ratios = [("sglang_triton", own, ".2f"), ("fa3_page1", own, ".3f"), ("fa3_page1", "fa3_contiguous", ".3f")]
    header = ["requests: prefix + new, TFLOP/s", *(names[side] for side in sides), "over SGLang's", "over FA3 page 1"]
    header.append("FA3 contiguous over page 1")
    if own == "hopper":
        ratios.append(("fa3_contiguous", own, ".3f"))
        header.append("over FA3 contiguous")
    chooses = bool(_measured(result, ["auto"]))
    floors = bool(_measured(result, ["floor"]))
    if chooses:
        ratios.append(("fa3_page1", "auto", ".3f"))
        header += ["auto over page 1", "auto"]
    if floors:
        header += ["floor, us", "of the floor"]

    def shown(numbers: Sequence[float]) -> list[str]:
        return [f"{number:{form}}" for number, (*_, form) in zip(numbers, ratios, strict=True)]

    def more(row: dict[str, Any]) -> list[str]:
        best = row["auto_us"] if chooses else row[f"{own}_us"]
        floor = [f"{row['floor_us']:,.1f}", f"{row['floor_us'] / best:.0%}"] if floors else []
        return [names[row["auto"]], *floor] if chooses else floor

    gains = [[row[f"{over}_us"] / row[f"{us}_us"] for over, us, _ in ratios] for row in result["results"]]
    rows = [
        [
            row["shape"],
            *(f"{1e3 * row['gigaflop'] / row[f'{side}_us']:,.0f}" for side in sides),
            *shown(gain),
            *more(row),
        ]
        for row, gain in zip(result["results"], gains, strict=True)
    ]
    means = [fmean(column) for column in zip(*gains, strict=True)]
    empty = [""] * (chooses + 2 * floors)
    return _markdown(header, [*rows, ["mean", *[""] * len(sides), *shown(means), *empty]])


def _shared(result: dict[str, Any]) -> str:
    rows = []
    for row in result["results"]:
        cascade = row.get("fa3_cascade_us")
        rows.append(
            [
                row["shape"],
                f"{row['fa3_page1_us']:,.1f}",
                "" if cascade is None else f"{cascade:,.1f}",
                *(f"{row[f'{side}_us']:,.1f}" for side in ("plain", "triton", "hopper")),
                f"{row['ratio']:.2f}",
                "" if cascade is None else f"{cascade / row['hopper_us']:.2f}",
                f"{row['hopper_us'] / row['plain_us'] - 1:+.1%}" if row["shape"].count("nothing") else "",
                f"{row['floor_us']:,.1f}",
            ]
        )
    header = ["requests: shared + own, us", "FA3 page 1", "FA3 cascade", "plain decode", "in decode", "Hopper"]
    return _markdown([*header, "over page 1", "over the cascade", "cost where nothing is shared", "floor"], rows)


def _chat(result: dict[str, Any]) -> str:
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("requests", lambda it: f"{it['summary']['requests']:,}"),
        ("prompt tokens", lambda it: f"{it['summary']['prompt_tokens']:,}"),
        ("cached tokens", lambda it: f"{it['summary']['cached_tokens']:,}"),
        ("hit rate", lambda it: f"{it['summary']['hit_rate']:.1%}"),
        (
            "TTFT p50 / p99, ms",
            lambda it: f"{it['summary']['ttft_p50_ms']:.1f} / {it['summary']['ttft_p99_ms']:.1f}",
        ),
        (
            "inter-token p50 / p99, ms",
            lambda it: f"{it['summary']['inter_token_p50_ms']:.2f} / {it['summary']['inter_token_p99_ms']:.2f}",
        ),
        ("output tokens/s", lambda it: f"{it['summary']['output_tokens_per_s']:,.1f}"),
        ("server start, s", lambda it: f"{it['start_s']:.1f}"),
    ]
    counters = [
        ("pages created", "pages_created"),
        ("pages aliased", "pages_aliased"),
        ("pages mapped", "pages_mapped"),
        ("pages unmapped", "pages_unmapped"),
        ("tails extended in place", "tails_extended"),
        ("tails copied", "tails_copied"),
    ]
    servers = result["servers"]
    rows = [[name, *(show(server) for server in servers)] for name, show in lines]
    for name, key in counters:
        values = [server["vtensor"] for server in servers]
        rows.append([name, *("" if value is None else f"{value['counters'][key]:,}" for value in values)])
    comparison = result["comparison"]
    same = "identical in all" if not comparison["differing"] else f"different in {comparison['differing']} of"
    cached = "at least stock's in every request" if comparison["cached_by_request"] else "at least stock's in total"
    if not comparison["cached_at_least"]:
        cached = "fewer than stock's"
    text = _markdown(["", *(server["name"] for server in servers)], rows)
    outputs = f"Outputs {same} {comparison['requests']} requests ({comparison['distinct']} different ones)"
    return f"{text}\n{outputs}; cached tokens {cached}.\n"


def _serve(result: dict[str, Any]) -> str:
    found = result["results"]
    alternating = "side by side, at work by turns" if found["together"] else "one after the other"
    runs = found["repeats"] * found["runs_per_start"]
    text = f"Medians of {runs} runs (lowest to highest), servers {alternating}.\n\n"
    for load in found["loads"]:
        shape = load["shape"]
        text += (
            f"{shape['clients']} conversations {load['name']}: {shape['turns']} turns of {shape['first_tokens']} and "
            f"then {shape['next_tokens']} tokens, answers of {shape['output_tokens']}:\n\n"
        )
        text += _markdown(*serve_compare.table(load["rows"])) + "\n"
    return f"{text}The servers, by start:\n\n{_markdown(*serve_compare.table(found['servers']))}"


def _replay(result: dict[str, Any]) -> str:
    trace, model, infinite = result["trace"], result["model"], result["infinite"]
    text = (
        f"{trace['requests']:,} requests with {trace['prompt_tokens']:,} prompt tokens, {model['name']} "
        f"({model['token_bytes']:,} bytes a token), pages of {model['page_bytes'] // 2**20} MiB.\n\n"
    )
    rows = [
        [
            f"{entry['bytes'] / 2**30:.1f}",
            f"{entry['tokens']:,}",
            f"{entry['vtensor']['hit_rate']:.1%}",
            f"{entry['radix']['hit_rate']:.1%}",
            f"{entry['vtensor']['seconds'] * 1e3:,.1f}",
            f"{entry['radix']['seconds'] * 1e3:,.1f}",
            f"{entry['times_faster']:.1f}",
        ]
        for entry in result["capacities"]
    ]
    rows.append(["infinite", "", f"{infinite['hit_rate']:.1%}", "", "", "", ""])
    header = [
        "capacity, GiB",
        "tokens",
        "hit rate",
        "RadixCache's",
        "in the cache, ms",
        "RadixCache, ms",
        "times faster",
    ]
    return text + _markdown(header, rows)


def _steady(result: dict[str, Any]) -> str:
    return steady_table.make(result, _markdown)


def _table(name: str) -> str:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        file = RESULTS / "more" / file.name
    result = json.loads(file.read_text())
    makers = {
        "tree": _tree,
        "decode": _decode,
        "prefill": _prefill,
        "prefill-short": _prefill,
        "shared": _shared,
        "replay": _replay,
    }
    if name.startswith("steady"):
        makers[name] = _steady
    make = makers.get(name, _serve if name.startswith("serve") else _chat)
    note = f"{result['note']}\n\n" if "note" in result else ""
    return f"<!-- {name} -->\n{_where(result)}{note}{make(result)}<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = DOCUMENT.read_text()
    new = _PLACE.sub(lambda found: _table(found["name"]), old)
    if check and new != old:
        sys.exit("docs/performance.md is not what bench/results says: run python bench/tables.py")
    if new != old:
        DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
