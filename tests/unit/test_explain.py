"""Help begins with examples, names every key with its sentence in one line, and says all of one key when asked."""

import re

import pytest

from nanochat_pl import __version__
from nanochat_pl.cli import evaluate as evaluate_command
from nanochat_pl.cli import explain as explain_command
from nanochat_pl.cli import main as installed_command
from nanochat_pl.cli import train as train_command
from nanochat_pl.cli.explain import explain, help_page
from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import compose_checked, config_dir
from nanochat_pl.config.settings import EXAMPLES, ROOTS, group_options, settings

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("script", ROOTS)
def test_every_key_has_a_sentence(script: str):
    bare = [key for key, setting in settings(ROOTS[script]).items() if not setting.sentence and setting.section is None]
    assert not bare, f"write a docstring below the field of {', '.join(bare)}"


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("script", ROOTS)
def test_help_gives_examples_then_groups_then_each_key_in_one_line(script: str, width: int):
    page = help_page(script, width)
    lines = page.splitlines()
    assert max(map(len, lines)) <= width
    places = [page.index(f"python {script}.py {arguments}") for arguments, _ in EXAMPLES[script]]
    assert len(places) == 3
    assert page.index("groups:") > max(places)
    for key, setting in settings(ROOTS[script]).items():
        if setting.section is None:
            leaf = key.rpartition(".")[2]
            [*rows] = [
                line
                for line in lines[lines.index(next(x for x in lines if x.startswith("keys"))) :]
                if re.match(rf"  {re.escape(leaf)}=\S* +\w", line)
            ]
            assert rows, f"{key} has no line with a sentence"


@pytest.mark.parametrize("script", ROOTS)
def test_the_examples_compose(script: str):
    for arguments, _ in EXAMPLES[script]:
        compose_checked(script, CommandLine([a.strip("'") for a in arguments.split()], False, config_dir()))


def test_help_of_one_key_says_its_type_default_sentence_and_who_sets_it(capsys: Capture):
    for ask in (
        lambda: train_command.main(["--help", "stage.num_steps"]),
        lambda: train_command.main(["stage.num_steps=3", "-h"]),
        lambda: evaluate_command.main(["--help", "stage.num_steps"]),
        lambda: explain_command.main(["stage.num_steps"]),
    ):
        assert ask() == 0
        said = capsys.readouterr().out
        assert "stage.num_steps=null" in said
        assert "takes a whole number, or null" in said
        assert settings(ROOTS["train"])["stage.num_steps"].sentence in said


def test_explaining_a_group_shows_each_option_with_the_comment_of_its_file():
    for group, options in group_options([config_dir()]).items():
        if options:
            assert all(f"  {option}" in explain(group) for option in options)
    assert "embedded data" in explain("experiment")


def test_values_that_config_files_set_are_found():
    assert re.search(r"set by experiment=run1000_d32: 32", explain("depth"))
    assert re.search(r"set by trainer=ddp: ddp", explain("trainer.strategy"))


def test_an_unknown_key_names_its_neighbours(capsys: Capture):
    assert explain_command.main(["num_steps"]) == 2
    assert "did you mean stage.num_steps?" in capsys.readouterr().err
    assert train_command.main(["--help", "optim.matrix_lrr"]) == 2
    assert "did you mean optim.matrix_lr" in capsys.readouterr().err


def test_the_version_is_this_project_s(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    for command in (train_command.main, evaluate_command.main):
        assert command(["--version"]) == 0
    monkeypatch.setattr("sys.argv", ["nanochat-pl", "--version"])
    assert installed_command.main() == 0
    assert capsys.readouterr().out == f"nanochat_pl {__version__}\n" * 3
