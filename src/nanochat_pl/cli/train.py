"""`python train.py …`: check the command line, then train the stage, the sweep or the chain that it asks for.

Everything a user can get wrong is reported as one `error:` line before torch is imported, where that is possible.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat_pl.training.signals import Stopped, guarded, loading, say

with loading():  # this takes a while, and Ctrl-C may come meanwhile
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from nanochat_pl.cli.arguments import in_words, refuse, share_cores
    from nanochat_pl.cli.explain import asked_for_help
    from nanochat_pl.cli.next_steps import config_flags, listed, next_steps
    from nanochat_pl.config import schema
    from nanochat_pl.config.checks import preflight
    from nanochat_pl.config.command_line import CommandLine, ConfigError, about_hydra, options_first, quote_texts
    from nanochat_pl.config.compose import check, compose_jobs, config_dir, to_plain
    from nanochat_pl.config.processes import is_first_process
    from nanochat_pl.config.run_folder import forget_run
    from nanochat_pl.config.stages import StageName
    from nanochat_pl.eval.metrics import METRICS
    from nanochat_pl.paths import WriteError, worded
    from nanochat_pl.training.claim import check_free


def main(argv: list[str] | None = None) -> int:
    """Run `train.py` and return its exit code: 0, 1 = failed, 2 = bad command line, 128+n = stopped by signal n."""
    return guarded(lambda: train(sys.argv[1:] if argv is None else argv))


def train(argv: list[str]) -> int:
    """Check a command line, then train what it asks for; return the exit code as `main` does."""
    share_cores()
    arguments = quote_texts(argv)
    if (code := asked_for_help("train", arguments)) is not None:
        return code
    if not about_hydra(arguments):
        arguments = options_first(arguments)
    sys.argv[1:] = arguments
    schema.register()
    started_by_launcher = "LOCAL_RANK" in os.environ  # torchrun, or Lightning's own second process
    if "TORCHELASTIC_RUN_ID" in os.environ and any(
        a in ("-m", "--multirun") or a.startswith("sweep=") for a in arguments
    ):
        return fail(ConfigError("a sweep starts its runs itself: python train.py with trainer.devices=, not torchrun"))
    if not started_by_launcher and not about_hydra(arguments):
        try:
            logging.getLogger("nanochat_pl").setLevel(logging.WARNING)  # the run itself logs its choices
            line = CommandLine.parse(arguments)
            jobs = compose_jobs("train", line)
            sweep = jobs[0].sweep
            if sweep is not None and any(each.config.chain for each in jobs):
                raise ConfigError("a chain runs one stage after another and cannot be swept; leave out -m or chain=")
            if line.shows_config:
                own = [] if sweep is None else jobs[0].run.overrides
                sys.argv[1:] = [a for a in arguments if sweep is None or a not in line.overrides] + own
                return run_hydra(job, "train")
            if jobs[0].config.chain:
                from nanochat_pl.cli.chain import run_chain

                return run_chain(jobs[0].checked, line.overrides, line.config_dir)
            if sweep is not None:
                from nanochat_pl.cli.sweep import run_sweep

                return run_sweep(jobs, line.config_dir)
            if is_first_process():
                check_free(jobs[0].folder)
            preflight(jobs[0].checked, jobs[0].folder)
        except (ValueError, OSError) as error:
            return fail(error)
    return run_hydra(job, "train")


def run_hydra(task: Any, name: str) -> int:
    """Let Hydra run the jobs; turn what a job raises into an exit code."""
    outcome: list[int] = []

    def catch(cfg: DictConfig) -> Any:
        if outcome and outcome[-1] > 128:  # a signal stops the whole sweep, not one job of it
            sys.exit(outcome[-1])
        failure = Path(HydraConfig.get().runtime.output_dir) / "error.txt"
        failure.unlink(missing_ok=True)  # it is of an earlier session
        try:
            outcome.append(task(cfg))
        except Stopped as stopped:
            say(str(stopped))
            outcome.append(stopped.exit_code)
        except (ValueError, OSError) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                failure.write_text(f"{in_words(error)}\n")
            outcome.append(fail(error))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            remedy = "lower stage.device_batch (or eval.batch_size), then resume=auto"
            outcome.append(fail(MemoryError(f"{error}; {remedy}")))
        return outcome[-1]

    with full_errors():  # else Hydra prints a traceback of its own if it cannot make the folder of a job
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir().resolve()), config_name=name)(catch)()
        except OSError as error:
            message = worded(error, error.filename or "the folder of the run")
            return fail(WriteError(message) if message else error)
    return max(outcome, default=0)


@contextlib.contextmanager
def full_errors() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them and ending the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def job(cfg: DictConfig) -> int:
    """Train one job in its own folder."""
    is_auto = cfg.stage.total_batch_tokens == "auto"
    config = check(cfg, schema.TrainConfig)
    if is_auto and is_first_process() and config.stage.name != StageName.tokenizer:
        print(f"stage.total_batch_tokens=auto is {config.stage.total_batch_tokens:,} tokens a step")
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    arguments = sys.argv.copy()
    try:
        from nanochat_pl.training.run import run

        result = run(config, to_plain(cfg), folder, arguments)
    except BaseException:
        if is_first_process():
            forget_run(folder)
        raise
    if is_first_process():
        print_next_steps(config, folder, result, arguments[1:])
    number = result.get("signal")
    started_by_lightning = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if started_by_lightning and not is_first_process():
        return 0  # the first process returns the code, and would be killed if one of the others failed
    return 128 + number if number else 0


def print_next_steps(cfg: schema.TrainConfig, folder: Path, result: dict[str, Any], arguments: list[str]) -> None:
    """Print where the files are and what to type next, which the chain itself prints for its stages."""
    if result["stage"] == "tokenizer":
        print(f"done: {folder}")
    elif result["status"] != "finished":
        number = result.get("signal")
        why = signal.Signals(number).name if number else f"trainer.stop_after_steps={cfg.trainer.stop_after_steps}"
        print(
            f"stopped at step {result['step']} of {result['num_steps']} by {why}; "
            "to continue: the same command with resume=auto"
        )
        return
    else:
        measured = [name for name, known in reversed(METRICS.items()) if known.chooses_best]
        found = [name for name in measured if result.get(name) is not None]
        figures = [f"loss {result['train/loss']:.4f}"] if result.get("train/loss") is not None else []
        print(f"done: {folder}, step {result['step']}, {', '.join(figures + [f'{k} {result[k]:.4f}' for k in found])}")
    if "chain=[]" in arguments:  # who started this says itself what comes next
        return
    flags = config_flags(CommandLine.parse(arguments).config_dir)
    if commands := next_steps(cfg, folder, flags):
        print(listed(commands))


def fail(error: BaseException) -> int:
    """Report an error that a user can correct; return 2 if it is in the config, else 1."""
    return refuse(error, 2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    sys.exit(main())
