# SPDX-License-Identifier: Apache-2.0
"""One plot as a picture file, drawn by a headless Chromium."""

import base64
import html
import io
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from PIL import Image

from vt_sglang.report.drawing import plain
from vt_sglang.report.load import ReportError
from vt_sglang.report.model import Figure, Groups
from vt_sglang.report.page import document, file
from vt_sglang.report.plots import as_json, draw
from vt_sglang.report.themes import THEMES, ThemeName, coloured

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FORMATS = (".png", ".svg")
WIDTH_PX, SCALE = 800, 1.5
"""Of a picture as it is laid out, and what a PNG has more: 1200 pixels."""
LINES_MARGIN = {"l": 72, "r": 14, "b": 64}
"""Beside curves, whose axes both have titles."""
TITLE_COLUMNS = 78
TIMEOUT_S = 60

# Without a network, a profile, or anything that Chromium does besides drawing.
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-sandbox",  # the page is this file's own, and containers allow no sandbox
    f"--virtual-time-budget={TIMEOUT_S * 1000}",
    "--dump-dom",
)


class PictureError(Exception):
    """No picture could be made."""


def find_browser() -> str:
    """The path of a Chromium. Raises PictureError if there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise PictureError("a picture needs Chromium, and there is none (Debian: apt install chromium)")


def paths(path: Path) -> dict[ThemeName, Path]:
    """The files of a picture: on light ground as asked for, on dark ground beside it. Raises ReportError for an
    ending that is none of FORMATS."""
    if path.suffix not in FORMATS:
        raise ReportError(f"{path}: pictures end in {' or '.join(FORMATS)}")
    return {"light": path, "dark": path.with_name(f"{path.stem}-dark{path.suffix}")}


def picture(figure: Figure, suffix: str, theme: ThemeName, browser: str) -> bytes:
    """The content of a picture file. Raises PictureError if the browser fails."""
    if figure.plot is None:
        raise PictureError(f"{figure.name} is a table and has no plot")
    drawing = draw(figure.plot)
    made = as_json(drawing)
    lines = textwrap.wrap(figure.title, TITLE_COLUMNS)
    top = 30 + 22 * len(lines) + (20 if figure.source else 0) + _legend_px(made["data"])
    height = drawing.height + top
    title: dict[str, Any] = {
        "text": "<br>".join(f"<b>{plain(line)}</b>" for line in lines),
        "x": 0,
        "xref": "container",
        "pad": {"l": 14, "t": 14},
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "font": {"size": 16},
    }
    if figure.source:
        title["subtitle"] = {"text": plain(figure.source), "font": {"size": 12, "color": THEMES[theme].quiet}}
    made["layout"] |= {
        "title": title,
        "width": WIDTH_PX,
        "height": height,
        "margin": {"l": 14, "r": 14, "t": top, "b": 14}
        if isinstance(figure.plot, Groups)
        else LINES_MARGIN | {"t": top},
        "template": coloured(THEMES[theme], drawing.colours),
    }
    options = {"format": suffix[1:], "width": WIDTH_PX, "height": height, "scale": SCALE if suffix == ".png" else 1}
    text = document(
        figure.name,
        '<div id="plot"></div>\n',
        {"picture": {"figure": made, "options": options}},
        [file("picture.js")],
        "",
    )
    return _content(_drawn(text, browser))


def _legend_px(traces: Sequence[Mapping[str, Any]]) -> int:
    """About the height of a legend, whose columns are as wide as the longest name."""
    if len(traces) < 2:
        return 0
    a_row = max(1, WIDTH_PX // (60 + 8 * max(len(trace["name"]) for trace in traces)))
    return 22 * -(-len(traces) // a_row)


def _drawn(text: str, browser: str) -> str:
    """What a page leaves in its body."""
    with tempfile.TemporaryDirectory(prefix="vt-sglang-") as folder:
        (Path(folder) / "picture.html").write_text(text, encoding="utf-8", errors="replace")
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"file://{folder}/picture.html"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise PictureError(f"{browser} drew nothing within {TIMEOUT_S} s") from None
    found = re.search(r"<body>(.*?)</body>", done.stdout, re.DOTALL)
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise PictureError(f"{browser} ended with {done.returncode} and said: {said[:200]}")
    return html.unescape(found[1])


def _content(url: str) -> bytes:
    head, _, data = url.partition(",")
    if not head.startswith("data:image/"):
        raise PictureError(f"no picture was drawn: {url[:200]}")
    if not head.endswith(";base64"):
        return unquote_to_bytes(data)
    # Few colours are in a plot: a palette takes a third of the bytes.
    small = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
