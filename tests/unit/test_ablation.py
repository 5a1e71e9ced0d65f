"""Laws of the ablation's tables (benchmarks/ablation.py), on made-up results whose differences are known."""

import csv
import json
import math
import random
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nanochat_pl.eval.stats import paired_t_test
from tests.conftest import load_benchmark

WORTH = {
    "classic": 0.05,
    "modern": 0,
    "classic_with_smear": 0.03,
    "modern_without_smear": 0.05,
    "modern_with_short_conv": -0.05,
    "modern_without_windows": 0,
}
"""What each made-up variant adds to the bits per byte."""
FLOPS = {"modern_without_smear": 0.8e12, "modern_shorter": 0.8e12, "modern_longer": 1.25e12}
SECONDS = dict.fromkeys(WORTH, 1.0) | {"modern_without_smear": 0.5}
"""What a step of each takes."""
PER_FOLD = -0.1
"""What an e-fold of training changes."""


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return load_benchmark("ablation")


def made_up(seeds: range) -> list[dict[str, str]]:
    """One row a run, as a sweep's results.csv has them."""
    rng, rows = random.Random(0), []
    lengths = {
        f"modern_{length}": PER_FOLD * math.log(FLOPS[f"modern_{length}"] / 1e12) for length in ("shorter", "longer")
    }
    for variant, worth in (WORTH | lengths).items():
        for seed in range(20):  # all are drawn, so that a seed's figure does not depend on which are wanted
            text = random.Random(seed).gauss(0, 0.05)  # what a seed changes for all variants
            bpb = 2.4 + worth + text + rng.gauss(0, 0.005)
            if seed in seeds:
                row = {"status": "finished", "variant": variant, "seed": str(seed), "data.order_seed": str(seed)}
                row |= {"step": "120", "tokens": "245760", "total_training_flops": str(FLOPS.get(variant, 1e12))}
                rows.append(row | {"val/bpb": str(bpb), "command": f"python train.py seed={seed}"})
    return rows


def write(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_variant_is_judged_in_pairs_and_by_holm_over_all_variants_of_its_recipe(ablation: ModuleType):
    runs = made_up(range(10))
    rows = {row.name: row for row in ablation.compare("modern", runs)}
    assert list(rows) == ["with_short_conv", "without_windows", "without_smear"]  # the best first; no lengths
    losses = {name: [float(run["val/bpb"]) for run in runs if run["variant"] == name] for name in WORTH}
    for name, row in rows.items():
        own = losses[f"modern_{name}"]
        p, interval = paired_t_test(losses["modern"], own)
        assert (row.p, row.interval, len(row.differences)) == (p, interval, 10)
        assert row.difference == pytest.approx(statistics.mean(own) - statistics.mean(losses["modern"]))
        assert row.p <= row.holm <= min(1, 3 * row.p)
    assert [row.verdict for row in rows.values()] == ["**better**", "", "**worse**"]
    whole = {row.name: row.difference for row in ablation.compare("classic", runs)}
    assert whole == {"with_smear": pytest.approx(-0.02, abs=0.01), "modern": pytest.approx(-0.05, abs=0.01)}


def test_only_seeds_of_which_both_have_ended_are_paired(ablation: ModuleType):
    runs = made_up(range(10))
    late = [run for run in runs if not (run["variant"] == "modern_without_smear" and run["seed"] in "02468")]
    row = {row.name: row for row in ablation.compare("modern", late)}["without_smear"]
    whole = {row.name: row for row in ablation.compare("modern", runs)}["without_smear"]
    assert row.differences == whole.differences[1::2]
    assert row.bpb - row.difference == pytest.approx(
        statistics.mean(float(run["val/bpb"]) for run in late if run["variant"] == "modern" and run["seed"] in "13579")
    )


def test_at_equal_flops_a_cheaper_variant_gets_what_more_steps_would_give(ablation: ModuleType):
    rows = {row.name: row for row in ablation.compare("modern", made_up(range(10)), SECONDS)}
    smear, conv = rows["without_smear"], rows["with_short_conv"]
    assert conv.equal_flops == conv.difference == conv.equal_seconds
    assert smear.equal_flops - smear.difference == pytest.approx(PER_FOLD * math.log(1 / 0.8), abs=0.004)
    # twice as fast: twice the steps in the same time
    assert smear.equal_seconds - smear.difference == pytest.approx(PER_FOLD * math.log(2), abs=0.012)


def test_without_runs_of_other_lengths_nothing_is_said_about_equal_flops_and_seconds(ablation: ModuleType):
    runs = [run for run in made_up(range(10)) if run["variant"] != "modern_longer"]
    rows = ablation.compare("modern", runs, SECONDS)
    assert all(math.isnan(row.equal_flops) and math.isnan(row.equal_seconds) for row in rows)


def test_tables_go_on_from_an_earlier_csv(ablation: ModuleType, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, arguments)])
        ablation.main()
        return capsys.readouterr().out

    whole = write(tmp_path / "whole" / "ablation", made_up(range(10)))
    at_once = run(whole, "--csv", tmp_path / "at_once.csv", "--picture", tmp_path / "ablation.png")
    early, late = (
        write(tmp_path / name / "ablation", made_up(seeds)) for name, seeds in (("a", range(4)), ("b", range(4, 10)))
    )
    run(early, "--csv", tmp_path / "early.csv")
    assert run(tmp_path / "early.csv", late, "--csv", tmp_path / "all.csv") == at_once
    assert (tmp_path / "all.csv").read_text() == (tmp_path / "at_once.csv").read_text()
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "| with short conv | 10 | " in at_once and "over 10 seeds" in at_once
    (tmp_path / "seconds.json").write_text(json.dumps({name: {"ratio": ratio} for name, ratio in SECONDS.items()}))
    timed = run(whole, "--seconds", tmp_path / "seconds.json")
    ours, theirs = (
        [line.split("|")[7].strip() for line in out.splitlines() if "|" in line] for out in (timed, at_once)
    )
    assert not any(value.startswith(("+", "-0")) for value in theirs), "nothing is said of seconds that are not known"
    assert sum(value.startswith(("+", "-0")) for value in ours) == 3


def test_runs_that_failed_are_left_out(ablation: ModuleType, tmp_path):
    rows = made_up(range(3))
    rows[0]["status"] = "failed"
    [(name, kept)] = ablation.collect([write(tmp_path / "ablation", rows)]).items()
    assert name == "ablation" and len(kept) == len(rows) - 1
