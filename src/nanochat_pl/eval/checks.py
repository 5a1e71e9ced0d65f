"""A fixed list of prompts with expectations: does this checkpoint greet, keep a format, use its tool, bear odd input?

No score, but what one would try by hand after every training, in a file to be extended (`checks.yaml` is the default
list; its first lines explain the form). Each prompt is asked alone, so that its latency is what one user would feel.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nanochat_pl.engine import Completion, Request
from nanochat_pl.eval.prompts import Prompt, render_prompts
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow, mean_row, proportion_row
from nanochat_pl.tasks.answers import strict_letter

__all__ = ["Check", "load_checks", "run_checks", "summarize_checks"]

_MAX_NEW_TOKENS = 128
_KEYS = ("id", "category", "prompt", "messages", "repeat", "max_new_tokens", "expect")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One prompt and what is expected of the answer."""

    id: str
    category: str
    messages: list[dict[str, str]]
    """User and assistant by turns, the last one the user's."""
    expect: Mapping[str, Any]
    """Expectation by kind: `contains`, `not_contains`, `matches`, `letters`, `max_tokens`, `stops`, `uses_tool`."""
    max_new_tokens: int = _MAX_NEW_TOKENS


def load_checks(path: str | Path | None = None) -> list[Check]:
    """Read checks from a YAML file; None = the list that comes with the package.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a list of checks: every fault is named, with its file and entry.
    """
    source = files("nanochat_pl.eval").joinpath("checks.yaml") if path is None else Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is no file; give a YAML list of checks, or null for the one of this package")
    try:
        entries = yaml.load(source.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{source} holds {_kind(entries)}; a list of checks is needed, each beginning with `- id:`")
    checks, faults, seen = [], [], set()
    for number, entry in enumerate(entries, start=1):
        wrong = list(_faults(entry))
        name = entry.get("id") if isinstance(entry, dict) and isinstance(entry.get("id"), str) else None
        if name in seen and name is not None:
            wrong.append(f"id: {name!r} is that of an earlier entry")
        seen.add(name)
        faults += [f"entry {number}{f' ({name})' if name else ''}: {fault}" for fault in wrong]
        if not wrong:
            checks.append(_check(entry))
    if faults:
        raise ValueError(f"{source}: " + "; ".join(faults))
    return checks


def run_checks(
    engine: Any,
    tokenizer: Any,
    checks: Sequence[Check],
    *,
    task: str = "checks",
    max_prompt_tokens: int = 2**31,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask each prompt alone, greedily, and compare the answer with what is expected.

    A record has `id`, `category`, `prompt`, `expected` and `output` (texts), `correct` (all expectations hold),
    `expectations` (kind -> whether it holds), `prompt_tokens`, `prompt_cut` (it was too long for the context and lost
    its beginning), `output_tokens`, `truncated`, `tool_calls`, `tool_errors`, `first_token_s` (seconds from the
    question to the first token), `tokens_per_s` (of the tokens after the first; None where there are none). One token
    is generated beforehand, untimed, so that the first check does not pay for what a process does once.

    Args:
        engine: An `Engine` with its tokenizer (else no tool is ever used), whose stop ids hold `<|assistant_end|>`.
        tokenizer: The tokenizer saved with the model.
        checks: Of `load_checks`.
        task: Name of the task in the figures.
        max_prompt_tokens: A longer prompt loses its beginning, as does one that leaves no room in the context.
        seed: For the bootstrap.
        log: Answers already given, and where to put new ones; None = memory only.
        progress: Called with (answered, asked) after each check.

    Raises:
        ValueError: No checks, or two of the same id.
    """
    started = time.perf_counter()
    log = log or ExampleLog()
    questions = [{"id": check.id, "check": check} for check in checks]
    pending = [question["check"] for chunk in log.pending(questions, 1) for question in chunk]
    if pending:
        engine.run([Request([tokenizer.bos_id], max_new_tokens=1)])
    for check in pending:
        (prompt,) = render_prompts(
            tokenizer,
            [{"messages": [*check.messages, {"role": "assistant", "content": ""}]}],
            context_tokens=engine.model.config.sequence_len,
            max_new_tokens=check.max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
        completion, times = _timed(engine, Request(prompt.ids, check.max_new_tokens))
        log.append([_judge(check, tokenizer.decode(completion.tokens), prompt, completion, times)])
        if progress is not None:
            progress(len(log.records), len(questions))
    records = log.in_order(questions)
    return Evaluation(
        records=records,
        rows=summarize_checks(records, task=task, seed=seed),
        seconds=time.perf_counter() - started,
        num_answered=log.num_appended,
    )


def summarize_checks(records: Sequence[Mapping[str, Any]], *, task: str = "checks", seed: int = 0) -> list[MetricRow]:
    """Draw the figures from the records: `pass_rate` (all, by category, by expectation), and the latencies.

    `truncation_rate`, `prompt_cut_rate`; `first_token_s` and `tokens_per_s` as means over the checks.
    """
    by_category: dict[str, list[bool]] = {}
    by_expectation: dict[str, list[bool]] = {}
    for record in records:
        by_category.setdefault(record["category"], []).append(record["correct"])
        for kind, holds in record["expectations"].items():
            by_expectation.setdefault(kind, []).append(holds)
    rates = [r["tokens_per_s"] for r in records if r["tokens_per_s"] is not None]
    return [
        proportion_row(task, "pass_rate", [r["correct"] for r in records]),
        proportion_row(task, "truncation_rate", [r["truncated"] for r in records]),
        proportion_row(task, "prompt_cut_rate", [r["prompt_cut"] for r in records]),
        mean_row(task, "first_token_s", [r["first_token_s"] for r in records], seed=seed),
        mean_row(task, "tokens_per_s", rates, seed=seed),
        *(proportion_row(task, "pass_rate", held, group={"category": name}) for name, held in by_category.items()),
        *(
            proportion_row(task, "pass_rate", by_expectation[kind], group={"expectation": kind})
            for kind in _EXPECTATIONS
            if kind in by_expectation
        ),
    ]


def _timed(engine: Any, request: Request) -> tuple[Completion, list[float]]:
    """Return what a request yields, and the seconds after which each token came; after all of them if none did."""
    times: list[float] = []
    started = time.perf_counter()

    def note(number: int, token: int, sampled: bool) -> None:
        times.append(time.perf_counter() - started)

    (completion,) = engine.run([request], batch_size=1, on_token=note)
    return completion, times or [time.perf_counter() - started]


@dataclass(frozen=True)
class _Answer:
    output: str
    completion: Completion


def _judge(check: Check, output: str, prompt: Prompt, completion: Completion, times: Sequence[float]) -> dict[str, Any]:
    answer = _Answer(output, completion)
    expectations = {kind: _EXPECTATIONS[kind][1](value, answer) for kind, value in check.expect.items()}
    turns = [f"{message['role']}: {message['content']}" for message in check.messages]
    return {
        "id": check.id,
        "category": check.category,
        "prompt": check.messages[0]["content"] if len(turns) == 1 else "\n".join(turns),
        "expected": "; ".join(f"{kind}: {value}" for kind, value in check.expect.items()),
        "output": output,
        "correct": all(expectations.values()),
        "expectations": expectations,
        "prompt_tokens": len(prompt.ids),
        "prompt_cut": prompt.cut,
        "output_tokens": len(completion.tokens),
        "truncated": completion.stop_token is None,
        "tool_calls": completion.tool_calls,
        "tool_errors": completion.tool_errors,
        "first_token_s": times[0],
        "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else None,
    }


def _holds_all(texts: str | list[str], answer: _Answer) -> bool:
    return all(text.casefold() in answer.output.casefold() for text in _listed(texts))


def _holds_none(texts: str | list[str], answer: _Answer) -> bool:
    return not any(text.casefold() in answer.output.casefold() for text in _listed(texts))


def _uses_tool(wanted: bool, answer: _Answer) -> bool:
    calls, errors = answer.completion.tool_calls, answer.completion.tool_errors
    return calls > errors if wanted else calls == 0


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _texts_fault(value: Any) -> str | None:
    texts = _listed(value) if isinstance(value, str | list) else []
    if texts and all(isinstance(text, str) and text for text in texts):
        return None
    return f"a text or a list of texts is needed, none of them empty, found {value!r} (quote numbers, yes and no)"


def _pattern_fault(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return f"a regular expression is needed, found {value!r} (quote numbers, yes and no)"
    try:
        re.compile(value)
    except re.error as error:
        return f"{value!r} is no regular expression: {error}"
    return None


def _letters_fault(value: Any) -> str | None:
    letters = isinstance(value, list) and all(isinstance(letter, str) and letter for letter in value)
    if letters and len(set(value)) == len(value) > 1:
        return None
    return f"a list of two letters or more, all different, is needed, found {value!r} (quote Y and N)"


def _count_fault(value: Any, least: int = 1) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return None if whole else f"a whole number from {least} up is needed, found {value!r}"


def _flag_fault(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"true or false is needed, found {value!r}"


_EXPECTATIONS: dict[str, tuple[Callable[[Any], str | None], Callable[[Any, _Answer], bool]]] = {
    "contains": (_texts_fault, _holds_all),
    "not_contains": (_texts_fault, _holds_none),
    "matches": (_pattern_fault, lambda pattern, answer: re.search(pattern, answer.output) is not None),
    "letters": (_letters_fault, lambda letters, answer: strict_letter(answer.output, letters) is not None),
    "max_tokens": (_count_fault, lambda most, answer: len(answer.completion.tokens) <= most),
    "stops": (_flag_fault, lambda wanted, answer: (answer.completion.stop_token is not None) == wanted),
    "uses_tool": (_flag_fault, _uses_tool),
}
"""Kind -> what is wrong with its value (None = nothing), whether an answer meets it."""


def _check(entry: Mapping[str, Any]) -> Check:
    said = {"role": "user", "content": entry.get("prompt", "") * entry.get("repeat", 1)}
    return Check(
        id=entry["id"],
        category=entry["category"],
        messages=entry.get("messages") or [said],
        expect=entry["expect"],
        max_new_tokens=entry.get("max_new_tokens", _MAX_NEW_TOKENS),
    )


def _faults(entry: Any) -> Iterator[str]:
    """Yield everything that is wrong with one entry of the file."""
    if not isinstance(entry, dict):
        yield f"keys and values are needed, found {_kind(entry)}"
        return
    for key in sorted(map(str, entry.keys() - set(_KEYS))):
        yield f"{key}: unknown key; there are {', '.join(_KEYS)}"
    for key in ("id", "category"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            yield f"{key}: a text is needed, found {entry.get(key)!r}"
    if ("prompt" in entry) == ("messages" in entry):
        yield "either prompt or messages is needed"
    elif "prompt" in entry and not isinstance(entry["prompt"], str):
        yield f"prompt: a text is needed, found {entry['prompt']!r}"
    elif "messages" in entry:
        yield from _message_faults(entry["messages"])
    if "repeat" in entry and "messages" in entry:
        yield "repeat: has no effect on messages"
    for key in ("repeat", "max_new_tokens"):
        if key in entry and (fault := _count_fault(entry[key])):
            yield f"{key}: {fault}"
    expect = entry.get("expect")
    if not isinstance(expect, dict) or not expect:
        yield f"expect: at least one of {', '.join(_EXPECTATIONS)} is needed, found {_kind(expect)}"
        return
    for kind, value in expect.items():
        if kind not in _EXPECTATIONS:
            yield f"expect.{kind}: unknown expectation; there are {', '.join(_EXPECTATIONS)}"
        elif fault := _EXPECTATIONS[kind][0](value):
            yield f"expect.{kind}: {fault}"
    room, most = entry.get("max_new_tokens", _MAX_NEW_TOKENS), expect.get("max_tokens", 0)
    if isinstance(room, int) and isinstance(most, int) and most >= room:
        yield f"expect.max_tokens: no answer is longer than max_new_tokens={room}, so {most} expects nothing"


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or len(messages) % 2 == 0:
        yield "messages: an odd number of turns is needed, the user's first and last"
        return
    for place, message in enumerate(messages):
        role = ("user", "assistant")[place % 2]
        whole = isinstance(message, dict) and message.keys() == {"role", "content"}
        if not whole or message["role"] != role or not isinstance(message["content"], str):
            yield f"messages, turn {place + 1}: role: {role} and content: a text are needed, found {message!r}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


class _StrictLoader(yaml.SafeLoader):
    """Plain data only, and no key twice: YAML would silently take the second.

    Keys are compared as they stand in the file: one that is merged in (`<<: *other`) may be overridden.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[1]!r} comes twice", node.start_mark)
        return node
