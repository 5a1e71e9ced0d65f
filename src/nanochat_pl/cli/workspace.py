"""`nanochat-pl workspace`: the layout of a dashboard, in sections by the question that their curves answer.

The layout is plain data, written as YAML or JSON: any dashboard can be built from it, and it lists all logged metrics.
With `--push` it becomes a view of a W&B project, if the package wandb-workspaces is installed.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.optim.config import ROLES
from nanochat_pl.paths import write_atomically

__all__ = ["SECTIONS", "Curves", "Table", "layout", "main"]

STEP, TOKENS, FLOPS, TIME = "step", "tokens", "total_training_flops", "total_training_time"


@dataclass(frozen=True)
class Curves:
    """One panel of lines."""

    title: str
    metrics: Sequence[str] = ()
    """The names of the metrics that are drawn together."""
    pattern: str | None = None
    """A regular expression instead of names, where these depend on what was evaluated."""
    x: str = STEP
    log_x: bool = False


@dataclass(frozen=True)
class Table:
    """One panel with a logged table."""

    title: str
    table: str


SECTIONS: dict[str, list[Curves | Table]] = {
    "headline": [
        Curves("validation, bits per byte", ["val/bpb"]),
        Curves("CORE", ["core_metric"]),
        Curves("ChatCORE", ["chatcore_metric"]),
        Curves("reward", ["reward"]),
        Curves("right at the first try", ["pass@1", "pass@1_greedy"]),
    ],
    "learning": [
        Curves("training loss, nats a token", ["train/loss"]),
        Curves("training loss by tokens", ["train/loss"], x=TOKENS),
        Curves("validation loss, nats a token", ["val/loss"]),
        Curves("bits per byte by FLOPs", ["val/bpb"], x=FLOPS, log_x=True),
        Curves("bits per byte by seconds of training", ["val/bpb"], x=TIME),
        Curves("learning rate, multiple of the initial", ["train/lrm"]),
        Curves("passes over the data", ["epoch"]),
    ],
    "efficiency": [
        Curves("tokens a second", ["train/tok_per_sec"]),
        Curves("model FLOPs utilisation, %", ["train/mfu"]),
        Curves("seconds a step", ["train/dt"]),
        Curves("share of the time waiting for data", ["health/data_wait_frac"]),
        Curves("seconds of training", [TIME]),
    ],
    "health": [
        Curves("gradient norm before clipping", ["train/grad_norm"]),
        Curves("update over weight", [f"health/update_ratio_{role}" for role in ROLES]),
        Curves("largest logit over the softcap", ["health/logit_max_frac"]),
        Curves("learned scalars", pattern=r"^scalar/"),
        Curves("share of padding, and of what was cut off", ["health/padding_frac", "health/cut_frac"]),
        Curves("peak memory, GiB", ["health/peak_memory_gib"]),
    ],
    "evals": [
        Curves("CORE, bits per byte of the answer", ["core/CORE/answer_bpb"]),
        Curves("tasks, bits per byte of the answer", pattern=r"/answer_bpb$"),
        Curves("tasks, margin of the answer, bits per byte", pattern=r"/answer_margin$"),
        Curves("CORE tasks, accuracy", pattern=r"^core/.*/accuracy$"),
        Curves("chat tasks, accuracy", pattern=r"^chat/.*/(accuracy|pass@1)$"),
        Curves("ScienceQA, accuracy", pattern=r"^scienceqa/.*accuracy"),
        Table("ScienceQA, answers", "scienceqa/examples"),
        Table("chat tasks, answers", "chat/examples"),
    ],
    "RL": [
        Curves("reward", ["reward"]),
        Curves("reward, standard deviation", ["rl/reward_std"]),
        Curves("right in k tries", pattern=r"^pass@[0-9]+$"),
        Curves("tokens of question and answer, and of the answer", ["sequence_length", "rl/answer_tokens"]),
        Curves("share of groups without a signal, of answers cut off", ["rl/no_signal_frac", "rl/truncated_frac"]),
        Curves("entropy, nats a token", ["rl/entropy"]),
        Curves("share of tokens clipped", ["rl/clip_frac"]),
        Curves("divergence from the initial weights, nats a token", ["rl/kl"]),
        Curves("calculator calls an answer", ["rl/tool_calls", "rl/tool_errors"]),
        Table("answers", "samples"),
    ],
    "inference": [
        Curves("sampling in RL, tokens a second of one rank", ["rl/rollout_tok_per_sec"]),
        Curves("share of a step spent sampling", ["rl/sampling_frac"]),
        Curves("evaluations, questions a second", pattern=r"/examples_per_s$"),
        Curves("inference checks passed", pattern=r"^checks/.*/pass_rate$"),
        Curves("inference checks, seconds to the first token", pattern=r"^checks/.*/first_token_s$"),
        Curves("inference checks, tokens a second", pattern=r"^checks/.*/tokens_per_s$"),
    ],
}
"""Sections in the order shown; each panel draws what is logged under its names and stays empty for other stages."""


def main(arguments: list[str]) -> int:
    """Write or push the layout; return 0, or 2 if that cannot be done."""
    parser = Arguments(prog="nanochat-pl workspace", description="Write the layout of a dashboard, section by section.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="FILE.yaml or FILE.json (default: YAML, printed)")
    parser.add_argument("--push", metavar="ENTITY/PROJECT", help="save it as a view of this W&B project")
    parser.add_argument("--name", default="nanochat-pl", help="name of the view (default nanochat-pl)")
    try:
        options = parser.parse_args(arguments)
        if options.out is not None:
            write_atomically(options.out, _written(options.out.suffix))
            print(f"wrote {options.out}")
        if options.push is not None:
            print(f"saved {_push(options.push, options.name)}")
    except (ValueError, OSError) as error:
        return refuse(error)
    if options.out is None and options.push is None:
        sys.stdout.write(_written(".yaml"))
    return 0


def layout() -> dict[str, Any]:
    """Return the layout as plain data: sections, each a list of panels with what they show and over which x."""
    return {"sections": [{"name": name, "panels": [_plain(p) for p in panels]} for name, panels in SECTIONS.items()]}


def _plain(panel: Curves | Table) -> dict[str, Any]:
    if isinstance(panel, Table):
        return {"title": panel.title, "table": panel.table}
    shown = {"metrics": list(panel.metrics)} if panel.pattern is None else {"pattern": panel.pattern}
    return {"title": panel.title, **shown, "x": panel.x, "log_x": panel.log_x}


def _written(suffix: str) -> str:
    if suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"--out ends in '{suffix}'; give a file that ends in .yaml or .json")
    if suffix == ".json":
        return json.dumps(layout(), indent=2) + "\n"
    return OmegaConf.to_yaml(OmegaConf.create(layout()))


def _push(target: str, name: str) -> str:
    """Save the layout as a view of a W&B project; return its address."""
    entity, _, project = target.partition("/")
    if not entity or not project or "/" in project:
        raise ValueError(f"--push={target} is not <entity>/<project>, as in my-team/nanochat")
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            f"--push needs the package wandb-workspaces ({error}); pip install wandb-workspaces, or write the layout "
            "to a file with --out"
        ) from error

    def panel(shown: Curves | Table) -> Any:
        if isinstance(shown, Table):
            return reports.WeavePanelSummaryTable(table_name=shown.table)
        what = {"y": list(shown.metrics)} if shown.pattern is None else {"metric_regex": shown.pattern}
        return reports.LinePlot(title=shown.title, x=shown.x, log_x=shown.log_x or None, **what)

    sections = [
        workspaces.Section(name=title, panels=[panel(p) for p in panels], is_open=title == "headline")
        for title, panels in SECTIONS.items()
    ]
    view = workspaces.Workspace(name=name, entity=entity, project=project, sections=sections)
    try:
        view.save()
    except Exception as error:  # whatever its client raises: no account, no project, no network
        raise ValueError(
            f"W&B did not take the layout for {target} ({type(error).__name__}: {error}); check `wandb login` and that "
            "the project exists"
        ) from error
    return str(view.url)
