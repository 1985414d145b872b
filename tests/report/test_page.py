# SPDX-License-Identifier: Apache-2.0
"""The page in a headless Chromium: it draws, asks for nothing, and shows the numbers of the JSON files."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest
from report_results import RESULTS, chat_result, replay_result

from vt_sglang.report.load import load
from vt_sglang.report.model import Figure, Groups
from vt_sglang.report.page import page
from vt_sglang.report.plots import draw
from vt_sglang.report.sections import sections
from vt_sglang.report.themes import THEMES

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1100,900"
)
NAUGHTY = '</script><script>console.error("run")</script><b>&amp;'
"""A name that must be shown and not run."""


@dataclass
class Open:
    driver: Any
    figures: dict[str, Figure]
    text: str

    def data(self, name: str) -> list[dict[str, Any]]:
        """Of a plot in the page, what Plotly holds of each trace."""
        found: list[dict[str, Any]] = self.driver.execute_script(
            f"return document.getElementById('plot-{name}').data.map("
            "(it) => ({name: it.name, x: [...it.x], y: [...it.y], high: it.error_x?.array}))"
        )
        return found

    def look(self, *, width: int = 1100, dark: bool = False) -> None:
        """Be another reader, and wait until the plots are drawn for him."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        ground = THEMES["dark" if dark else "light"].ground
        asked = (
            "const plots = [...document.querySelectorAll('.plot')];"
            "return plots.every((it) => it._fullLayout && it._fullLayout.paper_bgcolor === arguments[0]"
            " && Math.abs(it._fullLayout.width - it.clientWidth) < 2 && it.clientWidth <= arguments[1])"
        )
        wait(lambda: self.driver.execute_script(asked, ground, width))


def wait(reached: Any) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "the page does not get there"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium: apt-get install -y --no-install-recommends chromium chromium-driver")
        pytest.skip("no Chromium (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("page")
    made = {
        "replay.json": replay_result(),
        "chat.json": chat_result(repeats=True),
        "naughty.json": chat_result() | {"command_line": NAUGHTY},
    }
    made["naughty.json"]["servers"][1]["name"] = NAUGHTY
    for name, result in made.items():
        (folder / name).write_text(json.dumps(result))
    paths = [*(folder / name for name in made), *(RESULTS / f"{it}.json" for it in ("serve", "decode", "tree"))]
    found = sections(load(paths))
    text = page(found)
    (folder / "report.html").write_text(text)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        session.get("about:blank")
        session.get_log("performance")  # of the browser's own first page
        session.get(f"file://{folder}/report.html")
        wait(lambda: session.execute_script("return document.documentElement.dataset.drawn") == "true")
        yield Open(session, {it.name: it for section in found for it in section.figures}, text)
    finally:
        session.quit()


def test_every_plot_is_drawn(opened: Open) -> None:
    sizes = opened.driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.plot')].map((it) => {"
        "const drawing = it.querySelector('svg.main-svg'), box = drawing.getBoundingClientRect();"
        "return [it.id, [box.width, box.height, it.querySelectorAll('.trace').length, it.clientHeight]]}))"
    )
    plots = {name: figure.plot for name, figure in opened.figures.items() if figure.plot}
    assert sizes.keys() == {f"plot-{name}" for name in plots}
    for name, plot in plots.items():
        width, height, traces, room = sizes[f"plot-{name}"]
        assert width > 600, name
        assert 120 < height <= room, name
        assert traces == len(draw(plot).colours), name


def test_plots_hold_the_numbers(opened: Open) -> None:
    for name, figure in opened.figures.items():
        if figure.plot is None:
            continue
        traces = opened.data(name)
        if isinstance(figure.plot, Groups):
            ordered = sorted(figure.plot.groups, key=lambda it: it.mark == "limit")
            assert [it["x"] for it in traces] == [list(group.values) for group in ordered], name
        else:
            lines = [(list(line.x), list(line.y)) for line in figure.plot.lines]
            assert [(it["x"], it["y"]) for it in traces][: len(lines)] == lines, name
    kept = json.loads((RESULTS / "tree.json").read_text())["results"]
    assert opened.data("tree-times-faster")[0]["x"] == [row["ratio"] for row in kept]
    load = json.loads((RESULTS / "serve.json").read_text())["results"]["loads"][0]
    side = load["rows"][0]["sides"]["vtensor"]
    trace = next(it for it in opened.data("serve-throughput") if it["name"] == "vtensor")
    assert trace["x"][0] == side["median"]
    assert trace["high"][0] == pytest.approx(side["high"] - side["median"])
    curve = opened.data("replay-hit-rate-over-capacity")
    assert next(it for it in curve if it["name"] == "vtensor")["y"] == [21.0, 38.1]


def test_tables_hold_the_numbers(opened: Open) -> None:
    shown = opened.driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('figure')].map((it) => [it.id,"
        "[...it.querySelectorAll('tbody tr')].map((row) =>"
        "[...row.cells].map((cell) => [cell.textContent, cell.dataset.value ?? null]))]))"
    )
    assert shown.keys() == opened.figures.keys()
    for name, figure in opened.figures.items():
        table = figure.table
        assert [[text for text, _ in row] for row in shown[name]] == [
            [table.text(row, column) for column in range(len(table.columns))] for row in range(len(table.rows))
        ]
        exact = [[None if value is None else float(value) for _, value in row] for row in shown[name]]
        assert exact == [[it if isinstance(it, int | float) else None for it in row] for row in table.rows]


def test_dark_and_light_differ(opened: Open) -> None:
    def seen() -> tuple[Any, ...]:
        return tuple(
            opened.driver.execute_script(
                "const style = (it) => getComputedStyle(document.querySelector(it));"
                "return [style('body').backgroundColor, style('body').color,"
                "style('#plot-tree-times-faster .point').fill, style('#plot-chat-throughput .xtick text').fill]"
            )
        )

    opened.look(dark=True)
    dark = seen()
    opened.look(dark=False)
    assert all(a != b for a, b in zip(dark, seen(), strict=True))


def test_narrow_screen(opened: Open) -> None:
    """Nothing but tables and code scrolls sideways, and no plot covers what comes after it."""
    opened.look(width=390)
    width, over = opened.driver.execute_script(
        "return [document.documentElement.scrollWidth, [...document.querySelectorAll('.plot')].filter((it) =>"
        "it.querySelector('svg.main-svg').getBoundingClientRect().bottom >"
        "it.nextElementSibling.getBoundingClientRect().top + 1).map((it) => it.id)]"
    )
    opened.look()
    assert width <= 390
    assert not over


def test_texts_are_shown_and_not_run(opened: Open) -> None:
    assert NAUGHTY in opened.driver.execute_script("return document.body.innerText")
    names = opened.driver.execute_script(
        "return [...document.querySelectorAll('#plot-chat-throughput .legendtext')].map((it) => it.textContent)"
    )
    assert NAUGHTY in names


def test_nothing_is_asked_for(opened: Open) -> None:
    """Runs after what other tests did in the page."""
    events = [json.loads(entry["message"])["message"] for entry in opened.driver.get_log("performance")]
    urls = [it["params"]["request"]["url"] for it in events if it["method"] == "Network.requestWillBeSent"]
    assert urls
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.driver.get_log("browser") == []


def test_no_element_names_an_address(opened: Open) -> None:
    class Addresses(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
            self.found += [value for _, value in attrs if value and re.search(r"https?:|//", value)]

    addresses = Addresses()
    addresses.feed(opened.text)
    assert addresses.found == []
    assert "default-src 'none'" in opened.text
    assert opened.text.count("plotly.js v") == 1


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.1 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (it / 12.92 if it <= 0.03928 else ((it + 0.055) / 1.055) ** 2.4 for it in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_stand_out(theme: Any) -> None:
    def contrast(colour: str) -> float:
        bright, faint = sorted((luminance(colour), luminance(theme.ground)), reverse=True)
        return (bright + 0.05) / (faint + 0.05)

    assert min(map(contrast, theme.colours)) >= 3
    assert min(contrast(theme.text), contrast(theme.quiet)) >= 4.5
