"""Report and comparison as a browser shows them: no complaint on the console, nothing wider than a phone.

`NANOCHAT_SCREENSHOTS=<folder>` keeps the pictures, to be looked at.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nanochat_pl.report.comparison_report import build_comparison, comparison_html
from nanochat_pl.report.evaluated import load_evaluated_runs
from nanochat_pl.report.html import render_html
from nanochat_pl.report.run_report import report_blocks
from nanochat_pl.report.textlog import parse_text_log
from tests.unit.evaluated import pattern, write
from tests.unit.test_report import LOG, chain

pytestmark = pytest.mark.slow

PHONE_PX = 390
MEASURE = """
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const first = page.images[0]?.getBoundingClientRect(), natural = page.images[0]?.naturalWidth;
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  const wide = [...page.querySelectorAll("body *")].filter(
    (element) => element.getBoundingClientRect().right > root.clientWidth + 0.5 && !element.closest(".scroll"));
  const broken = [...page.images].filter((image) => !image.naturalWidth).length;
  document.title = JSON.stringify(
    {width: root.clientWidth, needed: root.scrollWidth, wide: wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 80)),
     images: page.images.length, broken,
     first: first && [Math.round(first.width), Math.round(first.bottom)], natural});
});
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Path of a Chromium; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report with every kind of block: curves, bars, tables, samples, notes, an old log."""
    folder = tmp_path_factory.mktemp("report")
    blocks = report_blocks(chain(folder / "outputs"), [parse_text_log(LOG, "old.log")], usd_per_hour=3.0)
    (folder / "report.html").write_text(render_html(blocks), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a comparison of three stages, with charts, verdicts and answers."""
    folder = tmp_path_factory.mktemp("comparison")
    first, second = pattern(10, 2, 20, 8)
    runs = [
        write(folder, "rl/a_long_name_of_a_run", second),
        *(write(folder, f"{s}/d4", first) for s in ("base", "sft")),
    ]
    (folder / "comparison.html").write_text(comparison_html(build_comparison(load_evaluated_runs(runs))))
    return folder / "comparison.html"


def browse(chromium: str, page: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page; return what the browser printed and what stood on its console."""
    base = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [chromium, *base, profile, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)


def measure(chromium: str, page: Path, width: int = PHONE_PX) -> str:
    """Lay a page out, by default at phone width, everything unfolded; return what `MEASURE` found.

    A window cannot be made as narrow as a phone, a frame can.
    """
    frame = page.with_name(f"{page.stem}_phone.html")
    content = html.escape(page.read_text(encoding="utf-8"))
    style = f"width:{width}px;height:800px;border:0"
    frame.write_text(f'<!doctype html><script>{MEASURE}</script><iframe style="{style}" srcdoc="{content}"></iframe>')
    printed, _ = browse(chromium, frame, "--dump-dom")
    found = re.search(r"<title>(.*?)</title>", printed)
    assert found is not None, printed[:500]
    return html.unescape(found[1])


def test_the_console_stays_empty(chromium: str, page: Path, comparison: Path, tmp_path: Path):
    assert browse(chromium, page, "--dump-dom")[1] == []
    assert browse(chromium, comparison, "--dump-dom")[1] == []
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<!doctype html><script>nothing.there()</script>")
    assert len(browse(chromium, noisy, "--dump-dom")[1]) == 1, "the console is not heard, so its silence says nothing"


def test_nothing_is_wider_than_a_phone(chromium: str, page: Path, comparison: Path, tmp_path: Path):
    for shown in (page, comparison):
        found = measure(chromium, shown)
        assert f'"width":{PHONE_PX},"needed":{PHONE_PX},"wide":[]' in found
        assert re.search(r'"images":[1-9]\d*,"broken":0', found), found
    wide = tmp_path / "wide.html"
    wide.write_text('<!doctype html><body style="margin:0"><p style="width:500px">wide</p></body>')
    assert '"needed":500' in measure(chromium, wide), "an overflow is not seen, so its absence says nothing"


@pytest.mark.parametrize("width", [1280, PHONE_PX])
def test_the_picture_of_the_chain_is_on_the_first_screen_in_letters_that_can_be_read(
    chromium: str, page: Path, width: int
):
    found = json.loads(measure(chromium, page, width))
    shown, bottom = found["first"]
    assert bottom < 800
    assert shown > 0.8 * width
    assert shown > 0.9 * found["natural"], "it is shown as large as it was drawn, or larger"


@pytest.mark.parametrize(("width", "height"), [(1280, 2400), (PHONE_PX, 2400)])
def test_a_screenshot_shows_more_than_an_empty_page(chromium: str, page: Path, tmp_path: Path, width: int, height: int):
    folder = Path(os.environ.get("NANOCHAT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"report_{width}.png"
    browse(chromium, page, f"--screenshot={picture}", f"--window-size={width},{height}")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (height, width)
    assert 0.01 < (pixels[..., :3].min(axis=-1) < 0.5).mean() < 0.5
