"""Ask a chat model the tasks that chat models are compared by: by letter where one is the answer, else in free text.

A categorical question (MMLU, ARC) is answered by the most likely of its letters as the first token of the answer: one
forward, nothing to parse. A generative one (GSM8K, HumanEval, SpellingBee) is answered through the engine, tools
included, once or several times, and the task itself grades the answers. `chatcore` is one number over the six tasks,
each scaled so that guessing is 0. (nanochat, 2025-11)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypedDict

from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.eval.answer_bpb import answer_rows
from nanochat_pl.eval.answer_scoring import (
    Answer,
    answer_of_message,
    answer_of_text,
    score_answers,
    warn_of_unmeasured,
)
from nanochat_pl.eval.ask import (
    CHUNK_ROWS,
    Progress,
    Question,
    QuestionLoop,
    RenderedPrompt,
    by_room,
    render_prompts,
    warn_of_long,
)
from nanochat_pl.eval.multiple_choice import letter_baseline, letter_tokens, majority_letter, score_letters
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow, mean_row, proportion_row
from nanochat_pl.eval.stats import Interval, weighted_sum_interval
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.answers import pass_at_k
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["CHATCORE_BASELINES", "ChatSample", "Grade", "chatcore", "evaluate_chat", "summarize_chat", "with_ids"]

CHATCORE_BASELINES = {
    "ARC-Easy": 0.25,
    "ARC-Challenge": 0.25,
    "MMLU": 0.25,
    "GSM8K": 0.0,
    "HumanEval": 0.0,
    "SpellingBee": 0.0,
}
"""The tasks of ChatCORE and what guessing scores in each (nanochat, 2025-11)."""

Grade = Callable[[Mapping[str, Any], str], bool]
"""Whether a completion answers a conversation: a task's `grade`."""


class ChatSample(TypedDict):
    """One generated answer."""

    output: str
    correct: bool
    output_tokens: int
    truncated: bool
    """Generation ended at `max_new_tokens` or the end of the context, not at a stop token."""
    tool_calls: int
    tool_errors: int


def evaluate_chat(
    model: GPT | None,
    tokenizer: Tokenizer,
    engine: Engine | None,
    conversations: Iterable[Question],
    *,
    task: str,
    kind: Literal["categorical", "generative"],
    grade: Grade | None = None,
    num_samples: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    max_new_tokens: int = 512,
    max_prompt_tokens: int | None = None,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    answer_bpb: bool = True,
    grading_threads: int = 1,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer every question; return records and the rows of `summarize_chat`.

    A record has `id`, `task`, `prompt`, `expected`, `output`, `correct`, `subject`, `prompt_tokens`, `prompt_cut`,
    `output_tokens`, `truncated`, `tool_calls`, `tool_errors`. A categorical one also has `letters`, `choices` and
    `letter_logprobs` (nats, over the whole vocabulary); its output is the first of the likeliest letters. A generative
    one also has `num_samples`, `num_right` and, where there are several samples, `samples` (`ChatSample`); it shows the
    first right sample, or the first of all if none is, so that `correct` says whether any was.

    Args:
        model: For the likelihood of letters; generative tasks do not use it.
        engine: Its stop ids hold `<|assistant_end|>`; categorical tasks do not use it.
        conversations: Each has `messages`, the last one the assistant's, which is not shown to the model; categorical
            ones have `letters` and `answer` (a letter). Those without an `id` get one, see `with_ids`.
        grade: Judges a generative answer; must be safe to call from `grading_threads` threads.
        top_k: Sample among this many of the likeliest tokens; None = all.
        max_prompt_tokens: A longer prompt loses its beginning, see `ask.render_prompts`; None = as far as the model's
            positions reach.
        max_batch_tokens: As in `score_letters`.
        answer_bpb: Also measure the bits per byte of the reference answers (`answer_bpb.py`). Of a generative task that
            is the assistant's message, read after its prompt: one forward a question. Of a categorical task it is the
            text of each choice, read after the question alone: a forward a question and one a choice. Among the listed
            choices, where a letter is asked for, a model has no reason to write the text.
        grading_threads: Answers graded at once: more than 1 where grading runs programs.
        seed: For sampling and the bootstrap. Each sample draws from a stream named by seed, question and number, so
            that neither an interruption nor the other questions change it.
        log: Answers already given, and where to put new ones; None = memory only.

    Raises:
        ValueError: No questions; a question that is not of this kind; a setting without effect for this kind.
    """
    chunk_rows = max(1, CHUNK_ROWS // max(1, num_samples))
    loop = QuestionLoop(with_ids(conversations), log, progress, chunk_rows)

    def render(chunk: Sequence[Question], answer_tokens: int, context_tokens: int) -> list[RenderedPrompt]:
        return render_prompts(
            tokenizer,
            chunk,
            context_tokens=context_tokens,
            max_new_tokens=answer_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )

    if kind == "categorical":
        if grade is not None or num_samples != 1 or temperature or top_k is not None:
            raise ValueError(
                f"{task}: grade, num_samples, temperature and top_k have no effect on kind=categorical, whose answer "
                "is the likeliest letter; leave them out, or ask with kind=generative"
            )
        _check_categorical(task, loop.questions)
        tokens = letter_tokens(tokenizer, {letter for q in loop.questions for letter in q["letters"]}, stem="")
        assert model is not None
        config = model.config

        def answer(chunk: Sequence[Question]) -> list[dict[str, Any]]:
            prompts = render(chunk, tokens.num_tokens, config.rotary_rows)
            letters, ids = [question["letters"] for question in chunk], [prompt.ids for prompt in prompts]
            scores = score_letters(model, ids, letters, tokens, max_batch_tokens)
            return [_judge_letter(task, *answered) for answered in zip(chunk, prompts, scores, strict=True)]

    elif kind == "generative":
        _check_generative(task, grade, num_samples, temperature, grading_threads)
        assert engine is not None
        config = engine.model.config

        def answer(chunk: Sequence[Question]) -> list[dict[str, Any]]:
            prompts = render(chunk, max_new_tokens, config.rotary_rows)
            requests = [
                Request(prompt.ids, max_new_tokens, temperature, top_k, seed=f"{seed}/{question['id']}/{number}")
                for question, prompt in zip(chunk, prompts, strict=True)
                for number in range(num_samples)
            ]
            lengths = [len(request.prompt) + max_new_tokens for request in requests]
            found: dict[int, Completion] = {}
            for rows, at_once in by_room(lengths, config.sequence_len, batch_size):
                found.update(zip(rows, engine.run([requests[row] for row in rows], batch_size=at_once)))
            completions = [found[row] for row in range(len(requests))]
            assert grade is not None
            samples = _grade_all(tokenizer, chunk, completions, grade, num_samples, grading_threads)
            return [_judge_samples(task, *answered) for answered in zip(chunk, prompts, samples, strict=True)]

    else:
        raise ValueError(f"{task}: kind={kind!r} is unknown; choose categorical or generative")

    def answer_and_measure(chunk: Sequence[Question]) -> list[dict[str, Any]]:
        records = answer(chunk)
        if model is None or not answer_bpb:
            return records
        pairs = [_reference(tokenizer, question) for question in chunk]
        prompts, answers = [prompt for prompt, _ in pairs], [own for _, own in pairs]
        fields = score_answers(model, tokenizer, prompts, answers, max_batch_tokens, max_prompt_tokens)
        return [{**record, **own} for record, own in zip(records, fields, strict=True)]

    records = loop.run(answer_and_measure)
    warn_of_long(task, records, config.sequence_len)
    warn_of_unmeasured(task, records)
    return loop.evaluation(records, summarize_chat(records, task=task, seed=seed))


def summarize_chat(records: Sequence[Mapping[str, Any]], *, task: str, seed: int = 0) -> list[MetricRow]:
    """Return all metrics of the records of one task; the first row is the task's score.

    The score is `accuracy`, or `pass@1` to `pass@n` of n samples (the unbiased estimate, with its interval over the
    questions). For categorical questions it comes with chance and the majority letter, and by subject where there are
    subjects. The other metrics are `prompt_cut_rate`, `prompt_tokens`, and for generated answers `truncation_rate`,
    `output_tokens`, `tool_calls` and `tool_error_rate` (of the answers that called a tool), over all samples; and those
    of `answer_bpb.answer_rows` where answers were measured.

    Raises:
        ValueError: No records, or answers of different numbers of samples.
    """
    if not records:
        raise ValueError(f"{task}: there are no records to summarize")
    cut = [
        proportion_row(task, "prompt_cut_rate", [r["prompt_cut"] for r in records]),
        mean_row(task, "prompt_tokens", [r["prompt_tokens"] for r in records], seed=seed),
        *answer_rows(records, task, seed),
    ]
    if "letters" in records[0]:
        return [*_letter_rows(records, task, seed), *cut]
    numbers = {r["num_samples"] for r in records}
    if len(numbers) > 1:
        raise ValueError(f"{task}: the records have {sorted(numbers)} samples a question; pass@k needs as many of each")
    (n,) = numbers
    right = [r["num_right"] for r in records]
    score = [
        _share_row(task, "accuracy" if n == 1 else f"pass@{k}", [pass_at_k(n, count, k) for count in right], seed)
        for k in range(1, n + 1)
    ]
    samples = [sample for r in records for sample in r["samples"] or [r]]
    return [
        *score,
        proportion_row(task, "truncation_rate", [s["truncated"] for s in samples]),
        mean_row(task, "output_tokens", [s["output_tokens"] for s in samples], seed=seed),
        mean_row(task, "tool_calls", [s["tool_calls"] for s in samples], seed=seed),
        proportion_row(task, "tool_error_rate", [s["tool_errors"] > 0 for s in samples if s["tool_calls"]]),
        *cut,
    ]


def _share_row(task: str, metric: str, shares: Sequence[float], seed: int) -> MetricRow:
    """Return the row of a mean of shares: Wilson's interval where each is 0 or 1, else the bootstrap's.

    A bootstrap of nothing but zeros would claim that the next question certainly fails too.
    """
    if set(shares) <= {0.0, 1.0}:
        return proportion_row(task, metric, [share == 1.0 for share in shares], bootstrap_seed=seed)
    return mean_row(task, metric, shares, seed=seed)


def _letter_rows(records: Sequence[Mapping[str, Any]], task: str, seed: int) -> list[MetricRow]:
    majority = majority_letter(records)

    def row(part: Sequence[Mapping[str, Any]], **named: Any) -> MetricRow:
        baseline = letter_baseline(part, majority)
        return proportion_row(task, "accuracy", [r["correct"] for r in part], baseline=baseline, **named)

    subjects = sorted({r["subject"] for r in records} - {""})
    return [
        row(records, bootstrap_seed=seed),
        *(row([r for r in records if r["subject"] == name], group={"subject": name}) for name in subjects),
    ]


def chatcore(results: Mapping[str, MetricRow]) -> MetricRow:
    """Return ChatCORE: the mean of (score - base) / (1 - base), 0 = guessing, 1 = all right.

    The row's task is `ChatCORE` over all six tasks of `CHATCORE_BASELINES`, and `ChatCORE-5` over the five without
    SpellingBee, as nanochat counts since 2026-07: the two are not comparable. `baseline` names the tasks taken, with
    their bases. The interval recovers the tasks' variances from their own intervals (Zou and Donner, 2008), with
    questions and tasks taken as independent; it is None if a task has none.

    Args:
        results: The score of each task by its name in `CHATCORE_BASELINES`; other tasks are ignored.

    Raises:
        ValueError: One of the five is missing, or has no value.
    """
    bases = {name: base for name, base in CHATCORE_BASELINES.items() if name in results}
    without = [name for name in CHATCORE_BASELINES if name != "SpellingBee" and name not in bases]
    rows = {name: results[name] for name in bases}
    values = {name: row.value for name, row in rows.items() if row.value is not None}
    without += [name for name in bases if name not in values]
    if without:
        raise ValueError(
            f"ChatCORE needs a score of {', '.join(without)}: it is the mean over all of its tasks; evaluate them too"
        )
    value = sum((values[name] - base) / (1 - base) for name, base in bases.items()) / len(bases)
    intervals = {name: row.interval for name, row in rows.items() if row.interval is not None}
    interval = None
    if len(intervals) == len(bases):
        parts = [(1 / (1 - base) / len(bases), values[name], intervals[name]) for name, base in bases.items()]
        around = weighted_sum_interval(parts)
        offset = value - sum(weight * score for weight, score, _ in parts)
        interval = Interval(around.low + offset, around.high + offset, around.level)
    return MetricRow(
        task="ChatCORE" if len(bases) == len(CHATCORE_BASELINES) else f"ChatCORE-{len(bases)}",
        metric="chatcore_metric",
        value=value,
        n=sum(row.n for row in rows.values()),
        interval=interval,
        baseline=bases,
    )


def with_ids(conversations: Iterable[Question]) -> list[Question]:
    """Return the conversations, those without an `id` with one that another run finds again: a hash of their messages.

    The id of the second of equal conversations ends in `-2`, that of the third in `-3`.
    """
    questions: list[Question] = []
    seen: Counter[str] = Counter()
    for question in conversations:
        if not str(question.get("id") or ""):
            text = json.dumps(question.get("messages"), sort_keys=True, ensure_ascii=False, default=str)
            key = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
            seen[key] += 1
            question = {**question, "id": key if seen[key] == 1 else f"{key}-{seen[key]}"}
        questions.append(question)
    return questions


def _check_categorical(task: str, questions: Sequence[Question]) -> None:
    for question in questions:
        letters, answer = question.get("letters") or [], question.get("answer")
        if answer not in letters or len(set(letters)) < max(2, len(letters)):
            raise ValueError(
                f"{task}, question {question['id']}: the answer {answer!r} and the letters {list(letters)} make no "
                "choice: two different letters or more are needed, the answer among them; ask tasks that have none "
                "with kind=generative"
            )


def _check_generative(
    task: str, grade: Grade | None, num_samples: int, temperature: float, grading_threads: int
) -> None:
    if grade is None:
        raise ValueError(f"{task}: kind=generative needs grade, the task's own, to tell right answers from wrong ones")
    if num_samples < 1 or grading_threads < 1:
        raise ValueError(f"{task}: num_samples={num_samples} and grading_threads={grading_threads} must be at least 1")
    if num_samples > 1 and not temperature:
        raise ValueError(
            f"{task}: num_samples={num_samples} at temperature=0 would give {num_samples} times the same answer; set a "
            "temperature such as 0.8, or num_samples=1"
        )


def _grade_all(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    completions: Sequence[Completion],
    grade: Grade,
    num_samples: int,
    grading_threads: int,
) -> list[list[ChatSample]]:
    """Grade the completions, `num_samples` of each question in a row, and return each question's samples."""
    repeated = [question for question in questions for _ in range(num_samples)]
    outputs = [tokenizer.decode(completion.tokens) for completion in completions]
    if grading_threads == 1:
        grades = list(map(grade, repeated, outputs))
    else:
        with ThreadPoolExecutor(grading_threads) as pool:
            grades = list(pool.map(grade, repeated, outputs))
    samples = [
        ChatSample(
            output=output,
            correct=bool(right),
            output_tokens=len(completion.tokens),
            truncated=completion.stop_token is None,
            tool_calls=completion.tool_calls,
            tool_errors=completion.tool_errors,
        )
        for output, completion, right in zip(outputs, completions, grades, strict=True)
    ]
    return [samples[start : start + num_samples] for start in range(0, len(samples), num_samples)]


def _reference(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[Answer]]:
    """Return a prompt and the answers to be measured after it, the right one first.

    With choices it is the question without their list, each choice a message of its own; without, the conversation. An
    answer that begins with the question, as HumanEval's with the function to be completed, is measured from its end on.
    """
    *before, last = question["messages"]
    conversations = [question]
    if question.get("letters") and question.get("choices") and question.get("question"):
        asked = [*before[:-1], {"role": "user", "content": question["question"]}]
        pairs = sorted(
            zip(question["letters"], question["choices"], strict=True), key=lambda pair: pair[0] != question["answer"]
        )
        conversations = [{"messages": [*asked, {**last, "content": choice}]} for _, choice in pairs]
    prompt = tokenizer.render_for_completion(conversations[0], max_tokens=2**31)
    asked_again = before[-1]["content"]
    if conversations == [question] and isinstance(last["content"], str) and last["content"].startswith(asked_again):
        return prompt, [answer_of_text(tokenizer, last["content"], asked_again)]
    return prompt, [answer_of_message(tokenizer, conversation) for conversation in conversations]


def _judge_letter(task: str, question: Question, prompt: RenderedPrompt, logprobs: dict[str, float]) -> dict[str, Any]:
    likely = max(question["letters"], key=logprobs.__getitem__)
    return {
        **_question_fields(task, question, prompt),
        "letters": list(question["letters"]),
        "choices": list(question.get("choices") or []),
        "letter_logprobs": logprobs,
        "output": likely,
        "correct": likely == question["answer"],
        "output_tokens": 1,
        "truncated": False,
        "tool_calls": 0,
        "tool_errors": 0,
    }


def _judge_samples(task: str, question: Question, prompt: RenderedPrompt, samples: list[ChatSample]) -> dict[str, Any]:
    shown = next((sample for sample in samples if sample["correct"]), samples[0])
    return {
        **_question_fields(task, question, prompt),
        **shown,
        "num_samples": len(samples),
        "num_right": sum(sample["correct"] for sample in samples),
        "samples": samples if len(samples) > 1 else [],
    }


def _question_fields(task: str, question: Question, prompt: RenderedPrompt) -> dict[str, Any]:
    *before, last = question["messages"]
    expected = question.get("answer")
    if expected is None:  # the assistant's content, the text of its tool calls included
        content = last["content"]
        expected = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return {
        "id": str(question["id"]),
        "task": task,
        "prompt": before[-1]["content"],
        "expected": str(expected),
        "subject": question.get("subject") or "",
        "prompt_tokens": len(prompt.ids),
        "prompt_cut": prompt.cut,
    }
