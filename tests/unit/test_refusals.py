"""A wrong command line is answered in this project's words: what was typed, what is expected, what was meant.

No sentence of Hydra, OmegaConf, argparse or the reader of YAML may reach a user, whatever is wrong.
"""

import re
import sys
from pathlib import Path

import pytest

from nanochat_pl.cli import evaluate as evaluate_command
from nanochat_pl.cli import train as train_command
from nanochat_pl.cli.main import main

THEIRS = re.compile(
    r"Traceback|could not be converted|full_key|object_type|Interpolation|[Cc]ould not (find|load|append|delete)"
    r"|ConfigComposition|ValidationError|viable|extraneous|mismatched|token recog|Errno|missing EQUAL|struct|NoneType"
    r"|DictConfig|OmegaConf|usage:|expected one argument|invalid choice|unrecognized|while (scan|pars)|mapping values"
)

WRONG = {
    # an option that a group does not have
    "stage=sftt": r"stage has no such option; there are base, mid, rl, .*; did you mean sft\?",
    "eval=sciencqa": r"did you mean scienceqa\?",
    "experiment=quickstrt": r"did you mean quickstart\?",
    "logger=wandbb": r"did you mean wandb\?",
    "stage=base.yaml": r"did you mean base\?",
    "stage=../stage/base": r"no such option",
    "stage=": r"no such option",
    "stage=null": r"stage=null: .*leave stage= away",
    "data=[hub,nope]": r"data=nope: .*hub, local, microworld",
    "mixture=nope": r"mixture has no such option; there are arithmetic",
    "sizes=abc": r"sizes has no such option",
    "local=nope": r"local has no such option; there are none",
    "optim=3": r"optim=3: optim has no such option; there are adamw, classic",
    "stage=[base]": r"stage=\[base\]: stage takes one option, as stage=base$",
    "-m stage=base,sftt": r"stage=sftt: .*did you mean sft\?",
    "hydra/launcher=nope": r"hydra/launcher has no such option",
    "stage@x=base": r"leave out @x",
    # a value of another kind
    "depth=four": r"depth=four: depth takes a whole number$",
    "depth=[1]": r"depth takes a whole number",
    "depth=null": r"depth=null: depth takes a whole number$",
    "depth=true": r"depth takes a whole number",
    "depth==4": r"depth==4: depth takes a whole number",
    "depth=(1": r"depth takes a whole number",
    "-m depth=1,x": r"depth takes a whole number",
    "trainer.devices=": r"trainer\.devices=: trainer\.devices takes a whole number",
    "stage.num_steps=1.5": r"stage\.num_steps=1\.5: stage\.num_steps takes a whole number, or null",
    "optim.matrix_lr=abc": r"optim\.matrix_lr=abc: optim\.matrix_lr takes a number$",
    "offline=maybe": r"offline takes true or false",
    "trainer.accelerator=cuda": r"trainer\.accelerator takes one of auto, cpu, gpu, mps",
    "stage.name=sftt": r"stage\.name takes one of .*; did you mean sft\?",
    "stage.sample_prompts=abc": r"a list of texts, as \[a,b\]",
    "mixture.tasks=abc": r"mixture\.tasks takes a mapping",
    "stage=sft mixture=microworld mixture.tasks.reeding=null": r"did you mean mixture\.tasks\.reading\?$",
    "stage=sft mixture=microworld mixture.tasks.recall.epoch=2": r"did you mean mixture\.tasks\.recall\.epochs\?$",
    "chain_overrides=3": r"chain_overrides takes a mapping",
    "hydra.mode=FOO": r"hydra\.mode=FOO",
    "hydra.foo=1": r"no setting is called hydra\.foo",
    "hydra=3": r"hydra=3",
    # what stands for another value
    "run_name=${nope}": r"run_name=\$\{nope\}: .*as \$\{depth\}",
    "depth=${foo:1}": r"depth=\$\{foo:1\}",
    "depth=${oc.env:NO_SUCH_VARIABLE}": r"the environment variable NO_SUCH_VARIABLE is not set",
    "depth=${": r"depth",
    "run_name=???": r"run_name is not set",
    # how settings are written
    "--depth=4": r"settings are written without dashes: depth=4$",
    "--depth 4": r"settings are written without dashes: depth=4$",
    "-depth=4": r"settings are written without dashes: depth=4$",
    "--run-name x": r"run_name=x$",
    "--device_batch_size=8": r"did you mean stage\.device_batch=8\?",
    "--nope": r"there is no such option, and settings are written key=value",
    "depth": r"settings are written key=value, as depth=…",
    "=4": r"settings are written key=value",
    "'depth": r"did you mean depth=",
    "🙂=3": r"cannot be the name of a setting",
    "optim.matrix_lrr=1": r"did you mean optim\.matrix_lr\?",
    "+depth=3": r"depth is there already; leave out the \+",
    "+experiment=quickstart": r"leave out the \+",
    "depth=range(1,3)": r"several values need -m",
    "-m depth=glob(*)": r"name the values one by one",
    "-m stage=glob(*)": r"name the values one by one",
    "é=1": r"é cannot be the name of a setting$",
    "/stage=base": r"/stage cannot be the name of a setting; did you mean stage=base\?",
    # an empty path is a variable that is not set, not this folder
    "outputs=": r"outputs= is empty",
    "init_from=": r"init_from= is empty",
    "resume=": r"resume= is empty",
    "data=local data.root=": r"data\.root= is empty",
    # what cannot be left out
    "~depth": r"~depth: a setting cannot be left out; give depth=<value>",
    "~optim.matrix_lr": r"a setting cannot be left out",
    "~stage": r"the config needs stage",
    "~callbacks.nope": r"there is no such thing that could be left out",
    # options of the command line
    "--config-dir nowhere": r"--config-dir nowhere: there is no such folder",
    "--config-dir": r"lacks its value",
    "--cfg nope": r"--cfg nope",
    "-m --cfg job depth=1,2": r"exclude each other",
    "--info --cfg job": r"exclude each other",
    "--shell-completion": r"as --shell-completion install=bash$",
    "-sc install=nope": r"as --shell-completion install=bash$",
    "--cfg job depth=four": r"depth takes a whole number",
    "--cfg job --package nope": r"--package nope: there is no such section",
    "-cn other": r"the config is always train\.yaml or evaluate\.yaml",
    # values that no run can have
    "seed=99999999999999999999999": r"seed=9+ must lie between 0 and",
    "seed=-1": r"seed=-1 must lie between 0 and",
    "data.seed=-1": r"data\.seed=-1 must lie between 0 and",
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], command=train_command) -> str:
    """Run a command that must be refused in one line; give the line."""
    assert command.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    assert not THEIRS.search(said.err), said.err
    assert not any(path for path in Path().iterdir() if path.name != "configs"), "nothing is left behind"
    return said.err.rstrip("\n")


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_argument_says_what_was_expected(typed: str, capsys: pytest.CaptureFixture[str]):
    assert re.search(WRONG[typed], refused(typed.split(), capsys))


@pytest.mark.parametrize("typed", ["eval=sciencqa", "eval.batch_size=x", "--ckpt=x", "trainer=ddpp", "eval.nme=core"])
def test_evaluations_are_answered_alike(typed: str, capsys: pytest.CaptureFixture[str]):
    assert re.search(r"did you mean|takes a whole|without dashes: ckpt=x", refused([typed], capsys, evaluate_command))


COMMANDS = {
    "chatt": r"no command chatt; did you mean chat\?$",
    "nope": r"no command nope; there are train, explain, .*report$",
    "chat": r"CKPT must be given",
    "chat --hlep": r"--hlep: there is no such option; did you mean --help\?",
    "chat x -t -1": r"temperature=-1 must be a number from 0 up",
    "chat x y": r"there is nothing that y could mean here",
    "chat x --device gpu": r"--device gpu must be one of auto, cpu, cuda, mps",
    "serve --prot 3": r"--prot: there is no such option; did you mean --port\?",
    "serve x --port x": r"--port x must be a whole number",
    "serve x --grace x": r"--grace x must be a number",
    "serve x --max 3": r"--max could be --max-tokens, .*; write it out",
    "serve x --host": r"--host lacks its value",
    "serve x --trust-proxy proxy": r"--trust-proxy proxy: 'proxy' is no address; write them as",
    "report": r"nothing to report on",
    "report --alone=3 x": r"--alone takes no value, but 3 was given",
    "export x": r"--format must be given",
    "import a": r"DST must be given",
    "compare --limit x a": r"--limit x must be a whole number",
    "explain": r"key must be given",
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_is_answered_alike(typed: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nanochat-pl", *typed.split()])
    assert main() == 2
    said = capsys.readouterr().err
    assert re.search(COMMANDS[typed], said.rstrip("\n")), said
    assert (said.startswith("error: "), said.count("\n")) == (True, 1)
    assert not THEIRS.search(said)
    assert "argument" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c\n", r"bad\.yaml, line 1, column \d+: this is no YAML"),
        ("# @package _global_\ndefaults:\n  - override /data: nope\n", r"data/nope, which a config file names"),
        ("# @package _global_\ndefaults:\n  - override /dta: hub\n", r"experiment/bad\.yaml: its list of defaults"),
        ("# @package _global_\ndepth: four\n", r"bad\.yaml sets depth, which takes a whole number"),
        (
            "# @package _global_\nstage:\n  num_stps: 4\n",
            r"sets stage\.num_stps, .*did you mean stage\.num_steps\?",
        ),
        ("# @package _global_\ndepht: 4\n", r"sets depht, but no setting .*did you mean depth"),
        ("- a\n- b\n", r"experiment/bad\.yaml: a config file is a mapping"),
        ("# @package _global_\nrun_name: ${nope}\n", r"run_name: it is made from another setting"),
    ],
)
def test_a_wrong_config_file_is_named(text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "configs" / "experiment" / "bad.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    line = refused(["--config-dir", "configs", "experiment=bad"], capsys)
    assert re.search(message, line), line
