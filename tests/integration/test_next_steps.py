"""What a run says at its end is typed literally: each command works, with data, folders and shapes of the run."""

import shlex
import shutil
from pathlib import Path

import pytest

from nanochat_pl.checkpoint import check_model
from nanochat_pl.cli.main import COMMANDS
from nanochat_pl.cli.next_steps import evaluation, next_steps, typed
from nanochat_pl.config.checks import preflight
from nanochat_pl.config.command_line import CommandLine, quote_texts
from nanochat_pl.config.compose import check, compose_checked, config_dir
from nanochat_pl.config.schema import EvaluateConfig, TrainConfig
from nanochat_pl.config.stages import StageName
from nanochat_pl.paths import run_dir

from .conftest import TINY

STEPS = {
    "base": ["stage.num_steps=1", "stage.total_batch_tokens=512", "stage.val_tokens=512"],
    "mid": ["stage.num_steps=1", "stage.val_tokens=512"],
    "sft": ["stage.num_steps=1", "stage.total_batch_rows=4", "stage.val_rows=4"],
    "rl": [
        "stage.num_steps=1",
        "rl.prompts_per_step=2",
        "rl.num_samples=2",
        "rl.max_new_tokens=4",
        "rl.val_questions=2",
    ],
}
"""What keeps each stage short; everything else is as the stage before it printed."""
TEXTS = (
    "a b",
    "it's",
    'say "yes"',
    "a,b",
    "5e1",
    "null",
    "true",
    "[x]",
    "a=b",
    "'q'",
    "$HOME",
    "名前",
    "x\\y",
    "#1",
    "(a)",
)


def parse(name: str, arguments: list[str]) -> TrainConfig | EvaluateConfig:
    """Read arguments as the commands do."""
    [composed] = compose_checked(name, CommandLine.parse(quote_texts(arguments)))
    return check(composed, TrainConfig if name == "train" else EvaluateConfig)


@pytest.mark.parametrize("text", TEXTS)
def test_a_setting_is_written_so_that_the_command_reads_the_same_text(text: str):
    for key in ("data.root", "outputs"):
        [argument] = shlex.split(shlex.quote(typed(key, text)))
        cfg = parse("train", ["data=local", "data.root=d", argument])
        assert (cfg.data.root if key == "data.root" else cfg.outputs) == text


@pytest.mark.slow
def test_what_each_stage_prints_trains_the_next_when_typed_literally(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from omegaconf import OmegaConf

    from nanochat_pl.training.run import run

    monkeypatch.chdir(tmp_path)
    root = Path('its "own", it\'s')
    shutil.copytree(world / "data", root)
    shutil.copytree(world / "tokenizer", "tokens of mine")
    tiny = [argument for argument in TINY if not argument.startswith("run_name")]
    arguments = [
        "stage=base",
        *tiny,
        "data=local",
        typed("data.root", str(root)),
        "data.text=text",
        "outputs=my 'runs'",
    ]
    arguments += ["run_name=5e1 #1", "tokenizer.path=tokens of mine", "stage.sequence_len=256", "stage.device_batch=2"]
    trained = []
    while True:
        cfg = parse("train", arguments)
        assert isinstance(cfg, TrainConfig)
        folder = run_dir(cfg.stage.name, cfg.run_name, cfg.outputs)
        short = quote_texts([*arguments, *STEPS[str(cfg.stage.name)]])
        [composed] = compose_checked("train", CommandLine(short, False, config_dir()))
        plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        cfg = check(composed, TrainConfig)
        preflight(cfg)
        run(cfg, plain, folder, [])
        trained.append(cfg.stage.name)
        assert cfg.data.root == str(root) and cfg.depth == 1 and cfg.model.n_embd == 64
        assert folder.parent.parent == Path("my 'runs'")
        commands = [shlex.split(command) for command in next_steps(cfg, folder)]
        for command in commands:
            if "evaluate.py" in " ".join(command) or "evaluate" in command:
                at = next(i for i, word in enumerate(command) if word.startswith("ckpt="))
                found = parse("evaluate", command[at:])
                assert isinstance(found, EvaluateConfig) and check_model(found.ckpt, Path("hub"), True) is not None
                assert found.outputs == "my 'runs'"
        used = {word: command for command in commands for word in command if word in ("chat", "serve", "report")}
        assert {*used} == {"chat", "serve", "report"} and {*used} <= {*COMMANDS}
        assert all(str(folder) in command for command in used.values())
        assert ("--complete" in used["chat"]) == (cfg.stage.name == StageName.base)
        later = [command for command in commands if any(word.startswith("stage=") for word in command)]
        later = [command for command in later if not any(word == "stage=sft_scienceqa" for word in command)]
        if not later:
            break
        at = next(i for i, word in enumerate(later[0]) if word.startswith("stage="))
        arguments = later[0][at:]
    assert trained == ["base", "mid", "sft", "rl"]


def test_a_stage_that_lacks_its_data_or_is_there_already_is_not_offered(tmp_path: Path):
    (tmp_path / "data/text").mkdir(parents=True)
    outputs = tmp_path / "outs"
    place = [f"data.root={tmp_path / 'data'}", f"outputs={outputs}", "data=local", "data.text=text", "run_name=r"]
    cfg = parse("train", ["stage=tokenizer", *place])
    assert isinstance(cfg, TrainConfig)
    assert next_steps(cfg, outputs / "tokenizer/r") == []  # there is no text: what base would say is an error


@pytest.mark.slow
def test_the_evaluation_after_a_run_reads_the_data_that_the_run_made(tmp_path: Path):
    def printed(*arguments: str) -> list[str]:
        cfg = parse("train", ["stage=base", "run_name=x", *arguments])
        return evaluation(cfg, "base", run_dir("base", "x", cfg.outputs))

    assert not any(argument.startswith("data.root=") for argument in printed())
    assert f"data.root={tmp_path}" in printed(f"data.root={tmp_path}")
    assert f"data.root={tmp_path}" in printed("data=hub", f"data.root={tmp_path}")
    own = [f"outputs={tmp_path}", f"data.root={tmp_path / 'data' / 'mine'}"]
    assert not any(argument.startswith("data.root=") for argument in printed(*own))
