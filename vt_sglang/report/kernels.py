# SPDX-License-Identifier: Apache-2.0
"""Figures of bench/kernels.py: attention kernels side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field, FieldError
from vt_sglang.report.load import Run
from vt_sglang.report.looks import REFERENCE, look, looks
from vt_sglang.report.model import Axis, Cell, Column, Figure, Group, Groups, Table

Rows = dict[str, dict[str, Field]]
"""By run and by shape."""
Value = Callable[[Field], float | None]

DECODE_SHAPES = "Shapes are requests x tokens of context."
PREFILL_SHAPES = "Shapes are requests: tokens of cached prefix + new tokens."
PREFILL_FLOOR = (
    "The floor is the longer of the floating-point operations at a plain matrix product's rate and of a plain read of "
    "the KV's bytes, in the same run."
)


def _us(key: str) -> Value:
    return lambda row: row.maybe(key)


def _rate(key: str) -> Value:
    def tflops(row: Field) -> float | None:
        us = row.maybe(key)
        return None if us is None else 1e3 * row["gigaflop"].number() / _positive(row, key)

    return tflops


def _over(slow: str, fast: str) -> Value:
    def ratio(row: Field) -> float | None:
        return (
            None if row.maybe(slow) is None or row.maybe(fast) is None else _positive(row, slow) / _positive(row, fast)
        )

    return ratio


def _positive(row: Field, key: str) -> float:
    value = row[key].number()
    if value <= 0:
        raise FieldError(f"{row[key].path}: a time above 0 is expected, not {value:g}")
    return value


DECODE = {
    "vtensor: Hopper": "hopper_us",
    "vtensor: Triton": "triton_us",
    "vtensor: FA3": "fa3_contiguous_us",
    "FA3, page 1": "fa3_page1_us",
    "FA3, page 64": "fa3_page64_us",
}
SHARED_SHAPES = "Shapes are requests: tokens that they share + tokens of their own."
SHARED = {
    "vtensor: Hopper": "hopper_us",
    "vtensor: Triton": "triton_us",
    "FA3, page 1": "fa3_page1_us",
    "FA3, cascade": "fa3_cascade_us",
}
PREFILL = {
    "vtensor: Hopper": "hopper_us",
    "vtensor: FA3": "fa3_contiguous_us",
    "vtensor: Triton": "triton_us",
    "FA3, page 1": "fa3_page1_us",
    "SGLang's Triton": "sglang_triton_us",
}


def decode(runs: Sequence[Run]) -> Iterator[Figure]:
    rows = _rows(runs)
    yield _figure(
        runs,
        rows,
        name="decode-time",
        title="Decode attention: time of a call (lower is better)",
        notes=(DECODE_SHAPES, "The floor is the time of a plain read of the KV's bytes in the same run."),
        axis=Axis("us", log=True),
        values={name: _us(key) for name, key in _sides(rows, DECODE).items()},
        limits={"floor": _us("floor_us")},
        form=",.1f",
    )
    yield _figure(
        runs,
        rows,
        name="decode-ratio",
        title="Decode attention: speed of the project's kernel beside FlashAttention-3 (higher is better)",
        notes=(DECODE_SHAPES, "FlashAttention-3's time divided by that of the project's kernel on virtual tensors."),
        axis=Axis("times the speed"),
        values={
            "vtensor: over FA3, page 1": lambda row: _over("fa3_page1_us", _own(row))(row),
            "over the better FA3": lambda row: row.maybe("ratio"),
        },
        form=".3f",
        equal=1.0,
    )


def _own(row: Field) -> str:
    """Which of the project's kernels a result's ratios are of: older ones have none for Hopper."""
    return "triton_us" if row.maybe("hopper_us") is None else "hopper_us"


def prefill(runs: Sequence[Run]) -> Iterator[Figure]:
    rows = _rows(runs)
    sides = _sides(rows, PREFILL)
    floor = _sides(rows, {"floor": "floor_us"})
    yield _figure(
        runs,
        rows,
        name="prefill-rate",
        title="Prefill attention: TFLOP/s (higher is better)",
        notes=(PREFILL_SHAPES,),
        axis=Axis("TFLOP/s"),
        values={name: _rate(key) for name, key in sides.items()},
        form=",.0f",
    )
    yield _figure(
        runs,
        rows,
        name="prefill-time",
        title="Prefill attention: time of a call (lower is better)",
        notes=(PREFILL_SHAPES, *[PREFILL_FLOOR for _ in floor]),
        axis=Axis("us", log=True),
        values={name: _us(key) for name, key in sides.items()},
        limits={name: _us(key) for name, key in floor.items()},
        form=",.0f",
    )
    yield _figure(
        runs,
        rows,
        name="prefill-ratio",
        title="Prefill attention on virtual tensors: speed beside FlashAttention-3 on pages (higher is better)",
        notes=(PREFILL_SHAPES, "The time of FlashAttention-3 with pages of 1 token, divided by that of each kernel."),
        axis=Axis("times the speed"),
        values={name: _over("fa3_page1_us", key) for name, key in sides.items() if name.startswith("vtensor")},
        form=".3f",
        equal=1.0,
    )


def shared(runs: Sequence[Run]) -> Iterator[Figure]:
    rows = _rows(runs)
    yield _figure(
        runs,
        rows,
        name="shared-time",
        title="Decode attention of requests that share: time of a call (lower is better)",
        notes=(SHARED_SHAPES, "The floor is the time of a plain read of each byte once in the same run."),
        axis=Axis("us", log=True),
        values={name: _us(key) for name, key in SHARED.items()},
        limits={"floor": _us("floor_us")},
        form=",.1f",
    )
    yield _figure(
        runs,
        rows,
        name="shared-ratio",
        title="Decode attention of requests that share: speed beside FlashAttention-3 (higher is better)",
        notes=(SHARED_SHAPES, "FlashAttention-3's time divided by that of the project's kernels."),
        axis=Axis("times the speed"),
        values={
            "vtensor: over FA3, page 1": _over("fa3_page1_us", "hopper_us"),
            "over the cascade": _over("fa3_cascade_us", "hopper_us"),
        },
        form=".2f",
        equal=1.0,
    )


def _sides(rows: Rows, sides: Mapping[str, str]) -> dict[str, str]:
    """Those that were measured in any row: older results lack some."""
    found = [row for of_run in rows.values() for row in of_run.values()]
    return {name: key for name, key in sides.items() if any(row.maybe(key) is not None for row in found)}


def _rows(runs: Sequence[Run]) -> Rows:
    return {run.label: {row["shape"].text(): row for row in run.data["results"].list()} for run in runs}


def _figure(
    runs: Sequence[Run],
    rows: Rows,
    *,
    name: str,
    title: str,
    notes: tuple[str, ...],
    axis: Axis,
    values: Mapping[str, Value],
    limits: Mapping[str, Value] | None = None,
    form: str,
    equal: float | None = None,
) -> Figure:
    """Groups are the values of each run, categories are shapes; the same numbers are in the table."""
    shapes = tuple(dict.fromkeys(shape for found in rows.values() for shape in found))

    def across(label: str, value: Value) -> tuple[float | None, ...]:
        return tuple(value(rows[label][shape]) if shape in rows[label] else None for shape in shapes)

    named = [(f"{label}: " if len(rows) > 1 else "", label) for label in rows]
    of_names = looks([f"{prefix}{it}" for prefix, _ in named for it in values])
    groups = []
    for prefix, label in named:
        for it, value in values.items():
            groups.append(Group(f"{prefix}{it}", of_names[f"{prefix}{it}"], across(label, value), form=form))
        for it, value in (limits or {}).items():
            groups.append(Group(f"{prefix}{it}", look(REFERENCE), across(label, value), form=form, mark="limit"))
    table: list[tuple[Cell, ...]] = [
        (shape, *(group.values[index] for group in groups)) for index, shape in enumerate(shapes)
    ]
    header = (Column("shape"), *(Column(f"{group.name}, {axis.title}", form) for group in groups))
    return Figure(
        name=name,
        title=title,
        notes=notes,
        plot=Groups(shapes, axis, tuple(groups), equal=equal),
        table=Table(header, tuple(table)),
        source=source(runs),
    )
