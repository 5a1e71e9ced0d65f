"""Ask a model multiple-choice questions, by likelihood and in its own words, and say how far to trust the answers.

Each question is asked twice: which of its letters the model finds most likely (`multiple_choice.py`; no parsing), and
what it writes, greedily, read by two extractors (`answers.py`). A response from which no letter can be read is wrong,
not left out: accuracy over *asked* is the headline metric, and accuracy over *scored* is reported next to it, with
chance, the majority letter, and the interval. The questions may be those of ScienceQA or of any task whose
conversations have the same extra fields.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from nanochat_pl.engine import Engine
from nanochat_pl.eval.answer_bpb import answer_rows
from nanochat_pl.eval.answer_scoring import Answer, answer_of_text, score_answers, warn_of_unmeasured
from nanochat_pl.eval.answers import explanation_agrees, explanation_of, names_own_choice, regex_letter, rouge_l
from nanochat_pl.eval.ask import Answered, Progress, Question, QuestionLoop, answer_greedily, warn_of_long
from nanochat_pl.eval.multiple_choice import ANSWER_STEM, letter_baseline, letter_tokens, majority_letter, score_letters
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow, mean_row, proportion_row
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.answers import strict_letter
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["ScienceQARecord", "bertscore_row", "evaluate_scienceqa", "summarize"]


class ScienceQARecord(TypedDict):
    """One answered question, a line of `examples.jsonl`. (The log adds `config`, `answer_bpb` its `AnswerFields`.)"""

    id: str
    task: str
    prompt: str
    choices: list[str]
    letters: list[str]
    expected: str
    """The right letter."""
    reference: str
    """The explanation that comes with the question; empty where there is none."""
    subject: str
    topic: str
    grade: str
    has_image: bool
    letter_logprobs: dict[str, float]
    """Log-probability of each letter as the next token, nats."""
    likely_letter: str
    """The most likely letter; the first of equals."""
    output: str
    strict_letter: str | None
    regex_letter: str | None
    correct: bool
    """`strict_letter` is the expected one."""
    likely_correct: bool
    prompt_tokens: int
    prompt_cut: bool
    """The prompt was too long for the model's positions and lost its beginning."""
    output_tokens: int
    truncated: bool
    """Generation ended at `max_new_tokens` or the end of the context, not at a stop token."""
    rouge_l: float | None
    """ROUGE-L of the written explanation; 0 where none was written, None where there is no reference."""
    explanation_agrees: bool | None
    names_own_choice: bool | None


def evaluate_scienceqa(
    model: GPT,
    tokenizer: Tokenizer,
    engine: Engine,
    conversations: Iterable[Question],
    *,
    task: str = "scienceqa",
    max_new_tokens: int = 128,
    max_prompt_tokens: int | None = None,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    answer_bpb: bool = True,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer every question by likelihood and by greedy generation; return `ScienceQARecord`s and metrics.

    Args:
        engine: An engine of the same model, whose stop ids hold `<|assistant_end|>`.
        conversations: Each has `messages` (the last one the assistant's, which is not shown to the model), `id`,
            `letters`, `answer` (a letter), `choices`; optional `subject`, `topic`, `grade`, `has_image`, `solution`.
        max_prompt_tokens: A longer prompt loses its beginning, see `ask.render_prompts`; None = as far as the model's
            positions reach.
        max_batch_tokens: As in `score_letters`.
        answer_bpb: Also measure letter and text of each choice after "The correct answer is" (`answer_bpb.py`): the
            question is read once more, and each choice once.
        seed: For the bootstrap; greedy answers do not depend on it.
        log: Answers already given, and where to put new ones; None = memory only.

    Raises:
        ValueError: No questions, or a question without id, letters or choices.
    """
    loop = QuestionLoop(conversations, log, progress)
    _check_questions(loop.questions)
    tokens = letter_tokens(tokenizer, {letter for question in loop.questions for letter in question["letters"]})

    def answer(chunk: Sequence[Question]) -> list[dict[str, Any]]:
        written = answer_greedily(
            tokenizer,
            engine,
            chunk,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        ids, letters = [answered.prompt.ids for answered in written], [question["letters"] for question in chunk]
        scores = score_letters(model, ids, letters, tokens, max_batch_tokens)
        records = [dict(_judge(task, *answered)) for answered in zip(written, scores, strict=True)]
        if answer_bpb:
            answers = [_answers(tokenizer, question) for question in chunk]
            fields = score_answers(model, tokenizer, ids, answers, max_batch_tokens)
            records = [{**record, **own} for record, own in zip(records, fields, strict=True)]
        return records

    records = loop.run(answer)
    warn_of_unmeasured(task, records)
    warn_of_long(task, records, model.config.sequence_len)
    return loop.evaluation(records, summarize(records, task=task, seed=seed))


def summarize(records: Sequence[Mapping[str, Any]], *, task: str = "scienceqa", seed: int = 0) -> list[MetricRow]:
    """Return all metrics of the records.

    They are `loglikelihood/accuracy`; for each extractor E of strict and letter_regex `E/accuracy_over_asked`,
    `E/accuracy_over_scored` and `E/parse_rate`; `explanation/rouge_l` (over questions with a reference),
    `explanation/agrees_with_answer` and `explanation/names_own_choice` (over responses that can be judged);
    `truncation_rate`, `prompt_cut_rate`, `output_tokens` and `prompt_tokens`; `answer_bpb.answer_rows`, where answers
    were measured. The accuracies by likelihood and by the
    strict extractor are also given by subject, grade, topic, number of choices and image. The majority letter is that
    of all records, also within a group.

    Raises:
        ValueError: No records.
    """
    if not records:
        raise ValueError("there are no records to summarize")
    majority = majority_letter(records)
    overall = letter_baseline(records, majority)
    rows = [
        proportion_row(
            task,
            "loglikelihood/accuracy",
            [r["likely_correct"] for r in records],
            baseline=overall,
            bootstrap_seed=seed,
        )
    ]
    for name, key in (("strict", "strict_letter"), ("letter_regex", "regex_letter")):
        correct = [r[key] == r["expected"] for r in records]
        scored = [right for right, r in zip(correct, records) if r[key] is not None]
        rows += [
            proportion_row(task, f"{name}/accuracy_over_asked", correct, baseline=overall, bootstrap_seed=seed),
            proportion_row(task, f"{name}/accuracy_over_scored", scored, baseline=overall, bootstrap_seed=seed),
            proportion_row(task, f"{name}/parse_rate", [r[key] is not None for r in records], bootstrap_seed=seed),
        ]
    rows += [
        mean_row(task, "explanation/rouge_l", [r["rouge_l"] for r in records if r["rouge_l"] is not None], seed=seed),
        *(
            proportion_row(task, f"explanation/{metric}", [r[key] for r in records if r[key] is not None])
            for metric, key in (("agrees_with_answer", "explanation_agrees"), ("names_own_choice", "names_own_choice"))
        ),
        proportion_row(task, "truncation_rate", [r["truncated"] for r in records]),
        proportion_row(task, "prompt_cut_rate", [r["prompt_cut"] for r in records]),
        mean_row(task, "output_tokens", [r["output_tokens"] for r in records], seed=seed),
        mean_row(task, "prompt_tokens", [r["prompt_tokens"] for r in records], seed=seed),
        *answer_rows(records, task, seed),
    ]
    for by, part_of in _BREAKDOWNS.items():
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            parts.setdefault(part_of(record), []).append(record)
        for part in sorted(parts, key=_natural):
            baseline, group = letter_baseline(parts[part], majority), {by: part}
            for metric, key in (
                ("loglikelihood/accuracy", "likely_correct"),
                ("strict/accuracy_over_asked", "correct"),
            ):
                holds = [r[key] for r in parts[part]]
                rows.append(proportion_row(task, metric, holds, baseline=baseline, group=group))
    return rows


def bertscore_row(
    records: Sequence[Mapping[str, Any]], model: str, *, task: str = "scienceqa", seed: int = 0
) -> MetricRow:
    """Return `explanation/bertscore`: the mean F1 of BERTScore (Zhang et al., 2020) of explanations with a reference.

    An answer without an explanation scores 0, as for ROUGE-L. `model` is the folder of a language model in Hugging
    Face's form; nothing is fetched.

    Raises:
        ValueError: transformers is not installed.
    """
    try:
        import torch
        from torchmetrics.functional.text.bert import bert_score
    except ImportError:
        raise ValueError("BERTScore needs transformers: pip install transformers, or set eval.bertscore=null") from None
    found = [(explanation_of(r["output"]), r["reference"]) for r in records if r.get("reference")]
    pairs = [(explanation, reference) for explanation, reference in found if explanation]
    scores = [0.0] * (len(found) - len(pairs))
    if pairs:
        result = bert_score([p for p, _ in pairs], [r for _, r in pairs], model_name_or_path=model, truncation=True)
        scores += torch.as_tensor(result["f1"]).reshape(-1).tolist()
    return mean_row(task, "explanation/bertscore", scores, seed=seed)


_NOT_GIVEN = "not given"
_BREAKDOWNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "subject": lambda r: r["subject"] or _NOT_GIVEN,
    "grade": lambda r: r["grade"] or _NOT_GIVEN,
    "topic": lambda r: r["topic"] or _NOT_GIVEN,
    "num_choices": lambda r: str(len(r["letters"])),
    "image": lambda r: "with image" if r["has_image"] else "without image",
}


def _natural(name: str) -> tuple[bool, list[str | int]]:
    """Sort `grade2` before `grade10`, and what is not given last."""
    pieces = re.split(r"(\d+)", name)
    return name == _NOT_GIVEN, [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def _check_questions(questions: Sequence[Question]) -> None:
    for index, question in enumerate(questions):
        missing = [key for key in ("messages", "letters", "answer", "choices") if not question.get(key)]
        if missing:
            raise ValueError(
                f"question {index} has no {', '.join(missing)}: this evaluation is for multiple-choice tasks "
                "such as tasks.scienceqa"
            )
        if question["answer"] not in question["letters"] or len(question["letters"]) != len(question["choices"]):
            raise ValueError(
                f"question {index} has the answer {question['answer']!r}, the letters {question['letters']} and "
                f"{len(question['choices'])} choices: a letter for each choice is needed, the answer among them"
            )


def _answers(tokenizer: Tokenizer, question: Question) -> list[Answer]:
    """Return letter and text of each choice as the tutor words them (`tasks.scienceqa.format_answer`), the right first.

    Differs from training where an explanation follows: a mark at the end of a choice may share a token with the line
    feeds behind it there.
    """
    pairs = list(zip(question["letters"], question["choices"], strict=True))
    pairs.sort(key=lambda pair: pair[0] != question["answer"])
    return [answer_of_text(tokenizer, f"{ANSWER_STEM}{letter}. {choice}", ANSWER_STEM) for letter, choice in pairs]


def _judge(task: str, answered: Answered, letter_logprobs: dict[str, float]) -> ScienceQARecord:
    question, prompt, completion, output = answered
    letters, choices, expected = list(question["letters"]), list(question["choices"]), question["answer"]
    likely = max(letters, key=letter_logprobs.__getitem__)
    letter = strict_letter(output, letters)
    reference, explanation = question.get("solution") or "", explanation_of(output)
    agrees = own = None
    if letter is not None:
        chosen = choices[letters.index(letter)]
        own = names_own_choice(output, letter, chosen)
        if explanation is not None:
            agrees = explanation_agrees(explanation, chosen, [choice for choice in choices if choice != chosen])
    return ScienceQARecord(
        id=str(question["id"]),
        task=task,
        prompt=next(m["content"] for m in question["messages"] if m["role"] == "user"),
        choices=choices,
        letters=letters,
        expected=expected,
        reference=reference,
        subject=question.get("subject") or "",
        topic=question.get("topic") or "",
        grade=question.get("grade") or "",
        has_image=bool(question.get("has_image")),
        letter_logprobs=letter_logprobs,
        likely_letter=likely,
        output=output,
        strict_letter=letter,
        regex_letter=regex_letter(output),
        correct=letter == expected,
        likely_correct=likely == expected,
        prompt_tokens=len(prompt.ids),
        prompt_cut=prompt.cut,
        output_tokens=len(completion.tokens),
        truncated=completion.stop_token is None,
        rouge_l=(rouge_l(explanation, reference) if explanation else 0.0) if reference else None,
        explanation_agrees=agrees,
        names_own_choice=own,
    )
