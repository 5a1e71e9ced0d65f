"""Questions for a chat model: what `evaluate.py` asks, worded as in training, and the settings that count.

Each evaluation is a function of one form: it looks its questions up (a fault is found here, before anything is asked)
and returns what is left to do. `measures.py` has those that are no chats, and the list of all.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_pl.config.checks import check_answer_length
from nanochat_pl.config.inputs import prepare_root
from nanochat_pl.config.schema import DataConfig, DataSource, EvalConfig, EvalName, EvaluateConfig, TrainConfig
from nanochat_pl.config.targets import make
from nanochat_pl.engine import Engine
from nanochat_pl.eval.chat import evaluate_chat, with_ids
from nanochat_pl.eval.chatcore import CHATCORE_BASELINES, chatcore
from nanochat_pl.eval.recall import evaluate_recall
from nanochat_pl.eval.results import Evaluation, ExampleLog, config_hash
from nanochat_pl.eval.scienceqa import bertscore_row, evaluate_scienceqa
from nanochat_pl.tasks.arc import ARC, SUBSETS
from nanochat_pl.tasks.base import Task
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.humaneval import HumanEval
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.scienceqa import format_answer, format_question
from nanochat_pl.tasks.spelling import SpellingBee

__all__ = ["Measure", "Progress", "Subject", "arc", "chat", "chosen", "plain", "recall", "scienceqa"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model in question and what it is to be asked with."""

    model: Any
    tokenizer: Any
    data: DataConfig
    tasks: Mapping[str, Any]
    """Of the mixture, whose wording of a question is the one the model knows."""
    cfg: EvaluateConfig | TrainConfig

    def engine(self, context_tokens: int | None = None) -> Engine:
        """Make an engine that stops where an answer ends; `context_tokens` as of `Engine`."""
        stops = {self.tokenizer.special_id("<|assistant_end|>"), self.tokenizer.bos_id}
        dtype, penalties = str(self.cfg.engine.dtype), self.cfg.eval.penalties()
        return Engine(
            self.model,
            stops,
            tokenizer=self.tokenizer,
            dtype=dtype,
            penalties=penalties,
            context_tokens=context_tokens,
        )

    def answering(self, name: EvalName) -> dict[str, Any]:
        """Give what an evaluation takes that generates answers in full.

        Raises:
            ValueError: no room is left for a question.
        """
        cfg = self.cfg.eval
        check_answer_length(name, cfg.max_new_tokens, self.model.config.sequence_len)
        room = self.model.config.rotary_rows - cfg.max_new_tokens
        common = {"max_new_tokens": cfg.max_new_tokens, "max_prompt_tokens": room, "batch_size": cfg.batch_size}
        return common | {"seed": self.cfg.seed}

    @property
    def root(self) -> Path:
        """The folder with the data sets, made or looked for if need be."""
        prepare_root(self.data)
        return Path(self.data.root or "")


@dataclass(frozen=True)
class Measure:
    """An evaluation whose questions are found."""

    settings: Mapping[str, Any]
    """What the answers depend on, beside checkpoint, tokenizer, data and number formats."""
    answer: Callable[[ExampleLog, Progress | None], Evaluation]


def scienceqa(subject: Subject) -> Measure:
    """ScienceQA's questions, in the very form the training task gives them."""
    cfg, split = subject.cfg.eval, subject.cfg.eval.split
    questions, common = _first(_tutor(subject), cfg), subject.answering(EvalName.scienceqa)
    if cfg.bertscore is not None and not Path(cfg.bertscore).is_dir():
        raise FileNotFoundError(f"eval.bertscore={cfg.bertscore} is no folder; give that of a local model, or null")

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        found = evaluate_scienceqa(
            subject.model,
            subject.tokenizer,
            subject.engine(subject.model.config.rotary_rows),
            questions,
            **common,
            log=log,
            progress=progress,
        )
        if cfg.bertscore is not None:
            found.rows.append(bertscore_row(found.records, cfg.bertscore, seed=subject.cfg.seed))
        return found

    return Measure(_asked(subject, questions) | {"split": split, "tasks": plain(subject.tasks)}, answer)


def arc(subject: Subject) -> Measure:
    """ARC's questions in the tutor's wording: what a science tutor knows beyond the set it was trained on."""
    cfg, root = subject.cfg.eval, subject.root
    persona = [message for message in _tutor(subject)[0]["messages"] if message["role"] == "system"]
    fetched = {"fetch": subject.data.fetch, "offline": subject.cfg.offline}
    asked: dict[str, list[Any]] = {}
    for subset in chosen(cfg, SUBSETS):
        task = ARC(root / "arc", subset, cfg.split, **fetched)
        asked[subset] = [_as_tutor(question, persona, subset) for question in _first(task, cfg)]
    common = subject.answering(EvalName.arc)

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin, engine = time.perf_counter(), subject.engine(subject.model.config.rotary_rows)
        records, rows = [], []
        for subset, questions in asked.items():
            one = evaluate_scienceqa(
                subject.model, subject.tokenizer, engine, questions, task=subset, **common, log=log
            )
            records += one.records
            rows += one.rows
            if progress is not None:
                progress(len(records), sum(map(len, asked.values())))
        return Evaluation(
            records=records, rows=rows, seconds=time.perf_counter() - begin, num_answered=log.num_appended
        )

    settings = _asked(subject, asked) | {"split": cfg.split, "subsets": list(asked), "persona": persona}
    return Measure(settings, answer)


def _tutor(subject: Subject) -> Any:
    """Make ScienceQA as the model was trained on it, on the split to be measured."""
    data, split = subject.data, subject.cfg.eval.split
    otherwise = {"persona": None} if data.source == DataSource.microworld else {}
    spec = _known(subject, "scienceqa.ScienceQA", otherwise)
    rows = {"train": data.train_rows, "validation": data.val_rows, "test": data.test_rows}[split]
    spec |= {"path": str(subject.root / data.scienceqa), "rows": rows, "shuffle_choices": False, "curriculum": False}
    spec |= {"hub": data.hub_scienceqa, "offline": subject.cfg.offline, "formatted_dir": data.formatted_dir}
    return make(spec)


def _as_tutor(question: Mapping[str, Any], persona: list[Any], subset: str) -> dict[str, Any]:
    """Word a question of ARC as ScienceQA's are."""
    choices = question["choices"]
    right = question["letters"].index(question["answer"])
    messages = [
        *persona,
        {"role": "user", "content": format_question(question["question"], choices)},
        {"role": "assistant", "content": format_answer(choices, right)},
    ]
    letters = [chr(65 + i) for i in range(len(choices))]
    own = {"id": f"{subset}/{question['id']}", "letters": letters, "answer": letters[right], "choices": choices}
    return {"messages": messages, **own}


def recall(subject: Subject) -> Measure:
    """Facts of the embedded world without choices, in the form of the training task."""
    spec = _known(subject, "recall.Recall") | {"path": str(subject.root / "recall")}
    questions, common = _first(make(spec), subject.cfg.eval), subject.answering(EvalName.recall)

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        return evaluate_recall(
            subject.tokenizer,
            subject.engine(subject.model.config.rotary_rows),
            questions,
            **common,
            log=log,
            progress=progress,
        )

    settings = _asked(subject, questions) | {"split": subject.cfg.eval.split, "tasks": plain(subject.tasks)}
    return Measure(settings, answer)


CHAT_TASKS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    "ARC-Easy": (ARC, {"path": "arc", "subset": "ARC-Easy"}),
    "ARC-Challenge": (ARC, {"path": "arc", "subset": "ARC-Challenge"}),
    "MMLU": (MMLU, {"path": "mmlu"}),
    "GSM8K": (GSM8K, {"path": "gsm8k"}),
    "HumanEval": (HumanEval, {"path": "humaneval"}),
    "SpellingBee": (SpellingBee, {"path": "words_alpha.txt", "size": 256}),
}
"""The tasks of ChatCORE, in the order asked, where they lie below data.root, and how many words are spelled."""


def chat(subject: Subject) -> Measure:
    """The tasks of ChatCORE, or those of them that `eval.tasks` names, all in one log."""
    cfg, root = subject.cfg.eval, subject.root
    asked: dict[str, tuple[Any, list[Mapping[str, Any]]]] = {}
    for name in chosen(cfg, list(CHAT_TASKS)):
        kind, arguments = CHAT_TASKS[name]
        options = {**arguments, "path": root / arguments["path"], "split": "test", "strict": cfg.strict.value}
        options |= {"sandbox": cfg.sandbox} if kind.runs_programs else {}
        options |= {"fetch": subject.data.fetch, "offline": subject.cfg.offline} if kind.on_hub else {}
        task = kind(**options)
        questions = with_ids(_first(task, cfg))
        asked[name] = task, [{**question, "id": f"{name}/{question['id']}"} for question in questions]
    common = {"max_new_tokens": cfg.max_new_tokens, "batch_size": cfg.batch_size}
    sampling = {"num_samples": cfg.num_samples, "temperature": cfg.temperature, "top_k": cfg.top_k}

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin, engine = time.perf_counter(), subject.engine(subject.model.config.rotary_rows)
        records, rows, scores = [], [], {}
        total = sum(len(questions) for _, questions in asked.values())
        for name, (task, questions) in asked.items():
            how: dict[str, Any] = {}  # the answer to a categorical question is one token: all else is room for it
            if task.kind == "generative":
                how = {"grade": task.grade, "grading_threads": task.grading_threads, **sampling, **common}
            one = evaluate_chat(
                subject.model,
                subject.tokenizer,
                engine,
                questions,
                task=name,
                kind=task.kind,
                **how,
                seed=subject.cfg.seed,
                log=log,
                progress=None if progress is None else lambda answered, _: progress(answered, total),
            )
            records += one.records
            rows += one.rows
            scores[name] = one.rows[0]
        if set(CHATCORE_BASELINES) - set(scores) <= {"SpellingBee"}:
            rows.append(chatcore(scores))
        return Evaluation(
            records=records, rows=rows, seconds=time.perf_counter() - begin, num_answered=log.num_appended
        )

    settings = _asked(subject, {name: questions for name, (_, questions) in asked.items()})
    settings |= sampling | {"tasks": list(asked), "sandbox": cfg.sandbox, "strict": cfg.strict.value}
    return Measure(settings, answer)


def _known(subject: Subject, kind: str, otherwise: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the training mixture's task of this kind, to be asked once, in order, on the split to be measured.

    Args:
        subject: whose mixture.
        kind: end of the task's `_target_`.
        otherwise: arguments where the mixture has no such task: the data's own mixture would have them.
    """
    specs = (dict(spec) for spec in subject.tasks.values() if spec)
    spec = next((spec for spec in specs if str(spec.get("_target_", "")).endswith(f".{kind}")), None)
    spec = spec or {"_target_": f"nanochat_pl.tasks.{kind}", **(otherwise or {})}
    for training_only in ("epochs", "phase", "start", "stop", "step", "at_most"):
        spec.pop(training_only, None)
    return spec | {"split": subject.cfg.eval.split}


def _first(task: Any, cfg: EvalConfig) -> list[Any]:
    return list(itertools.islice(task, cfg.max_questions))


def _asked(subject: Subject, questions: Any) -> dict[str, Any]:
    """Give the settings of all evaluations that ask; `questions` names what is asked by its content."""
    cfg = subject.cfg.eval
    return {
        "max_new_tokens": cfg.max_new_tokens,
        "max_questions": cfg.max_questions,
        "questions": config_hash({"questions": plain(questions)}),
        "long_questions": "read on",
    }


def chosen(cfg: EvalConfig, there: Sequence[str]) -> list[str]:
    """Give the tasks to ask, in their own order.

    Raises:
        ValueError: `eval.tasks` names one that is not there.
    """
    unknown = [name for name in cfg.tasks or () if name not in there]
    if unknown:
        raise ValueError(f"eval.tasks names {', '.join(unknown)}; eval={cfg.name} has {', '.join(there)}")
    return [name for name in there if not cfg.tasks or name in cfg.tasks]


def plain(value: Any) -> Any:
    """Make what JSON can say of it."""
    return json.loads(json.dumps(value, default=str))
