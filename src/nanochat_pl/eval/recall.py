"""Ask for facts without offering choices: did the model learn them, or only how to point at letters?

The question stands alone, the answer is greedy, and it counts only if it is the expected text after
`answers.recalled_answer` has taken off case, outer punctuation, a leading article and a leading "The answer is"; the
expected text goes through the same.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat_pl.engine import Completion
from nanochat_pl.eval.answers import recalled_answer
from nanochat_pl.eval.prompts import Prompt, generate_greedily, render_prompts, say_lengths
from nanochat_pl.eval.results import Evaluation, ExampleLog, mean_row, proportion_row

__all__ = ["evaluate_recall"]

_CHUNK_ROWS = 256


def evaluate_recall(
    tokenizer: Any,
    engine: Any,
    conversations: Sequence[Mapping[str, Any]],
    *,
    task: str = "recall",
    max_new_tokens: int = 32,
    max_prompt_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer every question greedily; return records and the rows `exact_match`, `truncation_rate` and `output_tokens`.

    Args:
        tokenizer: The tokenizer saved with the model.
        engine: An `Engine` whose stop ids hold `<|assistant_end|>`.
        conversations: Each with `messages` (the last one the assistant's, not shown), `id` and `answer` (text).
        task, max_new_tokens, max_prompt_tokens, batch_size, seed, log, progress: As in `evaluate_scienceqa`.

    Raises:
        ValueError: No questions, or one without id or answer.
    """
    started = time.perf_counter()
    log = log or ExampleLog()
    questions = list(conversations)
    chunks = log.pending(questions, _CHUNK_ROWS)
    for index, question in enumerate(questions):
        if not recalled_answer(str(question.get("answer") or "")):
            raise ValueError(
                f"question {index} has no `answer` text: this evaluation is for tasks such as tasks.recall"
            )
    for chunk in chunks:
        prompts = render_prompts(
            tokenizer,
            chunk,
            context_tokens=engine.model.config.rotary_rows,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
        ids = [prompt.ids for prompt in prompts]
        outputs = generate_greedily(engine, ids, max_new_tokens, batch_size, seed)
        log.append(
            [
                _judge(question, tokenizer.decode(output.tokens), prompt, output)
                for question, prompt, output in zip(chunk, prompts, outputs, strict=True)
            ]
        )
        if progress is not None:
            progress(len(log.records), len(questions))
    records = log.in_order(questions)
    say_lengths(task, records, engine.model.config.sequence_len)
    rows = [
        proportion_row(
            task, "exact_match", [r["correct"] for r in records], baseline=_baseline(questions), bootstrap_seed=seed
        ),
        proportion_row(task, "truncation_rate", [r["truncated"] for r in records]),
        mean_row(task, "output_tokens", [r["output_tokens"] for r in records], seed=seed),
    ]
    return Evaluation(records=records, rows=rows, seconds=time.perf_counter() - started, num_answered=log.num_appended)


def _baseline(questions: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:
    """Tell what always giving the most frequent expected answer would score."""
    answers = Counter(recalled_answer(question["answer"]) for question in questions)
    answer, count = min(answers.items(), key=lambda item: (-item[1], item[0]))
    return {"majority": count / len(questions), "majority_answer": answer}


def _judge(question: Mapping[str, Any], output: str, prompt: Prompt, completion: Completion) -> dict[str, Any]:
    return {
        "id": str(question["id"]),
        "prompt": next(m["content"] for m in question["messages"] if m["role"] == "user"),
        "expected": question["answer"],
        "subject": question.get("subject") or "",
        "topic": question.get("topic") or "",
        "grade": question.get("grade") or "",
        "output": output,
        "correct": recalled_answer(output) == recalled_answer(question["answer"]),
        "prompt_tokens": len(prompt.ids),
        "prompt_cut": prompt.cut,
        "output_tokens": len(completion.tokens),
        "truncated": completion.stop_token is None,
    }
