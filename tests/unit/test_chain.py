"""Chains: what is skipped and what is done again; a stage gets the signals that its chain gets, and time to save."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from nanochat_pl.cli import chain
from nanochat_pl.cli.chain import EVALUATE, command_line, flat, plan_chain, run_chain, run_command
from nanochat_pl.config.command_line import CommandLine, ConfigError, in_hydra
from nanochat_pl.config.compose import check, compose_checked, config_dir
from nanochat_pl.config.provenance import READ_WHOLE_BYTES, fingerprint, run_inputs
from nanochat_pl.config.run_folder import resume_file
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.paths import run_dir
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.signals import SIGNALS

SAVES = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.6)  # longer than subprocess.run would wait
    sys.exit(number + 100)
signal.signal({number}, save)
time.sleep(30)
"""


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stage_gets_the_signal_and_time_to_save(number: signal.Signals):
    before = signal.getsignal(number)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    assert run_command([sys.executable, "-c", SAVES.format(number=int(number))]) == number + 100
    assert signal.getsignal(number) is before
    timer.join()


def test_the_exit_code_of_a_killed_stage_is_a_shell_s():
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def compose(overrides: list[str], folder: Path | None = None) -> TrainConfig:
    return check(compose_checked("train", CommandLine(overrides, False, folder or config_dir()))[0], TrainConfig)


def planned(overrides: list[str], folder: Path | None = None) -> dict[str, list[str]]:
    return dict(plan_chain(compose(overrides, folder), overrides, folder))


def test_each_stage_starts_from_the_one_before_it_and_the_first_from_what_is_asked(tmp_path: Path):
    common = ["run_name=r", f"outputs={tmp_path}"]
    plan = planned(["chain=[tokenizer,base,mid,sft,rl]", *common])
    given = {stage: [a for a in arguments if a.startswith("init_from=")] for stage, arguments in plan.items()}
    folders = {stage: f"init_from={tmp_path / stage / 'r'}" for stage in plan}
    assert given == {
        "tokenizer": [],
        "base": [],
        "mid": [folders["base"]],
        "sft": [folders["mid"]],
        "rl": [folders["sft"]],
    }
    plan = planned(["chain=[mid,sft]", "init_from=some/run", *common])
    assert "init_from=some/run" in plan["mid"]
    assert [a for a in plan["sft"] if a.startswith("init_from=")] == [folders["mid"]]


def test_overrides_of_one_stage_reach_it_alone_groups_and_new_tasks_too(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    text = """
    # @package _global_
    run_name: r
    chain: [mid, sft]
    chain_overrides:
      mid:
        mixture: arithmetic
        stage: {num_steps: 7}
        optim: {grad_clip: null}
      sft:
        mixture:
          tasks:
            chats: {_target_: nanochat_pl.tasks.chats.Chats, path: 'a folder/with, signs', stop: 30}
    """
    lines = [line.removeprefix("    ") for line in text.strip("\n").splitlines()]
    (tmp_path / "experiment" / "mine.yaml").write_text("\n".join(lines))
    plan = planned(["experiment=mine"], tmp_path)
    mid, sft = compose(plan["mid"], tmp_path), compose(plan["sft"], tmp_path)
    assert (mid.stage.name, mid.stage.num_steps, mid.optim.grad_clip) == ("mid", 7, None)
    assert [spec["_target_"] for spec in mid.mixture.tasks.values()] == ["nanochat_pl.tasks.arithmetic.Arithmetic"]
    assert sft.stage.num_steps is None
    assert sft.mixture.tasks["chats"]["path"] == "a folder/with, signs"
    assert sft.mixture.tasks["chats"]["stop"] == 30
    assert command_line("mid", plan["mid"], tmp_path)[3:5] == ["--config-dir", str(tmp_path)]


def test_a_stage_s_setting_may_be_new_to_the_experiment():
    line = CommandLine.parse(["experiment=laptop_d4", "chain_overrides.base.optim.matrix_lr=0.5"])
    cfg = check(compose_checked("train", line)[0], TrainConfig)
    plan = dict(plan_chain(cfg, line.overrides))
    assert compose(plan["base"]).optim.matrix_lr == 0.5
    assert compose(plan["mid"]).optim.matrix_lr == compose(["stage=mid"]).optim.matrix_lr


@pytest.mark.parametrize(
    "typed",
    [
        ["chain_overrides.sft.mixture=arithmetic", "chain_overrides.sft.mixture.tasks.own=a.jsonl"],
        ["chain_overrides.sft.mixture.tasks.own=a.jsonl", "chain_overrides.sft.mixture=arithmetic"],
        ["chain_overrides.sft.mixture=arithmetic", "chain_overrides.sft={mixture:{tasks:{own:a.jsonl}}}"],
        ["chain_overrides={sft:{mixture:arithmetic}}", "+chain_overrides.sft.mixture.tasks.own=a.jsonl"],
    ],
)
def test_the_choice_of_a_group_and_keys_below_it_both_hold_for_a_stage(typed: list[str]):
    line = CommandLine.parse(["chain=[base,sft]", *typed])
    cfg = check(compose_checked("train", line)[0], TrainConfig)
    stage = compose(dict(plan_chain(cfg, line.overrides))["sft"])
    single = compose(["stage=sft", "mixture=arithmetic", "++mixture.tasks.own=a.jsonl"])
    assert stage.mixture == single.mixture and stage.mixture != compose(["stage=sft"]).mixture


def test_a_group_that_an_experiment_chooses_for_a_stage_holds_beside_typed_keys_below_it(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nchain: [base, sft]\nchain_overrides:\n  sft:\n    mixture: arithmetic\n    seed: 3\n"
    )
    typed = ["chain_overrides.sft.mixture.tasks.own=a.jsonl", "chain_overrides.sft.seed=4"]
    line = CommandLine.parse(["--config-dir", str(tmp_path), "experiment=mine", *typed])
    cfg = check(compose_checked("train", line)[0], TrainConfig)
    arguments = dict(plan_chain(cfg, line.overrides, tmp_path))["sft"]
    assert arguments[-3:] == ["mixture=arithmetic", "++mixture.tasks.own=a.jsonl", "seed=4"]


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "plain", "a b", "null", "3", "x,y", "it's", "", [1, "a,b"]])
def test_a_value_survives_the_command_line(value: object):
    [override] = flat({"key": value})
    assert override == f"key={in_hydra(value)}"
    cfg = compose(["chain_overrides={}", f"++chain_overrides.mid.{override}"])
    assert cfg.chain_overrides["mid"]["key"] == value


def test_what_a_chain_cannot_do_is_refused():
    for stages in ("evaluate", "tokenizer,evaluate"):
        with pytest.raises(ConfigError, match="trains no model that could be evaluated; add a stage"):
            planned([f"chain=[{stages}]"])
    with pytest.raises(ConfigError, match="chain names fft, which is none of tokenizer, base"):
        planned(["chain=[base,fft]"])
    with pytest.raises(ConfigError, match=r"chain_overrides\.sft is for no stage of the chain \(base\)"):
        planned(["chain=[base]", "+chain_overrides.sft.stage.num_steps=3"])
    planned(["experiment=laptop_d4", "chain=[mid]", "chain_overrides.mid.stage.num_steps=3"])
    with pytest.raises(ConfigError, match=r"chain_overrides\.base is for no stage of the chain \(mid\)"):
        planned(["experiment=laptop_d4", "chain=[mid]", "chain_overrides.base.stage.num_steps=3"])
    with pytest.raises(ConfigError, match=r"stage\.num_steps=3: a chain has several stages"):
        planned(["chain=[base]", "stage.num_steps=3"])


@pytest.mark.parametrize("shown", [["--cfg=job"], ["--cfg", "job"], ["-c=job"], ["--info=config"]])
def test_what_shows_a_config_trains_nothing(shown: list[str]):
    line = CommandLine.parse(["chain=[base]", *shown])
    assert line.shows_config and line.overrides == ["chain=[base]"]
    assert not CommandLine.parse(["chain=[base]"]).shows_config


@pytest.fixture
def small_world(tmp_path: Path) -> list[str]:
    """A folder with two shards and a task's file, a tokenizer, and the overrides of a chain over them."""
    (tmp_path / "data" / "text").mkdir(parents=True)
    for number in range(2):
        pq.write_table(pa.table({"text": [f"text {number}"]}), tmp_path / "data" / "text" / f"shard_{number}.parquet")
    for name in ("chats", "smoltalk", "mmlu", "gsm8k"):
        (tmp_path / "data" / name).mkdir()
    (tmp_path / "data" / "chats" / "train.parquet").write_bytes(b"a")
    for name in ("identity_conversations.jsonl", "words_alpha.txt"):
        (tmp_path / "data" / name).touch()
    Tokenizer([bytes([byte]) for byte in range(256)]).save(tmp_path / "tokenizer" / "r")
    return [
        "chain=[base,mid]",
        "run_name=r",
        f"outputs={tmp_path}",
        "data=local",
        f"data.root={tmp_path / 'data'}",
        "data.text=text",
        "tokenizer.vocab_size=265",
        "+chain_overrides.mid.mixture.tasks.chats._target_=nanochat_pl.tasks.chats.Chats",
        f"+chain_overrides.mid.mixture.tasks.chats.path={tmp_path / 'data' / 'chats'}",
    ]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that a chain started, instead of training: each leaves what a finished run leaves."""
    started: list[str] = []

    def pretend(command: list[str]) -> int:
        arguments = command[3:]
        composed = compose_checked("train", CommandLine(arguments, False, config_dir()))[0]
        cfg = check(composed, TrainConfig)
        folder = run_dir(cfg.stage.name, cfg.run_name, cfg.outputs)
        started.append(f"{cfg.stage.name}{' force' if cfg.force else ''}")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(OmegaConf.to_container(composed, resolve=True, enum_to_str=True)),
                       folder / "config.yaml")  # fmt: skip
        inputs = run_inputs(cfg)
        (folder / "summary.json").write_text(json.dumps({"status": "finished", "inputs": inputs}))
        (folder / "checkpoints" / "last.ckpt").write_text(json.dumps(inputs))  # other inputs, other weights
        return 0

    monkeypatch.setattr(chain, "run_command", pretend)
    return started


def go(overrides: list[str]) -> None:
    assert run_chain(compose(overrides), overrides) == 0


def test_a_file_that_a_later_stage_lacks_is_missed_before_the_first_begins(
    small_world: list[str], ran: list[str], tmp_path: Path
):
    (tmp_path / "data" / "words_alpha.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"words_alpha\.txt, which mixture\.tasks\.spelling reads"):
        go(small_world)
    assert not ran
    go([*small_world, *(f"+chain_overrides.mid.mixture.tasks.{name}=null" for name in ("spelling", "spelling_bee"))])
    assert ran == ["base", "mid"]


def test_a_byte_in_the_middle_of_a_large_file_changes_its_fingerprint(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_bytes(b"a" * (READ_WHOLE_BYTES + 2**21))
    before = fingerprint(file)
    with file.open("r+b") as changed:
        changed.seek(2**23)
        changed.write(b"b")
    assert fingerprint(file) != before


@pytest.mark.slow
def test_a_finished_stage_is_skipped_until_its_config_or_inputs_change(
    small_world: list[str], ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    go(small_world)
    assert ran == ["base", "mid"]
    go(small_world)
    assert ran == ["base", "mid"]
    assert capsys.readouterr().out.count("finished before from the same config and inputs; skipped") == 2

    (tmp_path / "data" / "chats" / "train.parquet").write_bytes(b"b")
    go(small_world)
    assert ran[2:] == ["mid force"]
    assert "but the files of tasks.chats changed since: done again" in capsys.readouterr().out

    table = pa.table({"text": ["another text"]})
    pq.write_table(table, tmp_path / "data" / "text" / "shard_0.parquet")
    go(small_world)
    assert ran[3:] == ["base force", "mid force"]
    said = capsys.readouterr().out
    assert "but the text shards changed since" in said
    assert "but the initial weights changed since" in said

    Tokenizer([bytes([byte]) for byte in range(256)] + [b"ab"]).save(tmp_path / "tokenizer" / "r")
    go(small_world)
    assert ran[5:] == ["base force", "mid force"]
    assert "but the tokenizer changed since" in capsys.readouterr().out

    with pytest.raises(ValueError, match=r"mid/r already holds last\.ckpt; give resume=auto"):  # another config
        go([*small_world, "+chain_overrides.mid.optim.matrix_lr=0.01"])
    go([*small_world, "force=true", "tokenizer.vocab_size=266"])
    assert ran[7:] == ["base force", "mid force"]


@pytest.mark.slow
def test_a_run_that_does_not_say_what_it_was_made_from_is_left_alone(
    small_world: list[str], ran: list[str], tmp_path: Path
):
    go(small_world)
    for stage in ("base", "mid"):
        (tmp_path / stage / "r" / "summary.json").write_text(json.dumps({"status": "finished"}))
    go(small_world)
    assert ran == ["base", "mid"]


@pytest.mark.parametrize("stages", ["tokenizer", "tokenizer,base,mid,sft,rl"])
def test_the_closing_table_shows_the_figures_that_each_stage_has(tmp_path: Path, stages: str):
    figures = {
        "base": {"step": 9, "val/loss": 2.5, "val/bpb": 1.25},
        "mid": {"step": 8, "val/loss": 2.25},
        "sft": {"step": 7, "train/loss": None},
        "rl": {"step": 6, "reward": 0.5, "pass@1": 0.25},
    }
    for stage, summary in figures.items():
        (tmp_path / stage / "r").mkdir(parents=True)
        (tmp_path / stage / "r" / "summary.json").write_text(json.dumps(summary))
    table = chain.closing_table(compose([f"chain=[{stages}]", "run_name=r", f"outputs={tmp_path}"]), 1.0)
    shown = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in table.splitlines() if "│" in line}
    if stages == "tokenizer":
        assert shown == {}
    else:
        assert [cell.strip() for cell in shown["validation loss"]] == ["2.500", "2.250", "", ""]
        assert [cell.strip() for cell in shown["pass@1"]] == ["", "", "", "25.0%"]
        assert "train loss" not in shown
        assert "free recall" not in shown
        assert f"nanochat_pl.cli.main chat {tmp_path}/rl/r" in table or f"nanochat-pl chat {tmp_path}/rl/r" in table
        assert f"ckpt={tmp_path}/rl/r" in table  # no evaluation stands in the chain
    assert str(tmp_path) in table.replace("\n", "")


def test_the_closing_lines_show_answers_of_the_last_model(tmp_path: Path):
    for stage in ("base", "sft"):
        (tmp_path / stage / "r").mkdir(parents=True)
        (tmp_path / stage / "r" / "summary.json").write_text("{}")
    folder = tmp_path / "sft" / "r" / "eval" / "checks" / "best"
    folder.mkdir(parents=True)
    tool = "12 * 34 = <|python_start|>12*34<|python_end|><|output_start|>408<|output_end|>408.\n#### 408"
    records = [
        ("product", "What is 12 times 34?", tool),
        ("hello", "Hello!", "Hello!\u2028I am\nMinnow."),
        ("other", "?", "x"),
    ]
    lines = [
        json.dumps({"id": name, "prompt": prompt, "output": output}, ensure_ascii=False)
        for name, prompt, output in records
    ]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    table = chain.closing_table(compose(["chain=[base,sft]", "run_name=r", f"outputs={tmp_path}"]), 1.0)
    start = table.splitlines().index("  Hello!  ->  Hello! I am Minnow.")
    assert table.splitlines()[start + 1] == "  What is 12 times 34?  ->  12 * 34 = [12*34 = 408]408. #### 408"
    assert "?  ->  x" not in table


def test_a_chain_ends_with_the_same_questions_to_every_model():
    for stages in ("base,mid,sft", "base,sft_scienceqa"):
        overrides = [f"chain=[{stages},evaluate]", "run_name=r"]
        plan = plan_chain(compose(overrides), overrides)
        asked = [arguments for stage, arguments in plan if stage == EVALUATE]
        assert [arguments[1] for arguments in asked] == ["eval=scienceqa", "eval=recall", "eval=checks"]
        assert {arguments[0] for arguments in asked} == {
            f"ckpt=[{','.join(f'outputs/{stage}/r' for stage in stages.split(','))}]"
        }


def chained(tmp_path: Path, *more: str) -> tuple[TrainConfig, list[str]]:
    overrides = ["chain=[base,mid,evaluate]", "depth=1", f"outputs={tmp_path}", f"data.root={tmp_path / 'data'}", *more]
    return compose(overrides), overrides


def test_a_chain_does_not_go_on_from_a_stage_that_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cfg, overrides = chained(tmp_path)
    begun: list[list[str]] = []

    def stops(command: list[str]) -> int:
        begun.append(command)
        folder = run_dir("base", cfg.run_name, cfg.outputs)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"status": "stopped", "step": 4, "num_steps": 8}))
        return 0

    monkeypatch.setattr(chain, "run_command", stops)
    assert run_chain(cfg, overrides) == 1
    assert len(begun) == 1
    assert "stage base is not finished (stopped at step 4 of 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("+chain_overrides.evaluate.eval.max_new_tokens=9999", "eval.max_new_tokens=9999 leaves no room"),
        ("+chain_overrides.mid.stage.sequence_len=128", "eval.max_new_tokens=128 leaves no room"),
        ("+chain_overrides.mid.stage.total_batch_tokens=7", "total_batch_tokens=7 is not a multiple"),
        ("init_from=nowhere", "init_from=nowhere does not exist"),
        ("data=local", "there is no folder data.root="),
        ("", "mid/d1 already holds last.ckpt"),
    ],
)
def test_what_a_later_stage_or_evaluation_refuses_is_refused_before_the_first_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, said: str
):
    monkeypatch.setattr(chain, "run_command", lambda command: pytest.fail("a stage began"))
    if not more:
        held = tmp_path / "mid" / "d1" / "checkpoints" / "last.ckpt"
        held.parent.mkdir(parents=True)
        held.write_bytes(b"of an earlier run")
    cfg, overrides = chained(tmp_path, *filter(None, [more]))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_chain(cfg, overrides)


def test_an_evaluation_in_training_that_leaves_no_room_is_refused_before_any_stage(tmp_path: Path):
    more = ["+chain_overrides.mid.stage.eval_every_steps=5", "+chain_overrides.mid.eval.name=recall"]
    cfg, overrides = chained(tmp_path, *more, "+chain_overrides.mid.eval.max_new_tokens=512")
    with pytest.raises(ValueError, match=r"eval\.max_new_tokens=512 leaves no room for a question in the model's 512"):
        run_chain(cfg, overrides)


@pytest.mark.parametrize("status", ["stopped", "running", "failed"])
def test_a_chain_does_not_start_from_an_earlier_run_that_is_not_finished_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
):
    monkeypatch.setattr(chain, "run_command", lambda command: 77)
    base = tmp_path / "base" / "d1"
    (base / "checkpoints").mkdir(parents=True)
    (base / "checkpoints" / "best.ckpt").write_bytes(b"stale")
    monkeypatch.setattr(chain, "check_start", lambda *a: None)
    (base / "summary.json").write_text(json.dumps({"status": status, "step": 4, "num_steps": 8}))
    cfg, overrides = chained(tmp_path, "chain=[mid,evaluate]")
    with pytest.raises(ValueError, match=rf"{base}, which is not finished \({status} at step 4 of 8\)"):
        run_chain(cfg, overrides)
    cfg, overrides = chained(tmp_path, "chain=[mid,evaluate]", f"init_from={base}")
    assert run_chain(cfg, overrides) == 77


def test_the_questions_of_a_chain_s_evaluation_are_missed_before_the_first_stage(
    small_world: list[str], ran: list[str]
):
    with pytest.raises(FileNotFoundError, match=r"there is no test\.parquet .* in .*/data/scienceqa"):
        go([*small_world, "chain=[base,mid,evaluate]"])
    assert not ran


def test_a_tokenizer_killed_before_its_summary_is_made_again_by_resume(tmp_path: Path):
    cfg = compose(["stage=tokenizer", "resume=auto", "run_name=r"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"already holds tokenizer\.json"):  # nobody's run, or of an earlier time
        resume_file(cfg, tmp_path)
    (tmp_path / "config.yaml").write_text("stage: {name: tokenizer}")
    assert resume_file(cfg, tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(ValueError, match=r"already holds tokenizer\.json"):
        resume_file(cfg, tmp_path)


def test_the_quickstart_is_accepted_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []

    def finishes(command: list[str]) -> int:
        started.append(next(a for a in command if a.startswith(("stage=", "eval="))))
        if started[-1].startswith("stage="):
            folder = run_dir(started[-1].removeprefix("stage="), "quickstart", str(tmp_path))
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
        return 0

    monkeypatch.setattr(chain, "run_command", finishes)
    overrides = ["experiment=quickstart", f"outputs={tmp_path}"]
    assert run_chain(compose(overrides), overrides) == 0
    assert started == [*(f"stage={s}" for s in ("tokenizer", "base", "mid", "sft", "rl")),
                       *(f"eval={e}" for e in ("scienceqa", "recall", "checks"))]  # fmt: skip


def test_the_evaluation_of_a_chain_reads_the_data_that_its_stages_read(tmp_path):
    for root, given in ((tmp_path / "elsewhere", True), (tmp_path / "outputs" / "data" / "world", False)):
        typed = ["chain=[base,evaluate]", f"data.root={root}", f"outputs={tmp_path / 'outputs'}"]
        [composed] = compose_checked("train", CommandLine(typed, False, config_dir()))
        *_, (_, arguments) = plan_chain(check(composed, TrainConfig), typed)
        assert (f"data.root={root}" in arguments) == given
