"""A sweep is a list of plain commands: which runs there are, how they are called, what table and folder say."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nanochat_pl.cli import sweep
from nanochat_pl.cli.compare import main as compare
from nanochat_pl.cli.evaluate import checkpoint_list
from nanochat_pl.cli.sweep_table import read_jobs, write_table
from nanochat_pl.config import compose as composing
from nanochat_pl.config.command_line import CommandLine, ConfigError, quote_texts
from nanochat_pl.config.compose import Job, compose_jobs, compose_one, config_dir
from nanochat_pl.config.sweep import expand_variant
from nanochat_pl.model.config import Architecture
from nanochat_pl.optim.config import ROLES, OptimConfig
from nanochat_pl.paths import JOB_FILE
from nanochat_pl.report.seeds import group_label
from tests.unit.evaluated import entrant, recalled
from tests.unit.evaluated import write as evaluated_run

TABLE = """# @package _global_
hydra:
  mode: MULTIRUN
  sweep: {dir: somewhere/fixed}
  sweeper:
    params: {depth: 2, seed: "1,2", variant: "*"}
sweep:
  variants:
    plain: [model=classic]
    wide: [plain, model.n_embd=256, optim.matrix_lr=0.01]
    wider: [wide, model.n_embd=384]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of configs with a sweep of its own."""
    (tmp_path / "configs" / "sweep").mkdir(parents=True)
    (tmp_path / "configs" / "sweep" / "mine.yaml").write_text(TABLE)
    return tmp_path / "configs"


def jobs_of(*arguments: str, folder: Path | None = None) -> list[Job]:
    flags = [] if folder is None else ["--config-dir", str(folder)]
    return compose_jobs("train", CommandLine.parse([*flags, *quote_texts(arguments)]))


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.run.name for job in jobs]


# --- which runs there are ---


def test_the_runs_are_the_product_of_values_and_variants_the_last_key_changes_first(own: Path):
    jobs = jobs_of("sweep=mine", folder=own)
    assert names(jobs) == [f"{name}-seed={seed}" for seed in (1, 2) for name in ("plain", "wide", "wider")]
    assert [(job.checked.model.n_embd, job.checked.seed, job.checked.depth) for job in jobs[1:3]] == [
        (256, 1, 2),
        (384, 1, 2),
    ]
    assert [job.folder for job in jobs] == [Path("somewhere/fixed") / name for name in names(jobs)]


def test_a_run_s_command_gives_the_same_config_without_the_table(own: Path):
    """What is printed and written to the table is enough to repeat a run."""
    for job in jobs_of("sweep=mine", "optim.embedding_lr=0.1", "sweep.jobs=2", folder=own):
        assert not any(line.startswith(("sweep=", "variant=", "sweep.jobs")) for line in job.run.overrides)
        [alone] = jobs_of(*job.run.overrides)
        assert alone.sweep is None
        assert alone.config == job.config
        assert alone.checked.sweep.variant == job.run.variant


def test_one_variant_alone_is_the_run_that_the_sweep_would_do(own: Path):
    whole = {job.run.name: job for job in jobs_of("sweep=mine", folder=own)}
    [one] = jobs_of("sweep=mine", "variant=wide", "seed=2", folder=own)
    assert one.folder == whole["wide-seed=2"].folder
    assert sorted(one.run.overrides) == sorted(whole["wide-seed=2"].run.overrides)


def test_variants_are_chosen_by_name_by_several_names_and_by_pattern(own: Path):
    def chosen(typed: str) -> list[str | None]:
        return [job.run.variant for job in jobs_of("sweep=mine", "seed=1", typed, folder=own)]

    assert chosen("variant=wide") == ["wide"]
    assert chosen("variant=wider,plain") == ["plain", "wider"]
    assert chosen("variant=wid*") == ["wide", "wider"]


def test_a_config_that_is_composed_with_others_is_the_one_that_hydra_makes(own: Path):
    """Configs with the same groups are composed once, which must not be seen."""
    arguments = ["model=modern", "optim.role_betas.embedding=[0.7,0.9]", "+logger={}", "seed=3", "depth=2", "stage=mid"]
    arguments += ["~optim.role_betas.unembedding", "mixture.tasks={}", "++optim.role_weight_decay.smear=0.1"]
    composer = composing._Composer("train", [], config_dir(), {"model", "stage", "logger", "mixture", "optim"})
    composer.compose(["optim=modern", *arguments, "seed=4"])
    ours, hydras = (
        composer.compose(["optim=modern", *arguments]),
        compose_one("train", ["optim=modern", *arguments], config_dir()),
    )
    for cfg in (ours, hydras):
        OmegaConf.set_readonly(cfg.hydra, False)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
    assert ours == hydras


def test_a_variant_may_be_typed_beside_those_of_a_file_or_alone(own: Path):
    typed = "sweep.variants.own=[wide,++optim.role_betas.unembedding=[0.8,0.96]]"
    [job] = jobs_of("sweep=mine", typed, "variant=own", "seed=1", folder=own)
    assert job.checked.optim.matrix_lr == jobs_of("sweep=mine", "variant=wide", folder=own)[0].checked.optim.matrix_lr
    assert job.checked.optim.role_betas["unembedding"] == [0.8, 0.96]
    assert job.run.variant == "own"
    both = ["sweep.variants.a=[depth=2]", "sweep.variants.b=[depth=3]", "variant=*"]
    assert [job.checked.depth for job in jobs_of("-m", *both)] == [2, 3]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["sweep=mine", "variant=wyder"],
            "variant=wyder: there is no such variant; there are plain, wide, wider; did you mean wider?",
        ),
        (["sweep=mine", "variant=big_*"], "there is no such variant"),
        (["sweep=mine", "optim.matrix_lr=0.1"], "the variant wide sets optim.matrix_lr itself"),
        (["sweep=mine", "model=modern"], "the variant plain sets model itself"),
        (["sweep=mine", "seed=1,1"], "occurs twice"),
        (["sweep=mine", "sead=1"], "did you mean seed"),
        (["variant=wide"], "this is no sweep; give sweep=<name>"),
        (["sweep.jobs=2"], "this is no sweep"),
        (["-m", "depth=1,2", "variant=wide"], "there is no table of variants"),
        (["seed=1,2"], "several values need -m"),
        (["sweep=mine", "sweep.jobs=0"], "sweep.jobs=0 must be"),
        (["sweep=mine", "varient=wide"], "did you mean variant"),
        (
            ["-m", "sweep.variants={a: [depth=3]}", "variant=a"],
            "sweep.variants={a: [depth=3]}: the value cannot be read; give each variant by itself: sweep.va",
        ),
        (["-m", "sweep.variants.a=depth=3", "variant=a"], "takes a list of texts"),
        (
            ["chain_overrides={sft: a=b}"],
            "chain_overrides={sft: a=b}: the value cannot be read; inside {} a text such as",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_sweep_is_refused_in_one_line(own: Path, typed: list[str], said: str):
    with pytest.raises(ConfigError) as error:
        jobs_of(*typed, folder=own)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["launcher", "sweeper"])
def test_a_launcher_or_sweeper_of_hydra_is_refused_since_the_runs_are_started_here(own: Path, group: str):
    (own / "hydra" / group).mkdir(parents=True)
    (own / "hydra" / group / "mine.yaml").write_text("_target_: mine.Own\n")
    with pytest.raises(ConfigError, match=rf"^hydra/{group}: train\.py starts the runs of a sweep itself"):
        jobs_of("sweep=mine", f"hydra/{group}=mine", folder=own)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "[plain, model",
            "[plane, model",
            "holds plane, which is neither an override, as key=value, nor another variant; did",
        ),
        ("plain: [model=classic]", "plain: [wider]", "begins from itself: plain -> wider -> wide -> plain"),
        ("model.n_embd=384", "model.n_embed=384", "no setting is called model.n_embed; did you mean model.n_embd?"),
        ("model=classic", "model=clasic", "did you mean classic"),
        ("sweep:\n  var", "depth: 3\nsweep:\n  var", "sets depth, which the command of a run alone would lack"),
        ("depth: 2", "dept: 2", "no setting is called dept; did you mean depth?"),
    ],
)
def test_a_mistake_in_the_file_of_a_sweep_is_refused_in_one_line(own: Path, before: str, after: str, said: str):
    assert before in TABLE
    (own / "sweep" / "mine.yaml").write_text(TABLE.replace(before, after))
    with pytest.raises(ConfigError) as error:
        jobs_of("sweep=mine", folder=own)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_names_of_runs_are_plain_folder_names_and_never_the_same():
    jobs = jobs_of("-m", "data.text=a/b,a_b,'a b'", "depth=2", f"run_name={'x' * 150},y")
    assert len({*names(jobs)}) == 6
    assert all("/" not in name and " " not in name and len(name) < 200 for name in names(jobs))
    assert names(jobs_of("-m", "seed=1,2", "data.seed=1,2"))[1] == "seed=1-data.seed=2"


# --- the shipped study ---

ALIKE = {"pad_vocab_to": "padded rows are never predicted", "backout": "of two blocks the middle is the end"}
"""Fields of the modern recipe that change no prediction, so that no row tries them."""


def differing(section: str, kind: type) -> dict[str, tuple[Any, Any]]:
    """Give the fields in which the two recipes differ, with both values."""
    [[classic], [modern]] = [jobs_of(f"model={name}", f"optim={name}") for name in ("classic", "modern")]
    pair = [getattr(job.checked, section) for job in (classic, modern)]
    fields = {name: (getattr(pair[0], name), getattr(pair[1], name)) for name in kind.__dataclass_fields__}
    return {name: values for name, values in fields.items() if values[0] != values[1] and name not in ALIKE}


def by_role(cfg: OptimConfig) -> dict[str, Any]:
    """Give the settings of an optimizer as they are in force, where one field says what another would."""
    own = {name: getattr(cfg, name) for name in OptimConfig.__dataclass_fields__}
    own["role_betas"] = {role: list(cfg.role_betas.get(role, (cfg.adam_beta1, cfg.adam_beta2))) for role in ROLES}
    own["role_weight_decay"] = {role: cfg.role_weight_decay.get(role, cfg.weight_decay) for role in ROLES}
    return own


@pytest.mark.slow
def test_every_part_of_the_modern_recipe_is_one_pair_of_rows_of_the_ablation():
    jobs = {job.run.variant: job.checked for job in jobs_of("sweep=ablation", "seed=1")}
    table = OmegaConf.to_container(OmegaConf.load(config_dir() / "sweep" / "ablation.yaml").sweep.variants)
    assert {cfg.depth for cfg in jobs.values()} == {2}, "at another depth backout is a part like any other"
    fields = {f"model.{k}": v for k, v in differing("model", Architecture).items()}
    fields |= {f"optim.{k}": v for k, v in differing("optim", OptimConfig).items()}
    tried: list[str] = []
    for name in [name for name in table if name.startswith("modern_without_")]:
        other = name.replace("modern_without_", "classic_with_")
        own = {".".join(line.lstrip("+").partition("=")[0].split(".")[:2]) for line in table[name][1:]}
        assert own == {".".join(line.lstrip("+").partition("=")[0].split(".")[:2]) for line in table[other][1:]}, name
        for base, variant, side in (("modern", name, 0), ("classic", other, 1)):
            for section in ("model", "optim"):
                before, after = (getattr(jobs[which], section) for which in (base, variant))
                goal = getattr(jobs["classic" if side == 0 else "modern"], section)
                a, b, c = (by_role(x) if section == "optim" else vars(x) for x in (before, after, goal))
                for key in a:
                    assert b[key] == (c[key] if f"{section}.{key}" in own else a[key]), f"{variant}: {section}.{key}"
        tried += sorted(own)
    rates = {f"optim.{name}" for name in ("embedding_lr", "unembedding_lr", "reference_batch_tokens")}
    assert sorted(tried) == sorted({*fields} - rates), "each part belongs to exactly one pair of rows"
    assert sorted(name for name in table if not re.match("modern_without_|classic_with_", name)) == [
        *("classic", "classic_longer", "classic_shorter"),
        *("modern", "modern_longer", "modern_shorter", "modern_with_short_conv"),
    ]
    assert jobs["modern_with_short_conv"].model.short_conv == jobs["classic_with_short_conv"].model.short_conv == 4


def test_of_two_overrides_of_one_key_a_variant_takes_the_later():
    table = {"a": ["depth=2", "seed=1"], "b": ["a", "depth=3"]}
    assert expand_variant("b", table) == ["seed=1", "depth=3"]


# --- the folder and the table ---


def note(folder: Path, name: str, **more: Any) -> Path:
    (folder / name).mkdir(parents=True)
    record = {"variant": None, "values": {}, "seed": 1, "data.order_seed": None, "overrides": [], "command": "c"} | more
    (folder / name / JOB_FILE).write_text(json.dumps(record))
    return folder / name


def test_a_job_of_a_sweep_that_failed_shows_no_figures_of_an_earlier_session(tmp_path: Path):
    job = note(tmp_path, "seed=2", values={"seed": "2"}, seed=2)
    (job / "summary.json").write_text('{"status": "finished", "step": 4, "val/loss": 1.0}')
    (job / "error.txt").write_text("the folder is in use\n")
    [row] = read_jobs(tmp_path)
    assert (row["status"], row["error"], row["seed"]) == ("failed", "the folder is in use", 2)
    assert row["val/loss"] is row["step"] is None


def test_the_table_is_ordered_by_name_with_numbers_by_their_size(tmp_path: Path):
    for name in ("depth=10", "depth=2", "a-lr=0.01", "a-lr=1e-3"):
        note(tmp_path, name)
    write_table(tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["a-lr=1e-3", "a-lr=0.01", "depth=2", "depth=10"]
    assert list(rows[0])[:4] == ["job", "variant", "seed", "data.order_seed"] and list(rows[0])[-1] == "command"


def test_a_folder_with_runs_of_other_settings_is_refused_unless_they_may_go(tmp_path: Path):
    [one, _] = jobs_of("-m", "seed=1,2", "depth=1", f"hydra.sweep.dir={tmp_path}")
    note(tmp_path, "seed=1", overrides=one.run.overrides)
    again = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    sweep.check_sweep(jobs_of(*again, "depth=1", "logger=csv", "resume=auto", "trainer.stop_after_steps=3"))
    with pytest.raises(
        ConfigError, match=r"seed=1 holds a run with depth=1, and now it would have depth=2; .*force=true"
    ):
        sweep.check_sweep(jobs_of(*again, "depth=2"))
    sweep.check_sweep(jobs_of(*again, "depth=2", "force=true"))
    with pytest.raises(ConfigError, match="goes on from its own folder"):
        sweep.check_sweep(jobs_of(*again, "depth=1", f"resume={tmp_path}"))


def test_runs_side_by_side_share_the_cores_and_take_a_device_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(sweep, "count_devices", list)
    jobs = jobs_of("-m", "seed=1,2")
    assert sweep.find_places(jobs, 1) == [{}]
    assert sweep.find_places(jobs, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(sweep, "count_devices", lambda: ["4", "6"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in sweep.find_places(jobs, 2)] == ["4", "6"]
    with pytest.raises(ConfigError, match=r"sweep.jobs=3: each run takes 1 of the 2 devices here; give sweep.jobs=2"):
        sweep.find_places(jobs, 3)
    assert len(sweep.find_places(jobs_of("-m", "seed=1,2", "trainer=cpu"), 3)) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a user's choice stays
    assert sweep.find_places(jobs_of("-m", "seed=1,2", "trainer=cpu"), 2) == [{}, {}]


def test_runs_begin_loaded_only_where_each_is_one_process_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    on_cpu = jobs_of("-m", "seed=1,2", "trainer=cpu")
    monkeypatch.setattr(sweep, "count_devices", lambda: ["0"])
    assert not sweep.may_fork(jobs_of("-m", "seed=1,2"))
    monkeypatch.setattr(sweep.sys, "platform", "linux")
    assert sweep.may_fork(on_cpu)
    assert not sweep.may_fork(jobs_of("-m", "seed=1", "trainer=cpu"))  # it has the terminal
    assert not sweep.may_fork(jobs_of("-m", "seed=1,2", "trainer=cpu", "trainer.devices=2"))
    monkeypatch.setattr(sweep.sys, "platform", "darwin")
    assert not sweep.may_fork(on_cpu)
    monkeypatch.setattr(sweep.sys, "platform", "linux")
    monkeypatch.setattr(sweep, "count_devices", list)
    assert sweep.may_fork(jobs_of("-m", "seed=1,2"))


def test_where_no_copy_can_be_made_a_run_begins_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError("AF_UNIX path too long")

    began: list[list[str]] = []
    monkeypatch.setattr(sweep, "Fork", refuse)
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda command, **_: began.append(command))
    jobs = jobs_of("-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}")
    board = sweep.Board(jobs, None, [{}], True)
    for job in jobs:
        job.folder.mkdir()
        board.begin(job, "python train.py", {})
    assert not board.forks
    assert began == [[*sweep.own_command(job, None), "chain=[]"] for job in jobs]
    assert (jobs[0].folder / "output.txt").read_text() == "python train.py\n"


def evaluated(tmp_path: Path) -> Path:
    """A sweep of two variants with two seeds each, evaluated."""
    for n, (name, seed) in enumerate((name, seed) for name in ("plain", "wide") for seed in (1, 2)):
        config = {"seed": seed, "run_name": "d2", "model": {"n_embd": len(name)}, "sweep": {"variant": name}}
        run = evaluated_run(tmp_path, f"mine/{name}-seed={seed}", [True] * (n + 1) + [False] * (9 - n), config=config)
        (run / JOB_FILE).write_text("{}")
    return tmp_path / "mine"


def test_compare_takes_the_folder_of_a_sweep_and_groups_its_runs_under_their_variant(
    tmp_path: Path,
):
    folder = evaluated(tmp_path)
    assert compare([str(folder), "--seeds", "--markdown", str(tmp_path / "out.md")]) == 0
    text = (tmp_path / "out.md").read_text()
    assert "mine/plain (seed 1, 2)" in text and "mine/wide (seed 1, 2)" in text


def test_the_folder_of_a_sweep_stands_for_its_runs_in_an_evaluation(tmp_path: Path):
    for name in ("depth=10", "depth=2"):
        note(tmp_path, name)
    assert checkpoint_list(str(tmp_path)) == [str(tmp_path / "depth=2"), str(tmp_path / "depth=10")]
    assert checkpoint_list([str(tmp_path / "depth=2")]) == [str(tmp_path / "depth=2")]


def test_the_name_of_a_group_is_that_of_its_runs_without_their_seeds():
    def label(*names: str) -> str:
        return group_label([entrant(name, recalled([True])) for name in names])

    assert label("mine/wide-seed=1", "mine/wide-seed=2") == "mine/wide"
    assert label("mine/seed=1-lr=1e-3", "mine/seed=2-lr=1e-3") == "mine/lr=1e-3"
    assert label("mine/seed=1", "mine/seed=2") == "mine"
    assert label("seed=1", "seed=2") == "seed=1"
    assert label("mine/wide-seed=1") == "mine/wide-seed=1"
    assert label("base/a-b", "base/a-c") == "base/a-b"
