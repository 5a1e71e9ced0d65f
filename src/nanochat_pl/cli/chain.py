"""Run stages one after another: `chain: [tokenizer, base, sft_scienceqa, evaluate]` in an experiment.

Each stage is composed as its own config and runs in its own process and folder, `outputs/<stage>/<run_name>`, so that a
chain does exactly what the single commands would, which it prints. Overrides on the command line go to every stage,
`chain_overrides.<stage>.<key>=…` to one; a stage starts from the weights of the one before. A stage that finished
earlier from the same config and inputs is skipped; one whose inputs have changed since is done again; a failed one
stops the chain.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from nanochat_pl.cli.next_steps import config_flags, data_root_override, evaluation, listed, model_commands, program
from nanochat_pl.config.checks import (
    check_answer_length,
    check_group,
    check_measure,
    check_own,
    check_start,
    named_eval,
)
from nanochat_pl.config.command_line import OPEN_KEYS, CommandLine, ConfigError, in_hydra, quote_texts
from nanochat_pl.config.compose import Job, compose_checked, compose_jobs, config_dir, to_plain
from nanochat_pl.config.evaluations import EvalName
from nanochat_pl.config.inputs import start_weights
from nanochat_pl.config.provenance import changes, run_inputs
from nanochat_pl.config.run_folder import unfinished
from nanochat_pl.config.schema import DataSource, EvaluateConfig, TrainConfig
from nanochat_pl.config.settings import leaves
from nanochat_pl.config.stages import STAGES, StageName
from nanochat_pl.paths import read_record, run_dir
from nanochat_pl.tasks.tables import find_split
from nanochat_pl.training import signals
from nanochat_pl.training.claim import check_free

EVALUATE = "evaluate"


def run_chain(cfg: TrainConfig, overrides: Sequence[str], folder: Path | None = None) -> int:
    """Run every stage of `cfg.chain` and print the closing table; return the exit code of the first that failed.

    All stages are checked before the first begins. `folder` is the value of `--config-dir`.

    Raises:
        ConfigError: the config of a stage is wrong.
        FileNotFoundError: a stage lacks a file.
        ValueError: a stage's batch does not divide, its folder holds a run or is in use, or answers leave questions no
            room; or several processes were started to do the chain.
    """
    check_group(cfg)
    commands = checked_chain(cfg, overrides, folder)
    begin = time.perf_counter()
    for number, (stage, arguments) in enumerate(commands, 1):
        print(f"\n[{number}/{len(commands)}] {stage}: {typed_command(stage, arguments, folder)}", flush=True)
        changed = None if stage == EVALUATE or cfg.force else changed_inputs(stage, cfg, arguments, folder)
        if changed == []:
            print(
                "      finished before from the same config and inputs; skipped (force=true does it again)", flush=True
            )
            continue
        if changed:
            print(
                f"      finished before from the same config, but {' and '.join(changed)} changed since: done again",
                flush=True,
            )
            arguments = [*arguments, "resume=null", "force=true"]
        started = time.perf_counter()
        code = run_command(command_line(stage, arguments, folder))
        if code > 128:
            print(f"stage {stage} was stopped; to continue: the same command with resume=auto", file=sys.stderr)
            return code
        if code:
            print(f"error: stage {stage} failed with exit code {code}; the chain stops here", file=sys.stderr)
            return code
        if stage != EVALUATE and (state := unfinished(run_dir(stage, cfg.run_name, cfg.outputs))) is not None:
            print(
                f"error: stage {stage} is not finished ({state}), and the next would start from what it is now; the "
                "chain stops here; to continue: the same command with resume=auto",
                file=sys.stderr,
            )
            return 1
        print(f"      {stage} took {time.perf_counter() - started:.0f} s", flush=True)
    print(closing_table(cfg, time.perf_counter() - begin))
    return 0


def checked_chain(cfg: TrainConfig, overrides: Sequence[str], folder: Path | None) -> list[tuple[str, list[str]]]:
    """Return the commands of a chain, all of them checked.

    Raises:
        ConfigError, FileNotFoundError, ValueError: as `run_chain`.
    """
    commands = plan_chain(cfg, overrides, folder)
    trained: list[TrainConfig] = []
    for stage, arguments in commands:  # evaluations stand last
        if stage == EVALUATE:
            check_evaluation(arguments, trained, folder)
        else:
            config = check_training(cfg, stage, arguments, folder)
            trained += [] if stage == StageName.tokenizer else [config]
    return commands


def compose_stage(stage: str, arguments: Sequence[str], folder: Path | None) -> Job:
    """Compose and check the command line of one stage or evaluation of a chain."""
    name = "evaluate" if stage == EVALUATE else "train"
    [job] = compose_jobs(name, CommandLine(list(arguments), False, folder or config_dir()))
    return job


def check_training(cfg: TrainConfig, stage: str, arguments: Sequence[str], folder: Path | None) -> TrainConfig:
    """Check one stage before the first begins, except for what earlier stages still have to make; return its config.

    Raises:
        ConfigError, FileNotFoundError, ValueError: as `run_chain`.
    """
    place = run_dir(stage, cfg.run_name, cfg.outputs)
    check_free(place)
    job = compose_stage(stage, arguments, folder)
    config: TrainConfig = job.checked
    finished = not cfg.force and is_finished(job, place)
    if finished:  # it is skipped, or done again where its inputs have changed
        config = dataclasses.replace(config, resume=None, force=True)
    check_group(config)
    resume = check_own(config, place)
    first = next((s for s in cfg.chain if s not in (StageName.tokenizer, EVALUATE)), None)
    if finished or stage != first:
        return config
    if STAGES[stage].starts_from or config.init_from is not None or StageName.tokenizer not in cfg.chain:
        check_start(config, place, resume)
    if config.init_from is None and resume is None and STAGES[stage].starts_from:
        before = Path(start_weights(stage, cfg.run_name, None, cfg.outputs) or "")
        if (before / "summary.json").is_file() and (state := unfinished(before)) is not None:
            raise ValueError(
                f"stage {stage} would start from {before}, which is not finished ({state}); finish that first, or "
                f"start from it as it is: init_from={before}"
            )
    return config


def check_evaluation(arguments: Sequence[str], trained: Sequence[TrainConfig], folder: Path | None) -> None:
    """Check an evaluation of a chain against the stages whose models it will measure.

    Raises:
        FileNotFoundError: its questions are missing and would not be fetched.
        ValueError: its answers leave no room for a question.
    """
    cfg: EvaluateConfig = compose_stage(EVALUATE, arguments, folder).checked
    for one in trained:
        check_answer_length(cfg.eval.name, cfg.eval.max_new_tokens, one.stage.sequence_len)
    if not trained:
        return
    data = trained[-1].data
    name = named_eval(cfg.eval, trained[-1].stage.name)
    check_measure(name, cfg.eval, data.root)
    if name != EvalName.scienceqa:
        return
    if data.source == DataSource.local or (data.source == DataSource.hub and cfg.offline):
        place, fetch = Path(data.root or "") / data.scienceqa, data.source == DataSource.hub
        find_split(place, cfg.eval.split, repo=data.hub_scienceqa, fetch=fetch, offline=True)


def plan_chain(cfg: TrainConfig, overrides: Sequence[str], folder: Path | None = None) -> list[tuple[str, list[str]]]:
    """Return the checked arguments of the command of each stage and evaluation.

    `init_from` of the command line belongs to the first trained stage; each later one starts from an earlier one.

    Raises:
        ConfigError: an unknown stage, overrides for a stage that is not in the chain, or a wrong setting.
    """
    known = [*(str(name) for name in StageName), EVALUATE]
    for stage in cfg.chain:
        if stage not in known:
            raise ConfigError(f"chain names {stage}, which is none of {', '.join(known)}")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    typed = [o.key_or_group.split(".")[1] for o in parsed if o.key_or_group.startswith("chain_overrides.")]
    for stage in {*typed, *(set(cfg.chain_overrides) - {*known})}:  # an experiment may name stages left out this time
        if stage not in cfg.chain:
            raise ConfigError(f"chain_overrides.{stage} is for no stage of the chain ({', '.join(cfg.chain)})")
    keys = {o.input_line or "": o.key_or_group for o in parsed}
    common = [line for line, key in keys.items() if not key.startswith(("chain", "stage")) and key != "init_from"]
    start = [line for line, key in keys.items() if key == "init_from"]
    bad = next((o for o in parsed if o.key_or_group == "stage" or o.key_or_group.startswith("stage.")), None)
    if bad is not None:
        raise ConfigError(
            f"{bad.input_line}: a chain has several stages; write chain_overrides.<stage>.{bad.key_or_group}=…"
        )
    own = own_overrides(cfg, parsed, folder)
    commands = []
    trained: list[str] = []
    for stage in cfg.chain:
        if stage == EVALUATE:
            continue
        arguments = [f"stage={stage}", *common, "chain=[]"]
        if stage != StageName.tokenizer:
            before = next((s for s in reversed(trained) if s in STAGES[StageName(stage)].starts_from), None)
            place = in_hydra(str(run_dir(before, cfg.run_name, cfg.outputs))) if before is not None else ""
            arguments += start if before is None else [f"init_from={place}"]
            trained.append(stage)
        arguments = quote_texts([*arguments, *own.get(stage, [])])
        compose_stage(stage, arguments, folder)
        commands.append((stage, arguments))
    if EVALUATE in cfg.chain:
        if not trained:
            raise ConfigError(
                f"chain=[{','.join(cfg.chain)}] trains no model that could be evaluated; add a stage, or type python "
                "evaluate.py ckpt=<run folder>"
            )
        paths = in_hydra([str(run_dir(stage, cfg.run_name, cfg.outputs)) for stage in trained])
        common = [f"trainer.accelerator={cfg.trainer.accelerator}", f"offline={str(cfg.offline).lower()}"]
        common += [f"outputs={in_hydra(cfg.outputs)}"] * (cfg.outputs != "outputs")
        common += data_root_override(cfg, run_dir(trained[-1], cfg.run_name, cfg.outputs))
        for name in ("scienceqa", "recall", "checks") if cfg.data.source == DataSource.microworld else ("scienceqa",):
            arguments = quote_texts([f"ckpt={paths}", f"eval={name}", *common, *own.get(EVALUATE, [])])
            compose_stage(EVALUATE, arguments, folder)
            commands.append((EVALUATE, arguments))
    return commands


def own_overrides(cfg: TrainConfig, parsed: Sequence[Override], folder: Path | None) -> dict[str, list[str]]:
    """Return the overrides of each single stage: those of the config files, then those that were typed.

    The typed ones are not taken from the composed `cfg.chain_overrides`: a mapping cannot hold both the choice of a
    group (`mixture=x`) and keys below it (`mixture.tasks.a=…`), so that one of them would be lost.
    """
    typed = [o for o in parsed if o.get_key_element().lstrip("+").split(".")[0] == "chain_overrides"]
    typed = [o for o in typed if not o.is_delete()]
    if not typed:
        return {stage: flat(tree) for stage, tree in cfg.chain_overrides.items()}
    rest = [o.input_line or "" for o in parsed if o not in typed]
    [written] = compose_checked("train", CommandLine(rest, False, folder or config_dir()))
    lines = {stage: {key_of(line): line for line in flat(tree)} for stage, tree in written.chain_overrides.items()}
    for override in typed:
        key, value = override.key_or_group, override.value()
        for part in reversed(key.split(".")[1:] if isinstance(value, Mapping) else []):
            value = {part: value}
        if isinstance(value, Mapping):
            added = [(stage, line) for stage, tree in value.items() for line in flat(tree)]
        else:
            _, stage, name = key.split(".", 2)
            added = [(stage, f"{new_key(name)}{name}={(override.input_line or '').partition('=')[2]}")]
        for stage, line in added:
            of_stage = lines.setdefault(stage, {})
            of_stage.pop(key_of(line), None)  # the last of one key holds, and stands last
            of_stage[key_of(line)] = line
    return {stage: [*of_stage.values()] for stage, of_stage in lines.items()}


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def new_key(key: str) -> str:
    """Return the prefix with which an override may add a key, where its section takes any."""
    return "++" if key.startswith(tuple(f"{name}." for name in OPEN_KEYS)) else ""


def flat(tree: Mapping[str, Any]) -> list[str]:
    """Return nested overrides as a list of Hydra's overrides; tasks and the like may be new keys."""
    overrides = []
    for key in leaves(tree):
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        overrides.append(f"{new_key(key)}{key}={in_hydra(value)}")
    return overrides


def command_line(stage: str, arguments: Sequence[str], folder: Path | None = None) -> list[str]:
    """Return the command that runs one stage with this Python and this package."""
    module = "nanochat_pl.cli.evaluate" if stage == EVALUATE else "nanochat_pl.cli.train"
    return [sys.executable, "-m", module, *config_flags(folder), *arguments]


def run_command(command: Sequence[str]) -> int:
    """Run one stage to its end; return its exit code as a shell does, 128 + n after signal n.

    Every signal is passed on to the stage, which is waited for, so that it can save. It has a process group of its own:
    from a terminal, Ctrl-C would otherwise reach it twice, and a second signal ends it without saving.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        early.append(number) if process is None else process.send_signal(number)

    before = signals.install(pass_on)
    try:
        process = subprocess.Popen(command, env=environment(), process_group=0)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        signals.install(None, before)
    return code if code >= 0 else 128 - code


def typed_command(stage: str, arguments: Sequence[str], folder: Path | None = None) -> str:
    """Return the command as one would type it."""
    script = "evaluate.py" if stage == EVALUATE else "train.py"
    return shlex.join(["python", script, *config_flags(folder), *arguments])


def environment() -> dict[str, str]:
    """Return the environment in which the stages run the package of this checkout."""
    source = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])}


def changed_inputs(stage: str, cfg: TrainConfig, arguments: Sequence[str], folder: Path | None) -> list[str] | None:
    """Compare what a stage was made from with what is there now.

    Returns:
        None if its run folder holds no finished run of the same config. Else readable names of what changed since: none
        if the run would come out the same, or if it does not record what it was made from.
    """
    place, job = run_dir(stage, cfg.run_name, cfg.outputs), compose_stage(stage, arguments, folder)
    if not is_finished(job, place):
        return None
    before = (read_record(place / "summary.json") or {}).get("inputs")
    try:
        return changes(before, run_inputs(job.checked)) if before else []
    except (ValueError, OSError) as error:
        return [f"something it was made from ({error})"]


def is_finished(job: Job, place: Path) -> bool:
    """Return whether a run folder holds a finished run of the same config."""
    if not (place / "config.yaml").is_file() or unfinished(place) is not None:
        return False
    now, then = to_plain(job.config), OmegaConf.to_container(OmegaConf.load(place / "config.yaml"))
    assert isinstance(then, dict)
    for key in ("resume", "force"):  # how it was started, not what it trained
        now.pop(key, None), then.pop(key, None)
    return now == then


def closing_table(cfg: TrainConfig, seconds: float) -> str:
    """Summarize a finished chain: the table of its stages, some answers, where the files are, and what to do next."""
    from nanochat_pl.report.closing import stages_summary

    stages = [stage for stage in cfg.chain if stage not in (EVALUATE, StageName.tokenizer)]
    if not stages:
        return f"files: {run_dir(StageName.tokenizer, cfg.run_name, cfg.outputs)}"
    folders = {str(stage): run_dir(stage, cfg.run_name, cfg.outputs) for stage in stages}
    last, folder = stages[-1], folders[str(stages[-1])]
    title = f"{cfg.run_name}: {' -> '.join(cfg.chain)} in {seconds:.0f} s"
    files = "files: " + ", ".join(map(str, folders.values()))
    commands = model_commands(last, folder)
    if EVALUATE not in cfg.chain:
        commands.insert(0, [*program("evaluate"), *evaluation(cfg, last, folder)])
    return "\n".join([stages_summary(title, folders), files, listed([shlex.join(command) for command in commands])])
