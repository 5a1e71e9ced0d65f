"""Write the model card, for people who have only the files of a model.

It says what the model is, what it was trained on and how, what it can do (each figure with its interval and with what
is reached without a model), and what must not be expected of it. What is not known is left out, so the card of a model
that another program trained is shorter. The same run always gives the same card.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from nanochat_pl.config.stages import STAGES, StageName
from nanochat_pl.report.blocks import Block, Figure, Heading, Text, TextTable, render_markdown
from nanochat_pl.report.read import RL_SETTINGS, SETTINGS, EvaluationResult, Run, last_value, setting, settings_shown
from nanochat_pl.report.scores import evaluation_blocks

__all__ = ["evaluation_document", "model_card", "results_of"]

_NOT_SHOWN = (
    "data.source", "data.root", "trainer.devices", "trainer.num_nodes", "stage.device_batch", "rl.kl_coef",
)  # fmt: skip
_SIZES = {
    "n_layer": "layers", "n_embd": "channels", "n_head": "query heads", "n_kv_head": "key/value heads",
    "sequence_len": "context, tokens", "vocab_size": "vocabulary, ids",
}  # fmt: skip
_SHAPE = _SIZES | {"softcap": "logits capped at", "rope_base": "rotary base", "rope_table_dtype": "rotary tables"}
_FEW = 200
"""The card points out that a figure over fewer questions is uncertain."""


def results_of(run: Run, checkpoint: str, step: int) -> tuple[EvaluationResult, ...]:
    """Return the evaluations of the weights in the file `checkpoint` of a run, or in another file of the same step.

    Results of the same file from before it was overwritten, at another step, are left out.
    """
    chosen: dict[str, EvaluationResult] = {}
    for result in run.results:
        own = result.checkpoint_name == checkpoint
        if result.step == step or (own and result.step is None):
            chosen = chosen | {result.name: result} if own else {result.name: result} | chosen
    return tuple(chosen[name] for name in sorted(chosen))


def evaluation_document(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Return all figures of evaluations as plain data, without the answers."""
    return {
        "evaluations": [
            {
                "name": result.name,
                "checkpoint": result.checkpoint_name,
                "step": result.step,
                "metrics": [asdict(row) for row in result.rows],
            }
            for result in results
        ]
    }


def model_card(
    *,
    name: str,
    stage: str,
    step: int,
    model: Mapping[str, Any],
    num_parameters: int,
    run_config: Mapping[str, Any],
    run: Run | None,
    notes: Sequence[str],
    opening: str,
    made_from: str = "lightning",
    header: Mapping[str, Any] | None = None,
) -> str:
    """Return the card as Markdown.

    Args:
        stage: The stage that trained it, or `unknown`.
        step: Optimizer updates within that stage.
        model: Fields of its `GPTConfig`.
        run_config: Resolved config of the run; empty where unknown.
        run: The contents of its folder, with the results of these weights only; None where there is no folder.
        notes: What this format changed, one sentence each.
        opening: How to open the files; Markdown, used as it is.
        made_from: Format of the files that the model came from.
        header: Metadata that Hugging Face's pages read at the top of a card.
    """
    blocks: list[Block] = [Heading(1, name), *_what(stage, step, model, num_parameters, run, made_from)]
    blocks += [Heading(2, "Data"), *_data(stage, run_config)]
    blocks += [Heading(2, "Settings"), *_settings(stage, run_config, run)]
    blocks += [Heading(2, "Results"), *_results(run)]
    blocks += [Heading(2, "Limits"), *_limits(stage, model, num_parameters, run_config, run)]
    if notes:
        blocks += [Heading(2, "What these files changed"), *(Text(note) for note in notes)]
    text = render_markdown(blocks)
    return f"{_front(header)}{text}\n## How to open it\n\n{opening.strip()}\n"


def _what(
    stage: str, step: int, model: Mapping[str, Any], num_parameters: int, run: Run | None, made_from: str
) -> Iterator[Block]:
    words = STAGES[StageName(stage)].sentence if stage in STAGES else "How it was trained is not recorded."
    yield Text(f"A small language model of the nanochat family with {num_parameters:,} parameters. {words}")
    rows = [("stage", f"{stage}, step {step:,}"), ("parameters", f"{num_parameters:,}")]
    rows += [(words, f"{model[key]:,}" if key in _SIZES else str(model[key])) for key, words in _SHAPE.items()]
    if run is not None and run.summary.get("init_from"):
        rows.append(("initial weights", str(run.summary["init_from"])))
    if run is not None and run.record.get("git_commit"):
        rows.append(("commit", str(run.record["git_commit"]) + (", with changes" if run.dirty else "")))
    if made_from != "lightning":
        rows.append(("taken over from files of", made_from))
    yield TextTable(("Model", ""), tuple(rows))


def _data(stage: str, config: Mapping[str, Any]) -> Iterator[Block]:
    data, tasks = setting(config, "data"), setting(config, "mixture.tasks")
    if not isinstance(data, Mapping) or not data:
        yield Text("Not recorded in the files that this model came from.", note=True)
        return
    source = {
        "microworld": "the embedded microworld, a small generated data set that comes with the program",
        "local": f"local files ({PurePath(str(data.get('root'))).name})",
        "hub": f"{data.get('hub_text')} from the hub",
    }.get(str(data.get("source")), str(data.get("source")))
    yield Text(f"Source: {source}. Earlier stages of the chain have data of their own.")
    if stage != "base" and isinstance(tasks, Mapping) and tasks:
        rows = tuple(
            (task, str(spec.get("_target_", "?")).rpartition(".")[2], _task_options(spec))
            for task, value in tasks.items()
            if isinstance(spec := {"_target_": "JSONL", "path": value} if isinstance(value, str) else value, Mapping)
        )
        yield TextTable(("Task", "Kind", "Options"), rows)


def _task_options(task: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in task.items() if isinstance(value, str | int | float | bool)}
    return ", ".join(f"{key} {plain[key]}" for key in ("subset", "split", "size", "epochs") if key in plain)


def _settings(stage: str, config: Mapping[str, Any], run: Run | None) -> Iterator[Block]:
    keys = SETTINGS + (RL_SETTINGS if stage == StageName.rl else ())
    rows = settings_shown(config, [key for key in keys if key not in _NOT_SHOWN])
    if run is not None:
        facts = (
            ("steps of the whole run", run.summary.get("num_steps"), ","),
            ("tokens seen", last_value(run.curves, "tokens"), ",.0f"),
            ("training FLOPs", last_value(run.curves, "total_training_flops"), ".2e"),
            ("training time, seconds", last_value(run.curves, "total_training_time"), ",.0f"),
            ("device", run.summary.get("device"), ""),
            ("compute dtype", run.summary.get("compute_dtype"), ""),
        )
        rows += [(words, format(value, form)) for words, value, form in facts if value is not None]
    if rows:
        yield TextTable(("Setting", ""), tuple(rows))
    else:
        yield Text("Not recorded in the files that this model came from.", note=True)


def _results(run: Run | None) -> Iterator[Block]:
    if run is None or not run.results:
        yield Text("These weights have not been evaluated: nothing is known of what they can do.", note=True)
        return
    blocks = list(evaluation_blocks([run], [run.stage]))[1:]  # without a heading of its own
    yield from (block for block in blocks if not isinstance(block, Figure))  # a card is one file
    yield Text("In brackets: 95% intervals over the questions asked; another seed of training may differ by more.")


def _limits(
    stage: str, model: Mapping[str, Any], num_parameters: int, config: Mapping[str, Any], run: Run | None
) -> Iterator[Block]:
    sentences = [
        f"With {num_parameters:,} parameters it knows little, and states what is wrong as readily as what is right.",
        f"It reads {model['sequence_len']:,} tokens at once, question and answer together: so it was trained.",
        "Nothing was done to make its answers harmless: it has no filter and was not trained to refuse.",
    ]
    if setting(config, "data.source") == "microworld":
        sentences.append(
            "It was trained on the few facts of a small generated data set, to try the program out; it knows no others."
        )
    if stage not in ("base", "unknown"):
        sentences.append(
            "It may ask for a calculation, between <|python_start|> and <|python_end|>, and waits for the result. "
            "This project's chat and server compute it; a program that does not gets a made-up one."
        )
    rows = [row for result in (run.results if run else ()) for row in result.rows]
    few = [row.n for row in rows if row.group is None and row.value is not None]
    if few and min(few) < _FEW:
        sentences.append(f"Some figures above rest on {min(few)} questions: their intervals say how little that is.")
    yield from (Text(sentence) for sentence in sentences)


def _front(header: Mapping[str, Any] | None) -> str:
    if not header:
        return ""
    import yaml

    return f"---\n{yaml.safe_dump(dict(header), sort_keys=False)}---\n\n"
