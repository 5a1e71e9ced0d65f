"""The tasks of EleutherAI's lm-evaluation-harness, asked of our models.

The harness brings hundreds of benchmarks, each a YAML file: prompts, solved examples, filters, metrics. This module
loads its tasks, asks a `HarnessModel`, and turns the results into records and rows like those of every evaluation
(`results.py`). The harness is the extra `lm-eval`, imported where it is used.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from nanochat_pl.engine import Engine
from nanochat_pl.eval.ask import Progress
from nanochat_pl.eval.harness_model import HarnessModel, request_digest
from nanochat_pl.eval.results import PROMPT_TAIL_CHARS, Evaluation, ExampleLog, MetricRow, proportion_row
from nanochat_pl.eval.stats import Interval
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["run_harness"]

_BOOTSTRAP_RESAMPLES = 1000
"""Resamples for standard errors that the harness has no formula for."""
_CHANCE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics of multiple choice that a blind pick gets right once in as many times as there are choices."""
_Z95 = NormalDist().inv_cdf(0.975)


def run_harness(
    model: GPT,
    tokenizer: Tokenizer,
    engine: Engine,
    tasks: Sequence[str],
    *,
    include_path: str | Path | Sequence[str | Path] | None = None,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    chat: bool = False,
    system_prompt: str | None = None,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    offline: bool = False,
    confirm_run_unsafe_code: bool = False,
    answers: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask tasks of the harness; return a record per sample (and filter) and a row per task, group and metric.

    A record has `id` (`<task>/<document>`, and the filter's name if there is one), `task`, `filter`, `prompt` (its
    end), `expected`, `output` (the likeliest choice, the text written, or the log-likelihood), `correct` (of the first
    metric that is 0 or 1; None where there is none), `scores` (metric -> value), `prompt_tokens` and `prompt_cut` (it
    lost its beginning); where nothing is written, `loglikelihoods`; where there are choices, `choices` and `picked`;
    where something is written, `answer` (what the filter took from it) and `output_tokens`. A row's metric is the
    harness's name, after the filter's if there is one. Its interval is Wilson's for a share of samples, else 1.96
    standard errors of the harness to each side of the value; None where the harness states none. Each task also has
    `prompt_cut_rate`.

    Args:
        model, tokenizer, engine: As in `HarnessModel`.
        tasks: Names of tasks, groups or tags, or paths of YAML files. Paths in such a file are those of the current
            folder.
        include_path: Folders with more task files; they go before the harness's own of that name.
        num_fewshot: Solved examples in front; None = as each task says. A task that says 0 keeps to it.
        limit: Ask this many samples of each task, from the first, or this share of them if below 1.
        chat: Ask in conversations, solved examples as earlier turns.
        batch_size, max_batch_tokens, max_new_tokens, answers, progress: As in `HarnessModel`.
        seed: For few-shot examples, tasks that shuffle, and sampled answers.
        offline: Open no socket for data; what is not there is an error.
        confirm_run_unsafe_code: Let tasks run the programs the model writes, outside any sandbox.

    Raises:
        ValueError: The harness is not installed, there is no such task, or `limit` or `num_fewshot` is below its range.
        FileNotFoundError: A task's data are not here and cannot be fetched.
    """
    started = time.perf_counter()
    if limit is not None and limit <= 0:
        raise ValueError(f"limit={limit} leaves nothing to ask; give a number of samples, a share below 1, or null")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot={num_fewshot} must be 0 or more, or null for what each task says")
    LM, harness_evaluate, TaskManager = _import_harness()

    class Adapted(HarnessModel, LM):  # type: ignore[misc, valid-type]
        """The model as the harness knows models."""

    adapted = Adapted(
        model,
        tokenizer,
        engine,
        chat=chat,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        max_new_tokens=max_new_tokens,
        seed=seed,
        answers=answers,
        progress=progress,
    )
    with _isolated_globals(seed, offline):
        loaded = _load_tasks(TaskManager, tasks, include_path)
        for task in loaded["tasks"].values():
            default = task.get_config("num_fewshot")
            if num_fewshot is not None and default != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif default is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        results = harness_evaluate(
            adapted,
            loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP_RESAMPLES,
            system_instruction=system_prompt,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
    records, fresh = [], set()
    for name, samples in results["samples"].items():
        kind = results["configs"][name]["output_type"]
        for sample in samples:
            records.append(_record(adapted, name, kind, sample))
            if not adapted.answered.isdisjoint(_digests(kind, sample)):
                fresh.add((name, sample["doc_id"]))
    return Evaluation(
        records=records, rows=_rows(results, records), seconds=time.perf_counter() - started, num_answered=len(fresh)
    )


def _import_harness() -> tuple[Any, Callable[..., Any], Any]:
    try:
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"the lm-evaluation-harness cannot be imported ({error.name or 'a part of it'} is missing); it is the "
            "extra lm-eval: pip install 'nanochat-pl[lm-eval]'"
        ) from error
    return LM, evaluate, TaskManager


def _load_tasks(manager_type: Any, tasks: Sequence[str], include_path: Any) -> dict[str, Any]:
    """Load tasks by name; the harness's own are only searched if one of them is wanted, as that takes seconds."""
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks={tasks!r} must be a list of one task or more, such as ['arc_easy']")
    paths = [include_path] if isinstance(include_path, str | Path) else list(include_path or [])
    for path in paths:
        if not Path(path).is_dir():
            raise ValueError(f"include_path={str(path)!r} is no folder; it must hold the YAML files of tasks")
    manager = manager_type(include_path=paths, include_defaults=False)
    if not set(tasks) <= set(manager.all_subtasks):
        manager = manager_type(include_path=paths)
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = get_close_matches(name, manager.all_tasks, n=5)
            raise ValueError(
                f"the harness knows no task {name!r}{', only ' + ', '.join(near) if near else ''}; "
                "`lm-eval ls tasks` lists its own, include_path adds folders with yours"
            )
    try:
        return manager.load(list(tasks))
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{error}: the data of {', '.join(tasks)} are not here; run this once where there is a network and bring "
            "the folder HF_HOME, or ask tasks over files of your own (include_path)"
        ) from error


@contextmanager
def _isolated_globals(seed: int, offline: bool) -> Iterator[None]:
    """Seed what tasks draw from, restore the caller's random streams afterwards, keep the harness to one process."""
    import datasets
    import huggingface_hub.constants

    switches = ((datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE"))
    before = [getattr(owner, name) for owner, name in switches]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from the global one
    single = os.environ.get("DISABLE_MULTIPROC")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    os.environ["DISABLE_MULTIPROC"] = "1"  # a fork of a process with threads may hang
    if offline:
        for owner, name in switches:
            setattr(owner, name, True)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for (owner, name), value in zip(switches, before, strict=True):
            setattr(owner, name, value)
        if single is None:
            os.environ.pop("DISABLE_MULTIPROC", None)
        else:
            os.environ["DISABLE_MULTIPROC"] = single


def _digests(output_type: str, sample: Mapping[str, Any]) -> set[str]:
    """Return the digests of the requests that a sample consists of."""
    kind = "loglikelihood" if output_type == "multiple_choice" else output_type
    return {request_digest(kind, args) for args in sample["arguments"]}


def _rows(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[MetricRow]:
    """Return the rows of the tasks, then of the groups that have metrics of their own."""
    rows = []
    for name, samples in results["samples"].items():
        for metric, filtered, value, error in _metrics(results["results"][name]):
            own = [s for s in samples if s["filter"] == filtered and metric in s]
            baseline = None
            if results["configs"][name]["output_type"] == "multiple_choice" and metric in _CHANCE_METRICS:
                baseline = {"chance": sum(map(_chance, own)) / len(own)}
            values = [s[metric] for s in own]
            if _is_share(values, value):
                shown = _shown(metric, filtered)
                rows.append(proportion_row(name, shown, [bool(v) for v in values], baseline=baseline))
            else:
                rows.append(_row(name, _shown(metric, filtered), value, error, len(own)))
        cut = {r["id"].removesuffix(f"/{r['filter']}"): r["prompt_cut"] for r in records if r["task"] == name}
        rows.append(proportion_row(name, "prompt_cut_rate", list(cut.values())))
    for name, group in results.get("groups", {}).items():
        for metric, filtered, value, error in _metrics(group):
            rows.append(_row(name, _shown(metric, filtered), value, error, group["sample_len"]))
    return rows


def _shown(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{filtered}/{metric}"


def _metrics(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield name, filter, value and standard error of each metric of a task or group."""
    for key, value in entry.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, filtered, value, entry.get(f"{metric}_stderr,{filtered}")


def _row(task: str, metric: str, value: Any, error: Any, n: int) -> MetricRow:
    number = float(value) if _is_number(value) else None
    interval = None
    if number is not None and _is_number(error):
        interval = Interval(number - _Z95 * float(error), number + _Z95 * float(error))
    return MetricRow(task=task, metric=metric, value=number, n=n, interval=interval)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _is_share(values: Sequence[Any], value: Any) -> bool:
    """Return whether a value is the share of samples on which something holds."""
    holds = bool(values) and all(_is_number(v) and v in (0, 1) for v in values)
    return holds and _is_number(value) and math.isclose(sum(values) / len(values), value, abs_tol=1e-12)


def _chance(sample: Mapping[str, Any]) -> float:
    """Return how often a blind pick among a sample's choices is right."""
    right = len(sample["target"]) if isinstance(sample["target"], list) else 1
    return right / _num_choices(sample)


def _num_choices(sample: Mapping[str, Any]) -> int:
    # For mutual information each choice is asked a second time, alone.
    return len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)


def _record(adapted: HarnessModel, task: str, output_type: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Turn one sample, as the harness logs it, into a record of ours."""
    arguments, responses, target = sample["arguments"], [r[0] for r in sample["resps"]], sample["target"]
    rolling = output_type == "loglikelihood_rolling"
    context = "" if rolling else arguments[0][0]
    scores = {metric: _plain(sample[metric]) for metric in sample["metrics"]}
    filtered = sample["filter"]
    record: dict[str, Any] = {
        "id": f"{task}/{sample['doc_id']}" + ("" if filtered == "none" else f"/{filtered}"),
        "task": task,
        "filter": filtered,
        "prompt": context[-PROMPT_TAIL_CHARS:],
        "expected": _plain(target) if isinstance(target, str) else str(_plain(target)),
        "correct": next((bool(value) for value in scores.values() if _is_number(value) and value in (0, 1)), None),
        "scores": scores,
        "prompt_tokens": len(adapted.encode(context)),
        "prompt_cut": not adapted.cut.isdisjoint(_digests(output_type, sample)),
    }
    if output_type == "multiple_choice":
        count = _num_choices(sample)
        contexts = {args[0] for args in arguments[:count]}
        choices = [args[0 if len(contexts) > 1 else 1].strip()[-PROMPT_TAIL_CHARS:] for args in arguments[:count]]
        totals = [total for total, _ in responses[:count]]
        picked = int(np.argmax(totals))
        if isinstance(target, int) and 0 <= target < count:
            record["expected"] = choices[target]
        record |= {"output": choices[picked], "choices": choices, "picked": picked, "loglikelihoods": totals}
    elif output_type == "generate_until":
        record |= {
            "output": responses[0],
            "answer": str(sample["filtered_resps"][0]),
            "output_tokens": len(adapted.tokenizer.encode(responses[0])),
        }
    else:
        total = responses[0] if rolling else responses[0][0]
        record |= {"output": f"log-likelihood {total:.4f}", "loglikelihoods": [total]}
    return record


def _plain(value: Any) -> Any:
    """Return a value as JSON types."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
