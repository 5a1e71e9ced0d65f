"""Multiple choice as nanochat asks it (2025-11): MMLU and ARC are worded here, and answered with a bare letter.

A letter comes after its choice, with no space before it, so that it is the same token as the one that the answer
begins with. ScienceQA has another wording, a tutor's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat_pl.tasks.answers import strict_letter
from nanochat_pl.tasks.base import Conversation

__all__ = ["is_right_letter", "multiple_choice", "render_choices"]


def render_choices(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """Return the user's message."""
    lines = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True))
    return f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."


def multiple_choice(record: Mapping[str, Any]) -> Conversation:
    """Word a record of `question`, `letters`, `choices`, `answer` (a letter); all its fields become extras."""
    question = render_choices(record["question"], record["letters"], record["choices"])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": record["answer"]}]
    return {"messages": messages, **record}


def is_right_letter(conversation: Mapping[str, Any], completion: str, strict: str = "stated") -> bool:
    """Return whether an answer commits to the right letter (`answers.strict_letter`).

    With strict=original it must be the letter and nothing else, except for spaces around it.
    """
    if strict == "original":
        return completion.strip() == conversation["answer"]
    return strict_letter(completion, conversation["letters"]) == conversation["answer"]
