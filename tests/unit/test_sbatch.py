"""`nanochat-pl sbatch`: what a batch file holds, and what is refused before it waits in the queue."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nanochat_pl.cli import sbatch

RUN = ["stage=tokenizer", "tokenizer.vocab_size=512", "run_name=tiny"]
CPU = ["trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a config folder without settings of a cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sbatch, "SETTINGS", "local/none.yaml")
    return tmp_path


def written(*arguments: str) -> tuple[dict[str, str], list[str], str]:
    """Return the settings of a batch file, the words of its command, and all of it."""
    assert sbatch.main([*arguments, "--out", "job.sbatch"]) == 0
    text = Path("job.sbatch").read_text()
    assert subprocess.run(["bash", "-n", "job.sbatch"]).returncode == 0
    options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    settings = {key: value for key, _, value in (option.partition("=") for option in options)}
    [command] = [line for line in text.splitlines() if line.startswith("srun ")]
    return settings, shlex.split(command), text


def test_a_run_on_one_node_is_one_process_that_has_all_of_it(folder: Path):
    settings, command, text = written(
        *RUN,
        "trainer.devices=2",
        "--time",
        "8:00:00",
        "--account",
        "a b",
        "--mail",
        "me@here",
        "--setup",
        "module load x",
    )
    assert settings | {
        "job-name": "tokenizer-tiny", "account": "'a b'", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "8",
        "gpus-per-node": "2", "time": "8:00:00", "mail-user": "me@here", "mail-type": "BEGIN,END,FAIL",
        "open-mode": "append", "signal": "USR1@120", "requeue": "",
    } == settings  # fmt: skip
    assert (
        command[1] == "--cpus-per-task=8" and command[-5:] == ["train", *RUN, "trainer.devices=2", "resume=auto"][-5:]
    )
    assert (
        text.index(f"cd {folder}") < text.index("module load x") < text.index("srun ") and "partition" not in settings
    )


def test_a_run_on_several_nodes_has_a_process_for_each_device():
    base = ["stage=base", "trainer=ddp", "trainer.devices=2", "trainer.num_nodes=3", "stage.total_batch_tokens=49152"]
    settings, command, _ = written(*base, "--cpus", "16", "--lead", "300")
    assert (settings["nodes"], settings["ntasks-per-node"], settings["cpus-per-task"]) == ("3", "2", "8")
    assert settings["signal"] == "USR1@300" and command[1] == "--cpus-per-task=8"


def test_no_gpus_are_asked_for_where_the_run_uses_none():
    assert (
        "gpus-per-node" not in written(*RUN, *CPU)[0] and written(*RUN, *CPU, "--gpus", "3")[0]["gpus-per-node"] == "3"
    )


def test_chains_and_sweeps_go_on_when_they_are_queued_again():
    settings, command, _ = written("experiment=quickstart", "run_name=it's")
    assert settings["job-name"] == "chain-it_s" and command[-3:] == [
        "experiment=quickstart",
        "run_name='it\\'s'",
        "resume=auto",
    ]
    settings, command, _ = written("-m", "seed=1,2", "hydra.sweep.dir=multirun/seeds")
    assert settings["job-name"] == "seeds" and command[-4:] == [
        "-m",
        "seed=1,2",
        "hydra.sweep.dir=multirun/seeds",
        "resume=auto",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["depht=3"], "did you mean depth?"),
        (["force=true"], "force=true would throw the run away"),
        (["stage=base", "init_from=nowhere"], "nowhere"),
        (["-m", "seed=1,2"], r"needs its folder: hydra\.sweep\.dir="),
        (["experiment=quickstart", "trainer.num_nodes=2"], "a sweep or a chain has one node"),
        (["stage=base", "stage.total_batch_tokens=1000"], "not a multiple"),
        ([*RUN, "--time", "8h"], "8h is no time"),
        ([*RUN, "--cpus", "0"], "must be a whole number"),
        ([*RUN, "--acount", "x"], "did you mean --account"),
        (["stage=base", "trainer.devices=2", "trainer.num_nodes=2", "stage.total_batch_tokens=32768", "--cpus", "3"],
         "cannot be shared by 2"),
        (["--cfg", "job"], "--cfg: there is no such option"),
    ],
)  # fmt: skip
def test_what_would_fail_is_refused_before_it_is_queued(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert sbatch.main(arguments) == 2
    assert re.search(said, capsys.readouterr().err) and not [*folder.iterdir()]


def test_options_that_are_always_the_same_stand_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "slurm.yaml"
    monkeypatch.setattr(sbatch, "SETTINGS", str(file))  # an absolute path stays as it is
    file.write_text("account: physics\npartition: long\nsetup: [module load x, module load y]\n")
    settings, _, text = written(*RUN, "--partition", "short")
    assert (settings["account"], settings["partition"]) == ("physics", "short") and "load x\nmodule load y" in text


@pytest.mark.parametrize(
    ("content", "said"), [("acount: x", "has acount; it may have account"), ("[1", "is no YAML"), ("- x", "no mapping")]
)
def test_a_file_of_other_things_is_refused(
    content: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (folder / "slurm.yaml").write_text(content)
    monkeypatch.setattr(sbatch, "SETTINGS", str(folder / "slurm.yaml"))
    assert sbatch.main(RUN) == 2 and said in capsys.readouterr().err


def test_submitting_where_there_is_no_slurm_keeps_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert sbatch.main([*RUN, "--submit"]) == 1
    assert "there is no sbatch" in capsys.readouterr().err and Path("logs/tokenizer-tiny.sbatch").is_file()
