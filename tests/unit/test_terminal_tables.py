"""Tables on terminals: at 80 columns no line is longer, and every word, number and interval is whole."""

import csv
from pathlib import Path

import pytest

from nanochat_pl.cli import sweep_table
from nanochat_pl.report.terminal import table_text

INTERVAL = "100.0% [97.1%, 100.0%]"
STAGES = ["base", "mid", "sft", "rl"]
TABLES = {
    "two columns": (["metric", "sft/quickstart"], [["strict/accuracy_over_asked", "37.8% [29.9%, 46.4%] (48/127)"]]),
    "a chain": (["", *STAGES], [["accuracy by likelihood", *[INTERVAL] * 4], ["steps", "800", "", "9", "40"]]),
    "two checkpoints": (
        ["metric", "sft_scienceqa/quickstart", "rl/quickstart"],
        [["letter_regex/accuracy_over_asked", *["37.8% [29.9%, 46.4%] (48/127)"] * 2]],
    ),
    "differences": (
        ["", "sft/a", "sft/b", "sft/c"],
        [["accuracy\nchance 45.1%, majority 45.1%", *[f"{INTERVAL}\n+1.0 [-0.3, +2.0] points"] * 3]],
    ),
    "kinds": (
        ["task", "wrong of asked", *(f"kind number {n}" for n in range(12))],
        [["arc", "9 of 10", *["1 (11%)"] * 12]],
    ),
    "seven checkpoints": (["metric", *(f"sft/seed_{n}" for n in range(7))], [["exact_match", *[INTERVAL] * 7]]),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_word_is_cut_and_no_line_is_longer_than_the_terminal(name: str, width: int):
    header, rows = TABLES[name]
    text = table_text("a title", header, rows, width)
    assert max(map(len, text.splitlines())) <= width
    plain = text.replace("%", "")  # an interval has its signs where there is room
    for cell in [*header, *(cell for row in rows for cell in row)]:
        for word in cell.replace("%", "").replace("/", "/ ").split():
            assert word in plain
    assert "…" not in text


def test_a_table_that_fits_is_printed_unchanged(capsys: pytest.CaptureFixture[str]):
    header, rows = TABLES["two columns"]
    assert rows[0][1] in table_text(None, header, rows, 80)
    assert INTERVAL in table_text(None, *TABLES["a chain"], 140)


def test_an_interval_stands_under_its_value_where_there_is_no_room_beside_it():
    lines = table_text(None, *TABLES["a chain"], 80).splitlines()
    values = next(n for n, line in enumerate(lines) if line.count("100.0%") == 4)
    assert lines[values + 1].count("[97.1, 100.0]") == 4


def test_the_table_of_a_sweep_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    keys = ["job", *sweep_table.FIGURES, "command"]
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"modern_without_warmup_and_momentum-seed={n}-text_frac=0.1" for n in range(3)]
        writer.writerows(
            [keys, *([name, *[f"1.{n}2345"] * len(sweep_table.FIGURES), "c"] for n, name in enumerate(names))]
        )
    sweep_table.show(tmp_path / "results.csv")
    shown = capsys.readouterr().out
    assert "modern_without_warmup_and_momentum-seed=2-text_frac=0.1 " in shown and "val/bpb" in shown
    assert max(len(line) for line in shown.splitlines() if str(tmp_path) not in line) <= 80
