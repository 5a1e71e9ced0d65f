"""Ask for facts without offering choices: did the model learn them, or only how to point at letters?

The question is asked alone and answered greedily. The answer counts only if it equals the expected text after
`recalled_answer` has removed case, outer punctuation, a leading article and a leading "The answer is" from both.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from nanochat_pl.engine import Engine
from nanochat_pl.eval.answer_bpb import answer_rows
from nanochat_pl.eval.answer_scoring import answer_of_text, score_answers, warn_of_unmeasured
from nanochat_pl.eval.ask import Answered, Progress, Question, QuestionLoop, answer_greedily, warn_of_long
from nanochat_pl.eval.multiple_choice import ANSWER_STEM
from nanochat_pl.eval.results import Evaluation, ExampleLog, mean_row, proportion_row
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tasks.answers import recalled_answer
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["evaluate_recall"]


def evaluate_recall(
    tokenizer: Tokenizer,
    engine: Engine,
    conversations: Iterable[Question],
    *,
    task: str = "recall",
    max_new_tokens: int = 32,
    max_prompt_tokens: int | None = None,
    batch_size: int = 32,
    model: GPT | None = None,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer every question greedily; return records and the rows `exact_match`, `truncation_rate` and `output_tokens`.

    With `model` there is also the row `answer_bpb`.

    Args:
        engine: Its stop ids hold `<|assistant_end|>`.
        conversations: Each has `messages` (the last one the assistant's, not shown), `id` and `answer` (text).
        model: The model whose bits for each answer are measured (`answer_bpb.py`), by a forward a question; what
            introduces the answer ("The correct answer is") is given. None = they are not.

    The other arguments are those of `evaluate_scienceqa`.

    Raises:
        ValueError: No questions, or one without id or answer.
    """
    loop = QuestionLoop(conversations, log, progress)
    for index, question in enumerate(loop.questions):
        if not recalled_answer(str(question.get("answer") or "")):
            raise ValueError(
                f"question {index} has no `answer` text: this evaluation is for tasks such as tasks.recall"
            )

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
        records = list(map(_judge, written))
        if model is not None:
            texts = [question["messages"][-1]["content"] for question in chunk]
            given = [ANSWER_STEM if text.startswith(ANSWER_STEM) else "" for text in texts]
            answers = [[answer_of_text(tokenizer, *pair)] for pair in zip(texts, given)]
            fields = score_answers(model, tokenizer, [one.prompt.ids for one in written], answers)
            records = [{**record, **own} for record, own in zip(records, fields, strict=True)]
        return records

    records = loop.run(answer)
    warn_of_unmeasured(task, records)
    warn_of_long(task, records, engine.model.config.sequence_len)
    correct, baseline = [r["correct"] for r in records], _baseline(loop.questions)
    rows = [
        proportion_row(task, "exact_match", correct, baseline=baseline, bootstrap_seed=seed),
        proportion_row(task, "truncation_rate", [r["truncated"] for r in records]),
        mean_row(task, "output_tokens", [r["output_tokens"] for r in records], seed=seed),
        *answer_rows(records, task, seed),
    ]
    return loop.evaluation(records, rows)


def _baseline(questions: Sequence[Question]) -> dict[str, float | str]:
    """Return what giving the most frequent expected answer to every question scores."""
    answers = Counter(recalled_answer(question["answer"]) for question in questions)
    answer, count = min(answers.items(), key=lambda item: (-item[1], item[0]))
    return {"majority": count / len(questions), "majority_answer": answer}


def _judge(answered: Answered) -> dict[str, Any]:
    question, prompt, completion, output = answered
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
