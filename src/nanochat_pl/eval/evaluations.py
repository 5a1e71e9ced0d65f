"""How each evaluation finds its questions and asks them: one function for each, used by `evaluate.py` and in training.

A function of `EVAL_TASKS` gets an `EvalContext`, looks up what it will ask, so that a fault is found before anything
is computed, and returns an `EvalTask`: the settings that the answers depend on, and the function that answers. The
computation itself is in a module of its own, which knows neither configs nor folders.
"""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_pl.config.checks import check_answer_length
from nanochat_pl.config.evaluations import EvalName
from nanochat_pl.config.inputs import prepare_root, prepare_text
from nanochat_pl.config.provenance import combined_fingerprint
from nanochat_pl.config.schema import DataConfig, DataSource, EvaluateConfig, TrainConfig
from nanochat_pl.config.targets import make
from nanochat_pl.engine import Engine
from nanochat_pl.eval.ask import Progress
from nanochat_pl.eval.bpb import evaluate_bpb
from nanochat_pl.eval.chat import CHATCORE_BASELINES, chatcore, evaluate_chat, with_ids
from nanochat_pl.eval.checks import load_checks, run_checks
from nanochat_pl.eval.compression import evaluate_compression, sample_texts
from nanochat_pl.eval.core import evaluate_core
from nanochat_pl.eval.core_tasks import load_bundle
from nanochat_pl.eval.harness import run_harness
from nanochat_pl.eval.recall import evaluate_recall
from nanochat_pl.eval.results import REQUESTS, Evaluation, ExampleLog, MetricRow, config_hash
from nanochat_pl.eval.scienceqa import bertscore_row, evaluate_scienceqa
from nanochat_pl.eval.texts import first_texts, read_once, text_files
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import rank, world_size
from nanochat_pl.tasks.answers import choice_letters
from nanochat_pl.tasks.arc import ARC, SUBSETS
from nanochat_pl.tasks.base import Task
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.humaneval import HumanEval
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.scienceqa import format_answer, format_question
from nanochat_pl.tasks.spelling import SpellingBee
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["EVAL_TASKS", "EvalContext", "EvalTask"]

TEXT_CHARS = 1_000_000
"""Characters of the training text and of the validation text that are encoded to compare tokenizers."""


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """The model to be evaluated, the data it is asked about, and the settings."""

    model: GPT
    tokenizer: Tokenizer
    data: DataConfig
    tasks: Mapping[str, Any]
    """The training mixture, whose wording of a question is the one the model knows."""
    cfg: EvaluateConfig | TrainConfig

    def engine(self, context_tokens: int | None = None) -> Engine:
        """Return an engine that stops where an answer ends; `context_tokens` is that of `Engine`."""
        return Engine(
            self.model,
            self.tokenizer.stop_ids,
            tokenizer=self.tokenizer,
            dtype=str(self.cfg.engine.dtype),
            penalties=self.cfg.eval.penalties(),
            context_tokens=context_tokens,
        )

    def long_engine(self) -> Engine:
        """Return an engine for questions longer than the context that the model was trained with."""
        return self.engine(self.model.config.rotary_rows)

    def answer_settings(self, name: EvalName) -> dict[str, Any]:
        """Return the arguments of an evaluation that keeps room for a whole answer.

        Raises:
            ValueError: No room is left for a question.
        """
        cfg = self.cfg.eval
        check_answer_length(name, cfg.max_new_tokens, self.model.config.sequence_len)
        return {
            "max_new_tokens": cfg.max_new_tokens,
            "max_prompt_tokens": self.model.config.rotary_rows - cfg.max_new_tokens,
            "batch_size": cfg.batch_size,
            "seed": self.cfg.seed,
        }

    def first(self, task: Iterable[Any]) -> list[Any]:
        """Return the first `eval.max_questions` questions of a task."""
        return list(itertools.islice(task, self.cfg.eval.max_questions))

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that `eval.tasks` asks for, in their own order; all of them where it is not set.

        Raises:
            ValueError: `eval.tasks` names one that does not exist.
        """
        cfg = self.cfg.eval
        unknown = [name for name in cfg.tasks or () if name not in names]
        if unknown:
            raise ValueError(f"eval.tasks names {', '.join(unknown)}; eval={cfg.name} has {', '.join(names)}")
        return [name for name in names if not cfg.tasks or name in cfg.tasks]

    def training_task(self, kind: str, **otherwise: Any) -> dict[str, Any]:
        """Return the mixture's task whose `_target_` ends in `kind`, to be asked once, in order, on the split measured.

        `otherwise` are its arguments where the mixture has no such task.
        """
        specs = (dict(spec) for spec in self.tasks.values() if spec)
        spec = next((spec for spec in specs if str(spec.get("_target_", "")).endswith(f".{kind}")), None)
        spec = spec or {"_target_": f"nanochat_pl.tasks.{kind}", **otherwise}
        for training_only in ("epochs", "phase", "start", "stop", "step", "at_most"):
            spec.pop(training_only, None)
        return spec | {"split": self.cfg.eval.split}

    def settings(self, questions: Any, **own: Any) -> dict[str, Any]:
        """Return what the answers to `questions` depend on; the questions count by their content."""
        cfg = self.cfg.eval
        return {
            "max_new_tokens": cfg.max_new_tokens,
            "max_questions": cfg.max_questions,
            "questions": config_hash({"questions": as_json(questions)}),
            "long_questions": "read on",
            **self.measures,
            **own,
        }

    @property
    def measures(self) -> dict[str, bool]:
        """What is measured in addition, as a setting; without it answers are those of before it existed."""
        return {"answer_bpb": True} if self.cfg.eval.answer_bpb else {}

    @property
    def root(self) -> Path:
        """The folder with the data sets; they are made or fetched if need be."""
        prepare_root(self.data)
        return Path(self.data.root or "")


@dataclass(frozen=True)
class EvalTask:
    """An evaluation whose questions are found."""

    settings: Mapping[str, Any]
    """What the answers depend on, apart from checkpoint, tokenizer, data and number formats."""
    run: Callable[[ExampleLog, Progress | None], Evaluation]
    """Answers what the log has no record of, and returns the records and metrics of all."""


# -- multiple choice and facts, worded as in training ---------------------------------------------------------------


def scienceqa(context: EvalContext) -> EvalTask:
    """ScienceQA's questions, in the form that the training task gives them."""
    cfg = context.cfg.eval
    questions, settings = context.first(_tutor_questions(context)), context.answer_settings(EvalName.scienceqa)
    settings["answer_bpb"] = cfg.answer_bpb
    if cfg.bertscore is not None and not Path(cfg.bertscore).is_dir():
        raise FileNotFoundError(f"eval.bertscore={cfg.bertscore} is no folder; give that of a local model, or null")

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        model, tokenizer, engine = context.model, context.tokenizer, context.long_engine()
        found = evaluate_scienceqa(model, tokenizer, engine, questions, **settings, log=log, progress=progress)
        if cfg.bertscore is not None:
            found.rows.append(bertscore_row(found.records, cfg.bertscore, seed=context.cfg.seed))
        return found

    return EvalTask(context.settings(questions, split=cfg.split, tasks=as_json(context.tasks)), run)


def arc(context: EvalContext) -> EvalTask:
    """ARC's questions in the tutor's wording: what a science tutor knows beyond the set it was trained on."""
    cfg, root = context.cfg.eval, context.root
    persona = [message for message in _tutor_questions(context)[0]["messages"] if message["role"] == "system"]
    questions: dict[str, list[Any]] = {}
    for subset in context.chosen(SUBSETS):
        task = ARC(root / "arc", subset, cfg.split, fetch=context.data.fetch, offline=context.cfg.offline)
        questions[subset] = [_as_tutor(question, persona, subset) for question in context.first(task)]
    settings = {**context.answer_settings(EvalName.arc), "answer_bpb": cfg.answer_bpb}

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin, engine, total = time.perf_counter(), context.long_engine(), sum(map(len, questions.values()))
        parts = []
        for subset, own in questions.items():
            parts.append(
                evaluate_scienceqa(context.model, context.tokenizer, engine, own, task=subset, **settings, log=log)
            )
            if progress is not None:
                progress(sum(len(part.records) for part in parts), total)
        return _joined(parts, log, begin)

    return EvalTask(context.settings(questions, split=cfg.split, subsets=list(questions), persona=persona), run)


def _joined(parts: Sequence[Evaluation], log: ExampleLog, begin: float) -> Evaluation:
    """Return one evaluation of several that share a log."""
    return Evaluation(
        records=[record for part in parts for record in part.records],
        rows=[row for part in parts for row in part.rows],
        seconds=time.perf_counter() - begin,
        num_answered=log.num_appended,
    )


def _tutor_questions(context: EvalContext) -> Any:
    """Return ScienceQA as the model was trained on it, on the split to be measured."""
    data, split = context.data, context.cfg.eval.split
    otherwise = {"persona": None} if data.source == DataSource.microworld else {}
    spec = context.training_task("scienceqa.ScienceQA", **otherwise)
    rows = {"train": data.train_rows, "validation": data.val_rows, "test": data.test_rows}[split]
    spec |= {"path": str(context.root / data.scienceqa), "rows": rows, "shuffle_choices": False, "curriculum": False}
    spec |= {"hub": data.hub_scienceqa, "offline": context.cfg.offline, "formatted_dir": data.formatted_dir}
    return make(spec)


def _as_tutor(question: Mapping[str, Any], persona: list[Any], subset: str) -> dict[str, Any]:
    """Word a question of ARC as ScienceQA's are."""
    choices = question["choices"]
    right = question["letters"].index(question["answer"])
    letters = choice_letters(choices)
    return {
        "messages": [
            *persona,
            {"role": "user", "content": format_question(question["question"], choices)},
            {"role": "assistant", "content": format_answer(choices, right)},
        ],
        "id": f"{subset}/{question['id']}",
        "letters": letters,
        "answer": letters[right],
        "choices": choices,
    }


def recall(context: EvalContext) -> EvalTask:
    """Facts of the embedded world without choices, in the form of the training task."""
    spec = context.training_task("recall.Recall") | {"path": str(context.root / "recall")}
    questions, settings = context.first(make(spec)), context.answer_settings(EvalName.recall)
    settings["model"] = context.model if context.cfg.eval.answer_bpb else None

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        engine = context.long_engine()
        return evaluate_recall(context.tokenizer, engine, questions, **settings, log=log, progress=progress)

    own = {"split": context.cfg.eval.split, "tasks": as_json(context.tasks)}
    return EvalTask(context.settings(questions, **own), run)


# -- the tasks that chat models are known by ------------------------------------------------------------------------

CHAT_TASKS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    "ARC-Easy": (ARC, {"path": "arc", "subset": "ARC-Easy"}),
    "ARC-Challenge": (ARC, {"path": "arc", "subset": "ARC-Challenge"}),
    "MMLU": (MMLU, {"path": "mmlu"}),
    "GSM8K": (GSM8K, {"path": "gsm8k"}),
    "HumanEval": (HumanEval, {"path": "humaneval"}),
    "SpellingBee": (SpellingBee, {"path": "words_alpha.txt", "size": 256}),
}
"""The tasks of ChatCORE in the order asked, their paths below `data.root`, and how many words are spelled."""


def chat(context: EvalContext) -> EvalTask:
    """The tasks of ChatCORE, or those of them that `eval.tasks` names, all in one log."""
    cfg, root = context.cfg.eval, context.root
    tasks: dict[str, Any] = {}
    questions: dict[str, list[Mapping[str, Any]]] = {}
    for name in context.chosen(list(CHAT_TASKS)):
        kind, arguments = CHAT_TASKS[name]
        options = {**arguments, "path": root / arguments["path"], "split": "test", "strict": cfg.strict.value}
        options |= {"sandbox": cfg.sandbox} if kind.runs_programs else {}
        options |= {"fetch": context.data.fetch, "offline": context.cfg.offline} if kind.on_hub else {}
        tasks[name] = kind(**options)
        questions[name] = [
            {**question, "id": f"{name}/{question['id']}"} for question in with_ids(context.first(tasks[name]))
        ]
    sampling = {"num_samples": cfg.num_samples, "temperature": cfg.temperature, "top_k": cfg.top_k}

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin, engine, total = time.perf_counter(), context.long_engine(), sum(map(len, questions.values()))
        parts: dict[str, Evaluation] = {}
        for name, task in tasks.items():
            how: dict[str, Any] = {}  # the answer to a categorical question is one token: all else is room for it
            if task.kind == "generative":
                how = {"grade": task.grade, "grading_threads": task.grading_threads, **sampling}
                how |= {"max_new_tokens": cfg.max_new_tokens, "batch_size": cfg.batch_size}
            parts[name] = evaluate_chat(
                context.model,
                context.tokenizer,
                engine,
                questions[name],
                task=name,
                kind=task.kind,
                answer_bpb=cfg.answer_bpb,
                **how,
                seed=context.cfg.seed,
                log=log,
                progress=None if progress is None else lambda answered, _: progress(answered, total),
            )
        found = _joined(list(parts.values()), log, begin)
        if set(CHATCORE_BASELINES) - set(parts) <= {"SpellingBee"}:
            found.rows.append(chatcore({name: part.rows[0] for name, part in parts.items()}))
        return found

    own = {**sampling, "tasks": list(tasks), "sandbox": cfg.sandbox, "strict": cfg.strict.value}
    return EvalTask(context.settings(questions, **own), run)


def checks(context: EvalContext) -> EvalTask:
    """Prompts with expectations, from a file."""
    entries = load_checks(context.cfg.eval.checks)[: context.cfg.eval.max_questions]

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        engine, seed = context.engine(), context.cfg.seed
        return run_checks(engine, context.tokenizer, entries, seed=seed, log=log, progress=progress)

    return EvalTask({"checks": [as_json(dataclasses.asdict(entry)) for entry in entries]}, run)


# -- base models and texts ------------------------------------------------------------------------------------------


def core(context: EvalContext) -> EvalTask:
    """CORE's tasks, or those of them that `eval.tasks` names."""
    cfg = context.cfg.eval
    bundle = load_bundle(cfg.bundle or context.root / "eval_bundle")
    tasks = [task for task in bundle if task.label in context.chosen([task.label for task in bundle])]

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        return evaluate_core(
            context.model,
            context.tokenizer,
            tasks,
            max_per_task=cfg.max_questions,
            answer_bpb=cfg.answer_bpb,
            rank=rank(),
            world_size=world_size(),
            log=log,
            progress=progress,
        )

    settings = {"max_per_task": cfg.max_questions, "tasks": {task.label: task.fingerprint() for task in tasks}}
    return EvalTask(settings | context.measures, run)


def lm_eval(context: EvalContext) -> EvalTask:
    """Tasks of EleutherAI's lm-evaluation-harness (the extra lm-eval), its own or those below `eval.include_path`."""
    cfg = context.cfg.eval
    if not cfg.tasks:
        raise ValueError("eval=lm_eval needs tasks; give eval.tasks=[arc_easy] or the like, as the harness names them")
    settings: dict[str, Any] = {
        "include_path": cfg.include_path,
        "num_fewshot": cfg.num_fewshot,
        "limit": cfg.max_questions,
        "chat": cfg.as_chat,
        "max_new_tokens": cfg.max_new_tokens,
    }

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        # Requests are logged as they are answered; samples, the records of other evaluations, are drawn from them.
        requests = None if log.path is None else ExampleLog(log.path.with_name(REQUESTS), log.config)
        found = run_harness(
            context.model,
            context.tokenizer,
            context.engine(),
            cfg.tasks or (),
            **settings,
            batch_size=cfg.batch_size,
            seed=context.cfg.seed,
            offline=context.cfg.offline,
            answers=requests,
            progress=progress,
        )
        judged = [record for record in found.records if record["correct"] is not None]
        log.append([record for record in judged if record["id"] not in log.records])
        return found

    return EvalTask(settings | {"tasks": list(cfg.tasks), "seed": context.cfg.seed}, run)


def tokenizer(context: EvalContext) -> EvalTask:
    """Bytes a token against other vocabularies, on texts of several domains and on the data's own."""
    shards = prepare_text(context.data, context.cfg.offline, context.cfg.outputs)

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        own = {"train": first_texts(shards.train, TEXT_CHARS), "val": first_texts([shards.val], TEXT_CHARS)}
        return evaluate_compression(context.tokenizer, sample_texts() | own, progress=progress)

    content = combined_fingerprint({file.name: file for file in (*shards.train, shards.val)})
    return EvalTask({"text_chars": TEXT_CHARS, "content": content}, run)


def bpb(context: EvalContext) -> EvalTask:
    """Bits per byte on the validation shard and on each of `eval.texts`."""
    cfg = context.cfg.eval
    val = prepare_text(context.data, context.cfg.offline, context.cfg.outputs).val
    column, outputs = context.data.column, context.cfg.outputs
    sources = {val.name: [val]} | {
        name: text_files(name, Path(path), column, outputs) for name, path in cfg.texts.items()
    }
    length = context.model.config.sequence_len
    batch_rows = max(1, min(32, 16_384 // length))
    most = max(1, cfg.val_tokens // (batch_rows * length)) * batch_rows * length

    def run(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin = time.perf_counter()
        rows = []
        for done, (name, files) in enumerate(sources.items(), start=1):
            batches = list(read_once(files, context.tokenizer, batch_rows, length, most))
            tokens = sum(batch.inputs.numel() for batch in batches)
            if not tokens:
                raise ValueError(
                    f"the text {name} holds nothing but empty documents, so there is nothing to measure; give another "
                    "(eval.texts, or the data's validation file)"
                )
            if tokens < most:
                rows_held = "in whole rows" if tokens >= length else "in one short row"
                logging.getLogger(__name__).info(
                    "%s has only %s tokens %s; all of them are measured", name, f"{tokens:,}", rows_held
                )
            value = evaluate_bpb(context.model, batches, context.tokenizer.token_bytes())
            rows.append(MetricRow(task=name, metric="bpb", value=value, n=tokens))
            if progress is not None:
                progress(done, len(sources))
        seconds = time.perf_counter() - begin
        return Evaluation(records=[], rows=rows, seconds=seconds, num_answered=sum(row.n for row in rows))

    content = {name: combined_fingerprint({file.name: file for file in files}) for name, files in sources.items()}
    return EvalTask({"val_tokens": cfg.val_tokens, "texts": dict(cfg.texts), "content": content}, run)


EVAL_TASKS: dict[EvalName, Callable[[EvalContext], EvalTask]] = {
    EvalName.bpb: bpb,
    EvalName.core: core,
    EvalName.chat: chat,
    EvalName.scienceqa: scienceqa,
    EvalName.arc: arc,
    EvalName.recall: recall,
    EvalName.tokenizer: tokenizer,
    EvalName.checks: checks,
    EvalName.lm_eval: lm_eval,
}


def as_json(value: Any) -> Any:
    """Return a value as JSON would give it back."""
    return json.loads(json.dumps(value, default=str))
