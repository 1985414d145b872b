# SPDX-License-Identifier: Apache-2.0
"""The command `report`: everything is made before anything is written."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from vt_sglang.chat.files import check_writable, write_whole
from vt_sglang.report.load import ReportError, load
from vt_sglang.report.model import Figure, Section
from vt_sglang.report.sections import sections
from vt_sglang.report.terminal import show


class MissingError(Exception):
    """What draws is not there, or does not work."""


def run(
    paths: Sequence[Path], output: Path | None, picture: Path | None, figure: str | None, console: Console | None
) -> None:
    """Write a page, a picture, or both, and print the tables; each only if asked for.

    Raises:
        ReportError: files of which no report can be made, or options that do not fit them.
        MissingError: Plotly, Pillow or Chromium is missing, or Chromium failed.
    """
    found = sections(load(paths))
    files: dict[Path, bytes] = {}
    needed = [*(["plotly"] if output or picture else []), *(["PIL"] if picture else [])]
    if any(find_spec(name) is None for name in needed):
        raise MissingError('plots need Plotly, and pictures Pillow: pip install "vt-sglang[report]"')
    for path in (output, picture):
        if path and any(path.resolve() == run.resolve() for run in paths):
            raise ReportError(f"{path} is one of the results that are read; name another file for the output")
        if path:
            try:
                check_writable(path)
            except OSError as error:
                raise ReportError(f"{path}: {error.strerror}") from None
    if picture:
        files |= _pictures(found, picture, figure)
    if output:
        from vt_sglang.report.page import page

        files[output] = page(found).encode(errors="replace")  # a path may hold what is not Unicode
    for path, content in files.items():
        try:
            write_whole(path, content)
        except OSError as error:
            raise ReportError(f"{path}: {error.strerror}") from None
    if console:
        show(found, console)
        for path in files:
            console.print(f"written: {path}", highlight=False, markup=False)


def _pictures(found: Sequence[Section], path: Path, name: str | None) -> dict[Path, bytes]:
    from vt_sglang.report.picture import PictureError, find_browser, paths, picture

    targets = paths(path)
    chosen = _chosen(found, name)
    try:
        browser = find_browser()
        return {target: picture(chosen, path.suffix, theme, browser) for theme, target in targets.items()}
    except PictureError as error:
        raise MissingError(str(error)) from None


def _chosen(found: Sequence[Section], name: str | None) -> Figure:
    """The plot of that name; without a name, the only one."""
    plots = {figure.name: figure for section in found for figure in section.figures if figure.plot}
    if name is None and len(plots) == 1:
        return next(iter(plots.values()))
    if name not in plots:
        asked = f"there is no plot {name}" if name else "which plot? give --figure"
        raise ReportError(f"{asked}; there are: {', '.join(plots)}")
    return plots[name]
