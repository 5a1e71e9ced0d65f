"""The tasks of CORE: what a bundle holds, which examples are asked, and the very text the model reads.

CORE is the mean over 22 tasks of DCLM (Li et al., 2024), asked in the way of nanochat (2025-11): scores of models can
only be compared if every prompt is the same to the last character. So the order of the examples, the few-shot examples
of each and the line breaks between them are fixed here, by seeds and rules, and there is nothing to set. A bundle is a
folder with `core.yaml`, `eval_meta_data.csv` and `eval_data/<dataset_uri>`.
"""

import csv
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

__all__ = [
    "BUNDLE_URL",
    "TASK_TYPES",
    "CorePrompts",
    "CoreTask",
    "TaskType",
    "check_bundle",
    "load_bundle",
    "make_prompts",
]

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"

TaskType = Literal["multiple_choice", "schema", "language_modeling"]

TASK_TYPES: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
"""Each type of task, and the fields of its examples."""

_OPTIONS = {"multiple_choice": "choices", "schema": "context_options"}
_ORDER_SEED, _FEW_SHOT_SEED = 1337, 1234


@dataclass(frozen=True, kw_only=True)
class CoreTask:
    """One task of the bundle."""

    label: str
    type: TaskType
    num_fewshot: int
    """Solved examples before each question."""
    baseline: float
    """Accuracy of guessing, as the bundle states it, in 0..1."""
    examples: Sequence[Mapping[str, Any]]
    """The examples in the order of the file; `TASK_TYPES` lists their fields."""
    delimiter: str = " "
    """The text between what is given and what is scored."""

    def sample(self, max_per_task: int | None = None) -> list[Mapping[str, Any]]:
        """Return the examples in the order asked, which are also the pool of few-shot examples.

        `max_per_task` keeps this many of the shuffled ones, which shrinks the pool as in nanochat; None = all.

        Raises:
            ValueError: `max_per_task` is below 1.
        """
        if max_per_task is not None and max_per_task < 1:
            raise ValueError(f"max_per_task={max_per_task} leaves nothing to ask; set 1 or more, or null for all")
        examples = list(self.examples)
        random.Random(_ORDER_SEED).shuffle(examples)
        return examples[:max_per_task]

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with anything that changes a prompt, its answer or the score."""
        content = json.dumps(asdict(self), sort_keys=True, default=list)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CorePrompts:
    """The texts of one question."""

    texts: list[str]
    """One text for each choice; for language modelling, the prompt without and with its continuation."""
    given: list[str]
    """What precedes the answer in each text that has one (in the last for language modelling), without the space at its
    end: that is the answer's, as it is in its token."""
    num_fewshot: int
    """Solved examples in front; fewer than the task's where the pool has no more."""


def check_bundle(folder: str | Path) -> None:
    """Check that a bundle is there, without reading it.

    Raises:
        FileNotFoundError: A file of it is missing; the message says how to bring the bundle.
    """
    for name in ("core.yaml", "eval_meta_data.csv"):
        _existing(Path(folder) / name, Path(folder))


def load_bundle(folder: str | Path) -> list[CoreTask]:
    """Read the tasks that `core.yaml` lists, in its order.

    Raises:
        FileNotFoundError: A file of it is missing; the message says how to bring the bundle.
        ValueError: A file is empty or malformed, or a task has no baseline; the message names file, line and fault.
    """
    folder = Path(folder)
    path = _existing(folder / "core.yaml", folder)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path} is not valid YAML{where}; mend it or fetch the bundle again") from None
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} lists no tasks; expected a list under the key icl_tasks")
    baselines = _read_baselines(_existing(folder / "eval_meta_data.csv", folder))
    return [_read_task(entry, number, path, folder, baselines) for number, entry in enumerate(entries, start=1)]


def make_prompts(task: CoreTask, sample: Sequence[Mapping[str, Any]], index: int) -> CorePrompts:
    """Render question `index` of `task.sample(...)` after its solved examples, each followed by an empty line.

    The examples are drawn without the question itself, by a generator seeded for this question. (nanochat, 2025-11)
    Differs: a pool of fewer than `num_fewshot` is used up, where nanochat fails.
    """
    # Drawing indices into the list without the question equals drawing from that list, which would have to be built.
    others = range(len(sample) - 1)
    drawn = random.Random(_FEW_SHOT_SEED + index).sample(others, min(task.num_fewshot, len(others)))
    shots = [sample[other + (other >= index)] for other in drawn]
    before = "".join(f"{_solved(task, shot)}\n\n" for shot in shots)
    question, delimiter = sample[index], task.delimiter
    if task.type == "multiple_choice":
        given = [f"{before}{question['query']}{delimiter}"] * len(question["choices"])
        texts = [start + choice for start, choice in zip(given, question["choices"])]
    elif task.type == "schema":
        given = [f"{before}{option}{delimiter}" for option in question["context_options"]]
        texts = [start + question["continuation"] for start in given]
    else:
        given = [f"{before}{question['context'].strip()}{delimiter}"]
        # stripped so that the space before a word is the word's, as it is in its token
        texts = [given[0].strip(), given[0] + question["continuation"]]
    return CorePrompts(texts, [start.rstrip(" ") for start in given], len(shots))


def _solved(task: CoreTask, example: Mapping[str, Any]) -> str:
    if task.type == "multiple_choice":
        return f"{example['query']}{task.delimiter}{example['choices'][example['gold']]}"
    if task.type == "schema":
        return f"{example['context_options'][example['gold']]}{task.delimiter}{example['continuation']}"
    return f"{example['context'].strip()}{task.delimiter}{example['continuation']}"


def _existing(path: Path, folder: Path) -> Path:
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"no {path.relative_to(folder)} in the evaluation bundle {folder}"
        f"{'' if folder.is_dir() else ' (no such folder)'}; bring the bundle of nanochat with: "
        f"curl -LO {BUNDLE_URL} && unzip eval_bundle.zip -d {folder.parent} (unpacks to eval_bundle/)"
    )


def _read_baselines(path: Path) -> dict[str, float]:
    """Return the accuracy of guessing, in 0..1, by task."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        missing = {"Eval Task", "Random baseline"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; it has {table.fieldnames or 'none'}")
        baselines = {}
        for row in table:
            percent = row["Random baseline"]
            try:
                baselines[row["Eval Task"]] = 0.01 * float(percent)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}: line {table.line_num}: Random baseline={percent!r} of {row['Eval Task']} is no number"
                ) from None
    return baselines


def _read_task(entry: Any, number: int, path: Path, folder: Path, baselines: Mapping[str, float]) -> CoreTask:
    where = f"{path}: task {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no mapping: {entry!r}")
    missing = [key for key in ("label", "dataset_uri", "num_fewshot", "icl_task_type") if key not in entry]
    if missing:
        raise ValueError(f"{where} ({entry.get('label', 'no label')}) has no {', '.join(missing)}")
    label, kind, shots = str(entry["label"]), entry["icl_task_type"], entry["num_fewshot"]
    if kind not in TASK_TYPES:
        raise ValueError(f"{where} ({label}) has icl_task_type={kind!r}, expected one of {', '.join(TASK_TYPES)}")
    if not (isinstance(shots, list) and len(shots) == 1 and isinstance(shots[0], int) and shots[0] >= 0):
        raise ValueError(f"{where} ({label}) has num_fewshot={shots!r}, expected a list of one number, such as [10]")
    if label not in baselines:
        raise ValueError(
            f"{folder / 'eval_meta_data.csv'} has no row for {label}, a task of {path.name}: without its random "
            "baseline the score cannot be centred; add the row, or take the task out"
        )
    if not baselines[label] < 1:
        raise ValueError(
            f"{folder / 'eval_meta_data.csv'}: {label} has a random baseline of {100 * baselines[label]:g} percent; "
            "expected less than 100"
        )
    data = _existing(folder / "eval_data" / str(entry["dataset_uri"]), folder)
    return CoreTask(
        label=label,
        type=cast(TaskType, kind),
        num_fewshot=shots[0],
        baseline=baselines[label],
        examples=_read_examples(data, kind),
        delimiter=str(entry.get("continuation_delimiter", " ")),
    )


def _read_examples(path: Path, kind: str) -> list[dict[str, Any]]:
    examples = []
    # Bytes are split at line feeds alone: a text may hold other line separators unescaped.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                example = json.loads(line)
            except ValueError:
                raise ValueError(
                    f"{path}: line {number} is not valid JSON; mend it or fetch the bundle again"
                ) from None
            fault = _fault(example, kind)
            if fault:
                raise ValueError(f"{path}: line {number}: {fault}")
            examples.append(example)
    if not examples:
        raise ValueError(f"{path} is empty; bring the file anew from {BUNDLE_URL}")
    return examples


def _fault(example: Any, kind: str) -> str | None:
    """Return why an example cannot be asked, or None."""
    if not isinstance(example, dict):
        return f"expected an object, found {type(example).__name__}"
    for field, wanted in TASK_TYPES[kind].items():
        if field not in example:
            return f"no {field!r}, which a {kind} example needs; it has {', '.join(sorted(example)) or 'nothing'}"
        if not isinstance(example[field], wanted) or isinstance(example[field], bool):
            return f"{field!r} is {type(example[field]).__name__}, expected {wanted.__name__}"
    if kind == "language_modeling" and not example["continuation"].strip():
        return "'continuation' is blank: there is nothing to score"
    if kind in _OPTIONS:
        options = example[_OPTIONS[kind]]
        if len(options) < 2 or not all(isinstance(option, str) for option in options):
            return f"{_OPTIONS[kind]!r} must hold two texts or more, found {options!r:.100}"
        if not 0 <= example["gold"] < len(options):
            return f"'gold' is {example['gold']}, expected 0 to {len(options) - 1}"
    return None
