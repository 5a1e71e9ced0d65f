"""What is typed for a setting that is text is what the setting becomes, whatever Hydra's grammar would make of it."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from nanochat_pl.cli.chain import in_hydra, plan_chain
from nanochat_pl.config.command_line import (
    PATH_KEYS,
    CommandLine,
    ConfigError,
    options_first,
    quote,
    quote_texts,
    text_keys,
)
from nanochat_pl.config.compose import ROOTS, check, compose_checked, compose_jobs, config_dir
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.config.sweep import swept_runs
from nanochat_pl.paths import MAX_NAME_BYTES, run_dir

NAMES = [
    *(
        "5e10123",
        "1e-3",
        "1E5",
        "007",
        "0x1f",
        "1_000",
        "inf",
        "nan",
        "true",
        "False",
        "yes",
        "null",
        "None",
        "~",
        "none",
    ),
    *("名前", "größe", "exp#1", "it's", "x'", 'say "hi"', "a b", "a=b", "a(b)", "{a}", "[a]", "a:b", "a;b", "$x", "%s"),
    *("a@b", "#", "!", "-x", "a&b", "a|b", "a*", "a?", "`x`", "a\\", "a\\'b", "é\u0301", "🙂", "a/b", "/x/it's (1)=2"),
]


def read(argument: str) -> object:
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optim.role_betas.smear=0.5", "optim.role_betas.smear=0.5: smear takes a list of numbers, as [a,b]"),
        ("optim.role_betas={smear:0.5}", "optim.role_betas.smear=0.5: smear takes a list of numbers, as [a,b]"),
        ("optim.role_weight_decay.smear=x", "optim.role_weight_decay.smear=x: smear takes a number"),
        ("optim.role_weight_decay.smears=1", "optim.role_weight_decay names smears; the roles are matrix, "),
    ],
)
def test_a_wrong_value_of_a_role_is_named_as_it_was_typed(typed: str, said: str):
    with pytest.raises(ConfigError) as error:
        compose_jobs("train", CommandLine.parse(quote_texts([typed])))
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("optim", ["classic", "modern"])
@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("typed", ["optim.role_weight_decay.smear=0.1", "optim.role_weight_decay={smear:0.1}"])
def test_a_role_is_set_with_and_without_a_plus(optim: str, plus: str, typed: str):
    (job,) = compose_jobs("train", CommandLine.parse(quote_texts([f"optim={optim}", f"{plus}{typed}"])))
    assert job.checked.optim.role_weight_decay["smear"] == 0.1
    assert len(job.checked.optim.role_weight_decay) == (1 if optim == "classic" else 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "key", ["run_name", "data.text", "+eval.texts.x", "++run_name", "chain_overrides.sft.data.text"]
)
def test_a_text_is_what_was_typed(key: str, name: str):
    (argument,) = quote_texts([f"{key}={name}"])
    assert read(argument) == (os.path.expanduser(name) if "eval.texts" in key else name)
    assert quote_texts([argument]) == [argument], "commands pass arguments on, and a second time nothing changes"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "null"])
def test_what_may_be_null_takes_every_other_text(name: str):
    for key in ("init_from", "ckpt", "resume", "data.root"):
        assert read(*quote_texts([f"{key}={name}"])) == os.path.expanduser(name) or name == "[a]"
    assert read(*quote_texts(["init_from=null"])) is None


@given(st.text(st.characters(exclude_characters=",\0", exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_any_text_survives_quoting(text: str):
    assert read(f"key={quote(text)}") == text
    assert read(f"key={in_hydra([text, 'b'])}") == [text, "b"]
    if "${" not in text and "\\" not in text and not (text[0] == text[-1] and text[0] in "'\"" and len(text) > 1):
        assert read(*quote_texts([f"run_name={text}"])) == text


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("ckpt=[/a=1,it's, 1e3]", ["/a=1", "it's", "1e3"]),
        ("eval.tasks=[1e3,true,'a,b']", ["1e3", "true", "a,b"]),
        ("plugins.allow=[]", []),
        ('stage.sample_prompts=["Hi, you",Gold is]', ["Hi, you", "Gold is"]),
    ],
)
def test_lists_of_texts_are_lists_of_what_was_typed(argument: str, values: list[str]):
    assert read(*quote_texts([argument])) == values


def test_what_was_quoted_or_refers_to_a_setting_stays():
    kept = ["run_name='a,b'", 'run_name="x y"', "run_name=d${depth}", "init_from=null", "depth=1e3", "stage=sft", "-m"]
    kept += ["resume=auto", "run_name=d4", "trainer.devices=2", "~data", "hydra.run.dir=x"]
    assert quote_texts(kept) == kept


def test_several_values_of_a_sweep_are_texts_each():
    arguments = quote_texts(["-m", "run_name=1e-3,it's,true", "seed=1,2", "ckpt=[a,1e3],c", "data.text=choice(a,b)"])
    assert arguments == [
        "-m",
        "run_name='1e-3','it\\'s','true'",
        "seed=1,2",
        "ckpt=[a,'1e3'],c",
        "data.text=choice(a,b)",
    ]
    parsed = OverridesParser.create().parse_overrides(arguments[1:2])
    assert [read(*run.overrides) for run in swept_runs(parsed, [], {})] == ["1e-3", "it's", "true"]


def test_one_name_with_commas_is_refused_with_what_to_type():
    line = CommandLine.parse(quote_texts(["run_name=a,b"]))
    with pytest.raises(ConfigError, match=r"need -m \(one run each\) or \"run_name='a,b'\" for one with commas in it"):
        compose_checked("train", line)
    (cfg,) = compose_checked("train", CommandLine.parse(quote_texts(["run_name='a,b'"])))
    assert cfg.run_name == "a,b"


@pytest.mark.parametrize("name", ["5e10123", "true", "名前", "exp#1", "it's", "a=b"])
def test_a_run_of_any_name_is_composed_and_has_its_folder(name: str):
    arguments = quote_texts([f"run_name={name}", "hydra.verbose=false"])
    (cfg,) = compose_checked("train", CommandLine.parse(arguments))
    config = check(cfg, ROOTS["train"])
    assert config.run_name == name
    assert run_dir(config.stage.name, config.run_name, config.outputs) == Path("outputs/base") / name


def test_a_chain_hands_names_on_as_they_are():
    arguments = quote_texts(["chain=[base,sft,evaluate]", "run_name=it's 1e3", "outputs=/x/a, b"])
    arguments = [argument.replace("outputs=/x/a, b", "outputs='/x/a, b'") for argument in arguments]
    (cfg,) = compose_checked("train", CommandLine.parse(arguments))
    commands = plan_chain(check(cfg, ROOTS["train"]), arguments)
    values = [{a.partition("=")[0]: a for a in arguments} for _, arguments in commands]
    assert [read(v["run_name"]) for v in values[:2]] == ["it's 1e3"] * 2
    assert read(values[1]["init_from"]) == "/x/a, b/base/it's 1e3"
    assert read(values[2]["ckpt"]) == ["/x/a, b/base/it's 1e3", "/x/a, b/sft/it's 1e3"]
    assert read(values[2]["outputs"]) == "/x/a, b"


def test_the_home_folder_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me (1)")
    assert {key for key in PATH_KEYS if key not in text_keys()} == set()
    for key in PATH_KEYS:
        assert read(*quote_texts([f"{key}=~/x"])) == "/home/me (1)/x"
        assert read(*quote_texts([f"{key}=~"])) == "/home/me (1)"
    assert read(*quote_texts(["ckpt=[~/a,b~]"])) == ["/home/me (1)/a", "b~"]
    assert read(*quote_texts(["run_name=~"])) == "~", "a name is no path"


def test_no_folder_is_called_like_the_sign_of_home():
    for argument in ("outputs='~/x'", "data.root='~nobody-at-all'"):
        with pytest.raises(ConfigError, match=r"the ~ stands for no home folder here; write the whole path"):
            compose_checked("train", CommandLine.parse(quote_texts([argument, "run_name=x"])))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b", "without / or"),
        ("a\\b", "without / or"),
        ("..", "plain folder name"),
        ("", "plain folder name"),
        ("\0", "must be printable"),
        ("a\nb", "must be printable"),
        ("\udcff", "must be printable"),
        (" a", "without spaces at its ends"),
        ("~", "or ~ at its beginning"),
        ("名" * 70, f"has 210 bytes, and {MAX_NAME_BYTES} is the most"),
    ],
)
def test_a_name_that_makes_no_good_folder_is_refused_in_one_line(name: str, reason: str):
    with pytest.raises(ValueError, match=reason) as error:
        run_dir("base", name)
    assert "set a" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_a_sweep_checks_names_as_single_runs_do(name: str):
    from nanochat_pl.config.checks import preflight

    cfg = check(compose_checked("train", CommandLine([f"run_name='{name}'"], True, config_dir()))[0], TrainConfig)
    with pytest.raises(ValueError, match="must be a plain folder name"):
        preflight(cfg, Path("multirun/run"))


def test_a_file_in_the_place_of_a_task_is_a_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    for key in ("+mixture.tasks.pirate", "mixture.val_tasks.pirate", "+mixture.tasks.pirate.path"):
        assert read(*quote_texts([f"{key}=~/it's=1.jsonl"])) == "/home/me/it's=1.jsonl"
    task = "+mixture.tasks.pirate={_target_: nanochat_pl.tasks.jsonl.JSONL, path: a.jsonl}"
    assert quote_texts([task, "mixture.tasks.mmlu=null"]) == [task, "mixture.tasks.mmlu=null"]


def test_paths_of_the_other_commands_know_the_home_folder_too(monkeypatch: pytest.MonkeyPatch):
    from nanochat_pl.cli.arguments import Arguments

    monkeypatch.setenv("HOME", "/home/me")
    parser = Arguments(prog="x")
    parser.add_argument("--out", type=Path)
    assert parser.parse_args(["--out=~/exports"]).out == Path("/home/me/exports")
    assert parser.parse_args(["--out", "a~/b"]).out == Path("a~/b")
    assert parser.parse_args(["--out=~nobody-at-all/x"]).out == Path("~nobody-at-all/x")
    assert parser.parse_args([]).out is None


@pytest.mark.parametrize(
    ("written", "read_as"), [("1e-3", "0.001"), ("5e10123", "inf"), ("true", "True"), ("1_000", "1000"), ("0x10", "16")]
)
def test_a_text_that_a_config_file_spells_as_a_number_is_refused_with_its_quotes(
    tmp_path: Path, written: str, read_as: str
):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\ndepth: 2\nrun_name: {written}\n")
    line = CommandLine(["experiment=mine"], False, tmp_path)
    with pytest.raises(ConfigError) as refused:
        compose_checked("train", line)
    assert (
        f"{file}, line 3: YAML reads run_name: {written} as {read_as}; write run_name: '{written}'"
        in f"{refused.value}"
    )
    file.write_text(f"# @package _global_\nrun_name: '{written}'\noptim:\n  matrix_lr: 1e-3\n")
    assert compose_checked("train", line)[0].run_name == written


def test_a_number_that_is_spelt_as_it_is_read_is_a_name_in_a_config_file(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("source: microworld\ntext: 2026\n")
    cfg = compose_checked("train", CommandLine(["data=mine"], False, tmp_path))[0]
    assert cfg.data.text == "2026"
    (tmp_path / "data" / "mine.yaml").write_text("source: microworld\ntext: 1e5\n")
    with pytest.raises(ConfigError, match=r"line 2: YAML reads text: 1e5 as 100000\.0"):
        compose_checked("train", CommandLine(["data=mine"], False, tmp_path))


def test_of_a_setting_given_twice_the_last_counts():
    typed = ["stage=base", "depth=4", "run_name=a", "stage=sft_scienceqa", "depth=2", "run_name=b"]
    (cfg,) = compose_checked("train", CommandLine([*typed, "data=microworld"], False, config_dir()))
    assert (cfg.stage.name, cfg.depth, cfg.run_name) == ("sft_scienceqa", 2, "b")


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("a=1 -m b=2", "-m a=1 b=2"),
        ("a=1 --config-dir /tmp b=2 -m", "--config-dir /tmp -m a=1 b=2"),
        ("~a --cfg job +b=2 -p x c=3", "--cfg job -p x ~a +b=2 c=3"),
        ("a=1 b=2", "a=1 b=2"),
        ("a=1 --config-dir", "a=1 --config-dir"),  # the parser says what is wrong
    ],
)
def test_options_may_stand_anywhere(typed: str, first: str):
    assert options_first(typed.split()) == first.split()
