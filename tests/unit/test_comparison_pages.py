"""The command `compare` and its pages: every form says the same, safely, and a mistake is one line."""

import base64
import html.parser
import json
import re
import subprocess
import sys

import pytest

from nanochat_pl.cli.compare import main
from nanochat_pl.report.comparison_report import (
    build_comparison,
    comparison_html,
    comparison_json,
    comparison_markdown,
    tables,
    text_chart,
)
from tests.unit.evaluated import entrant, pattern, sampled, write

EVIL = "<script>alert('x')</script> | ``` & more"


class Page(html.parser.HTMLParser):
    """Collects tags, and holds that every one that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "img", "wbr", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def pages(tmp_path, capsys) -> dict[str, str]:
    """What the command says and writes about three stages."""
    first, second = pattern(10, 2, 20, 8)
    runs = [
        write(tmp_path, "rl/d4", second, output=EVIL),
        write(tmp_path, "base/d4", first, output=EVIL),
        write(tmp_path, "sft/d4", first),
    ]
    files = {kind: tmp_path / f"out.{kind}" for kind in ("markdown", "html", "json")}
    assert main([*map(str, runs), *(word for kind, file in files.items() for word in (f"--{kind}", str(file)))]) == 0
    return {"terminal": capsys.readouterr().out} | {kind: file.read_text() for kind, file in files.items()}


def test_the_html_page_escapes_what_models_wrote_and_needs_nothing_from_outside(pages):
    page = Page(pages["html"])
    assert "script" not in page.tags
    assert "&lt;script&gt;" in pages["html"]
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http" not in pages["html"].replace("http-equiv", "")
    assert "url(" not in pages["html"]
    assert ("name", "viewport") in page.attributes
    assert page.tags.count("img") == 1
    picture = next(value or "" for name, value in page.attributes if name == "src")
    svg = base64.b64decode(picture.partition(",")[2]).decode()
    points = [svg.index(f">{point}/d4: ") for point in ("BASE base", "SFT sft", "RL rl")]
    assert points == sorted(points)


def test_markdown_tables_have_equal_columns_and_fences_hold(pages):
    tables = re.findall(r"(?:^\|.*\n)+", pages["markdown"], re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert f"````text\n{EVIL}\n````" in pages["markdown"]


def test_a_comparison_on_the_terminal_loads_neither_matplotlib_nor_jinja2(tmp_path):
    runs = [str(write(tmp_path, f"{stage}/d4", [True, False])) for stage in ("base", "sft")]
    program = "import sys; from nanochat_pl.cli.compare import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *runs], capture_output=True, text=True, timeout=120)
    assert "over the stages" in done.stdout, done.stderr
    assert not {"torch", "lightning", "matplotlib", "jinja2"} & set(done.stdout.split())


def test_every_form_gives_the_same_verdicts(pages):
    document = json.loads(pages["json"])
    assert len(document["verdicts"]) == 2
    for verdict in document["verdicts"]:
        assert verdict in pages["terminal"]
        assert verdict in pages["markdown"]
        assert verdict in html.unescape(pages["html"])
    assert "base/d4 against rl/d4, recall exact_match: rl/d4 is better than base/d4" in document["verdicts"][0]


def test_the_chart_goes_from_base_to_rl(pages):
    chart = pages["terminal"].partition("over the stages")[2]
    assert re.findall(r"^ +(BASE|MID|SFT|RL) ", chart, re.MULTILINE) == ["BASE", "SFT", "RL"]
    assert "chance 25.0%" in chart


def test_seeds_are_pointed_out_and_grouped_on_request(tmp_path, capsys):
    runs = []
    for group, rate in (("a", 0.1), ("b", 0.2)):
        for seed in (1, 2, 3):
            right = [n < 20 + 2 * seed for n in range(40)]
            config = {"seed": seed, "run_name": f"{group}{seed}", "optim": {"matrix_lr": rate}}
            runs.append(str(write(tmp_path, f"sft/{group}{seed}", right, config=config)))
    assert main(runs) == 0
    assert "sft/a1, sft/a2, sft/a3 differ in their seed only: --seeds" in capsys.readouterr().out
    assert main([*runs, "--seeds", "--json", str(tmp_path / "out.json")]) == 0
    assert "seeds of sft/b1 (seed 1, 2, 3), recall exact_match: not distinguishable" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["seed_groups"] == [[f"sft/{group}{seed}" for seed in (1, 2, 3)] for group in "ab"]
    assert document["seeds"][0]["spreads"][0]["mean"] == pytest.approx(0.6)
    assert document["seeds"][0]["spreads"][0]["std"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN"),
        (["nowhere"], "nowhere"),
        (["{run}", "{run}"], "given twice"),
        (["{run}", "--limit", "-3"], "--limit"),
        (["{run}", "--metric", "fluency"], "there are exact_match"),
        (["{run}", "--seeds"], "config.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, tmp_path, capsys):
    run = write(tmp_path, "sft/d4", [True])
    assert main([word.format(run=run) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error


def test_figures_of_several_samples_are_shown_in_percent_with_the_interval_of_the_difference():
    base, tuned = entrant("a", sampled([0, 2] * 20, 8, "sft")), entrant("b", sampled([1, 3] * 20, 8, "rl"))
    report = build_comparison([base, tuned])
    [(_, _, rows)] = tables(report)
    assert [row[0] for row in rows] == ["gsm8k pass@1", "gsm8k pass@8"]
    assert rows[0][1].startswith("12.5% [")
    assert rows[0][2].startswith("25.0% [")
    assert rows[0][2].endswith("\n+12.5 [+7.8, +17.2] points")
    assert "  25.0%" in text_chart(report)
    said = "b against a, chat gsm8k pass@1: b is better than a by 12.5 points (p < 0.001, Holm over 2 tests, n = 40)"
    assert json.loads(comparison_json(report))["verdicts"][0] == said
    assert f"- {said}" in comparison_markdown(report)
    assert said.replace("<", "&lt;") in comparison_html(report)
