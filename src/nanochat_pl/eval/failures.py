"""Why an answer is wrong, read from the answer itself: a first sorting before anybody reads hundreds of them.

Each wrong answer gets one kind, the first whose rule holds, in the order of `KINDS`. The rules look at what was
written and at how generation ended, never at a model, so that equal records always give equal counts. Two of them come
before the kind they would otherwise be taken for: a loop before "truncated", because the loop is why there was no end,
and right content in the wrong form before "unparseable", because then only the form is left to learn.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from nanochat_pl.calculator import calculate
from nanochat_pl.eval.answers import named_choices
from nanochat_pl.tasks.answers import final_answer, normalize, recalled_answer, strict_letter, without_tools

__all__ = ["KINDS", "Failure", "Kind", "TaskFailures", "false_steps", "kind_of", "sort_failures"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A way to be wrong."""

    name: str
    rule: str
    """When an answer is of this kind, in words."""
    remedy: str
    """What to try; names between backticks are settings of this project."""
    holds: Callable[[Record], bool]


@dataclass(frozen=True)
class Failure:
    """One wrong answer."""

    kind: str
    record: Record


@dataclass(frozen=True)
class TaskFailures:
    """How many questions of one task were asked, and which went wrong."""

    task: str
    asked: int
    failures: Sequence[Failure]
    """The wrong answers in the order asked."""

    @property
    def kinds(self) -> dict[str, int]:
        """Wrong answers of each kind that occurs, in the order of `KINDS`."""
        found = Counter(failure.kind for failure in self.failures)
        return {kind.name: found[kind.name] for kind in KINDS if found[kind.name]}


def kind_of(record: Record) -> str:
    """Return the name of the first of `KINDS` whose rule holds for a wrong answer; "wrong choice" where one was picked.

    A record has `output` and `expected`, and may have `letters`, `choices`, `truncated`, `tool_errors` and `picked`.
    """
    if record.get("picked") is not None:  # the likeliest of the given continuations: not a word of its own
        return "wrong choice"
    return next(kind.name for kind in KINDS if kind.holds(record))


def sort_failures(records: Sequence[Record], task: str) -> list[TaskFailures]:
    """Return the wrong answers with their kinds, one task after another, in the order asked.

    Records are lines of `examples.jsonl`: `id`, `prompt`, `expected`, `output`, `correct`, and what `kind_of` reads.
    `task` is the name of the task of records that name none.

    Raises:
        ValueError: A record lacks one of the five fields.
    """
    by_task: dict[str, list[Record]] = {}
    for number, record in enumerate(records, start=1):
        missing = [field for field in ("id", "prompt", "expected", "output", "correct") if field not in record]
        if missing:
            raise ValueError(
                f"record {number} of {task} has no {', '.join(missing)}: failures are sorted from the answers to "
                "questions, as `python evaluate.py ckpt=… eval=scienceqa` writes them to examples.jsonl"
            )
        by_task.setdefault(str(record.get("task") or task), []).append(record)
    return [
        TaskFailures(name, len(own), [Failure(kind_of(record), record) for record in own if not record["correct"]])
        for name, own in by_task.items()
    ]


# -- what an answer says ------------------------------------------------------------------------------------------

_TOOL_CALL = re.compile(r"<\|python_start\|>(.*?)(<\|python_end\|>|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")


def _letters(record: Record) -> list[str]:
    return list(record.get("letters") or ())


def _letter(record: Record) -> str | None:
    return strict_letter(record["output"], _letters(record))


def _not_offered(record: Record) -> str | None:
    """Return the letter that the output commits to where the question has no such choice."""
    letters = _letters(record)
    if not letters or _letter(record) is not None:
        return None
    every = string.digits[1:] if letters[0].isdigit() else string.ascii_uppercase
    letter = strict_letter(record["output"], every)
    return None if letter in letters else letter


def _value(text: str | None) -> Fraction | None:
    """Return the number that `text` consists of, None where it is none."""
    match = _NUMBER.fullmatch((text or "").strip().strip("$").rstrip("."))
    return Fraction(match.group().replace(",", "")) if match else None


def _one_line(record: Record) -> bool:
    return "\n" not in str(record["expected"]).strip()


def _needs_number(record: Record) -> bool:
    return not _letters(record) and _value(str(record["expected"])) is not None


def _last_number(record: Record) -> Fraction | None:
    """Return the number after `####`, else the last one outside of tool calls."""
    output = without_tools(record["output"])
    if (marked := final_answer(output)) is not None:
        return Fraction(marked)
    numbers = _NUMBER.findall(output)
    return _value(numbers[-1]) if numbers else None


# -- the rules ----------------------------------------------------------------------------------------------------

_LOOP_REPEATS, _LOOP_CHARS, _LOOP_PERIOD = 4, 12, 200
_LONE_LETTER = r"(?<![\w'’.-])({letters})(?=[).:,;!*\"”]|\s*(?:\n|$))"


def _empty(record: Record) -> bool:
    return not re.search(r"\w", re.sub(r"<\|\w+\|>", "", record["output"]))


def _loop(record: Record) -> bool:
    text = record["output"].rstrip("\ufffd")  # a character cut in its middle by the end of generation
    for period in range(1, min(_LOOP_PERIOD, len(text) // _LOOP_REPEATS) + 1):
        length = max(_LOOP_REPEATS * period, _LOOP_CHARS)
        if len(text) >= length and text[-length:-period] == text[-length + period :]:
            return True
    return False


def _format(record: Record) -> bool:
    output, expected, letters = record["output"], str(record["expected"]), _letters(record)
    if letters:
        if _letter(record) is not None:
            return False
        lone = re.findall(_LONE_LETTER.format(letters="|".join(map(re.escape, letters))), output)
        if set(lone) == {expected} or strict_letter(output.upper(), letters) == expected:
            return True
        choices = dict(zip(letters, record.get("choices") or ()))
        return expected in choices and named_choices(output, record.get("choices") or ()) == {choices[expected]}
    if _needs_number(record):
        # The last number of an answer that was cut off may be any number.
        finished = not record.get("truncated") or final_answer(output) is not None
        return finished and _last_number(record) == _value(expected)
    wanted = recalled_answer(expected) if _one_line(record) else ""
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalize(output)) is not None


def _truncated(record: Record) -> bool:
    if not record.get("truncated"):
        return False
    if _letters(record):
        return _letter(record) is None
    if _needs_number(record):
        return final_answer(record["output"]) is None
    # Where one line is expected, the first is the answer, whatever follows it.
    return not _one_line(record) or "\n" not in record["output"].strip()


def _unparseable(record: Record) -> bool:
    if _letters(record):
        return _letter(record) is None
    return _needs_number(record) and _last_number(record) is None


_STEP_CHARS = 100
"""A step longer than this is not looked at; GSM8K's longest expression has 30 characters."""
_EQUALS = re.compile(r"=\s*\$?\s*(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?![\d\w%]|[.,]\d|\s*[-+*/×÷^(]\s*[\d($])")
_TERMS = re.compile(r"[\d\s.,+\-*/×÷()$]+$")
_OPERATION = re.compile(r"[\d)]\s*(?:[-+*]|//?)\s*[\d(.-]")


def false_steps(text: str) -> list[str]:
    """Return the written steps `a op b = c` that are false, as written.

    A step is what the calculator can work out before an `=` and a plain number after it, within one line; GSM8K's
    `<<48/2=24>>` are such steps. A result may be rounded or cut at its last digit: `10/3 = 3.3` holds, `7+5 = 13` does
    not. What cannot be read for certain (units in between, percents, powers) is passed over.
    """
    steps = []
    for line in without_tools(text).replace("−", "-").splitlines():
        # "5 x 3": a cross between numbers is a sign, elsewhere a letter
        line = re.sub(r"(?<=[\d)])(\s*)x(?=\s*[$(]?\d)", r"\1×", line)
        for equals in _EQUALS.finditer(line):
            nearby = line[max(0, equals.start() - _STEP_CHARS) : equals.start()]
            terms = _TERMS.search(nearby)
            if terms is None or (step := _step(nearby[: terms.start()], terms.group())) is None:
                continue
            plain, result = step.translate(_SIGNS), equals.group(1)
            # "25 / 1/3": a fraction written without spaces may be meant as one number
            values = [calculate(plain), calculate(re.sub(r"(\d+/\d+)", r"(\1)", plain))]
            if None in values or _OPERATION.search(plain) is None:
                continue
            last_digit = Fraction(1, 10 ** len(result.partition(".")[2]))
            written = Fraction(result.replace(",", ""))
            if not any(_rounds_to(Fraction(value), written, last_digit) for value in values if value is not None):
                steps.append(f"{step} = {result}")
    return steps


def _rounds_to(value: Fraction, written: Fraction, last_digit: Fraction) -> bool:
    """Return whether `written` is `value` rounded, or cut off, at the last digit."""
    rounded = 2 * abs(value - written) <= last_digit
    return rounded or (abs(written) < abs(value) and abs(value - written) < last_digit)


_SIGNS = str.maketrans({"×": "*", "÷": "/", "$": None})


def _step(before: str, terms: str) -> str | None:
    """Cut from `terms` what belongs to the sentence before it; None where it goes on from something not a number."""
    step = re.split(r"[.,]\s+", terms)[-1]
    if len(step) == _STEP_CHARS:
        return None
    cut = len(step) < len(terms) or not before.strip()
    step = re.sub(r"^[-+*]\s+", "", step.lstrip()) if cut else step.lstrip()  # a bullet
    glued = bool(before) and not cut and not terms[0].isspace() and (before[-1].isalnum() or before[-1] in "%^_")
    goes_on = not cut and re.match(r"[+*/×÷]|-\s", step) is not None
    return None if glued or goes_on else step.strip()


def _wrong_tool_use(record: Record) -> bool:
    if record.get("tool_errors"):
        return True
    # Without the engine's count: a call that never ends, or that the calculator refuses.
    return any(not end or calculate(call) is None for call, end in _TOOL_CALL.findall(record["output"]))


KINDS = (
    Kind(
        "empty",
        "nothing was written: no letter and no digit",
        "Ask as the model was trained: a base model has seen no conversation, so train stage=sft from it "
        "(`init_from`). After fine-tuning: see whether rows of `stage.sequence_len` cut the answers off.",
        _empty,
    ),
    Kind(
        "repetition loop",
        f"it ends in one phrase of at most {_LOOP_PERIOD} characters, {_LOOP_REPEATS} times or more in a row and over "
        f"at least {_LOOP_CHARS} characters",
        "The most likely word leads a model in circles that has learned too little: train it longer "
        "(`stage.tokens_per_param`, `stage.num_epochs`) or make it larger (`depth`).",
        _loop,
    ),
    Kind(
        "letter not offered",
        "it commits to a letter that the question has no choice for",
        "It learned letters, not that they stand for the choices above: questions with few and with many choices "
        "(`mixture.tasks`), none of them cut off in training (`stage.sequence_len`).",
        lambda record: _not_offered(record) is not None,
    ),
    Kind(
        "format",
        "the right content in the wrong form: the right choice named, or its letter written where the strict reader "
        "does not look; the right number without `####` or written in another way; the right words among others",
        "The model knows it and does not say it as asked: more epochs of this task in `mixture.tasks`, longer training "
        "(`stage.num_epochs`), or stage=rl, which rewards the form too (`rl.num_samples`).",
        _format,
    ),
    Kind(
        "truncated",
        "generation was cut off before there was an answer",
        "Allow longer answers (`eval.max_new_tokens`; in reinforcement learning `rl.max_new_tokens`), or train on "
        "shorter ones; if training cut them off, raise `stage.sequence_len`.",
        _truncated,
    ),
    Kind(
        "unparseable",
        "no letter where the question offers letters, no number where a number is asked for",
        "The model does not know this kind of question: put its task into `mixture.tasks`, and train longer on it "
        "(`stage.num_epochs`) or faster (`optim.init_lr_frac`).",
        _unparseable,
    ),
    Kind(
        "arithmetic slip",
        "a written step `a op b = c` is false",
        "Let it use the calculator: tasks with worked tool calls (GSM8K, SpellingBee) in `mixture.tasks`, then "
        "stage=rl with more answers a question (`rl.num_samples`).",
        lambda record: bool(false_steps(record["output"])),
    ),
    Kind(
        "wrong tool use",
        "a call of the calculator that it refuses, or that never ends",
        "Show more correct calls: more epochs of the tasks with tool calls in `mixture.tasks`; and leave room for "
        "calls and their answers (`eval.max_new_tokens`).",
        _wrong_tool_use,
    ),
    Kind(
        "wrong choice",
        "a choice was made, and it is not the right one",
        "Compare with chance first. Then knowledge is missing: more text (`stage.tokens_per_param`, "
        "`data.text_shards`), more questions (`data.train_rows`), a larger model (`depth`).",
        lambda record: bool(_letters(record)),
    ),
    Kind(
        "wrong number",
        "a number was given, and it is not the right one, with no false step on the way",
        "The plan was wrong, not the sums: more worked problems in `mixture.tasks`, then stage=rl "
        "(`rl.num_samples`, `rl.prompts_per_step`).",
        _needs_number,
    ),
    Kind(
        "other",
        "none of the rules above",
        "Read the examples. Facts that were not learned need more passes over them (`stage.num_epochs`, "
        "`stage.tokens_per_param`) or a larger model (`depth`).",
        lambda record: True,
    ),
)
"""The kinds in the order tried; the last one always holds."""
