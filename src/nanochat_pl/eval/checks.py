"""A fixed list of prompts with expectations: does this checkpoint greet, keep a format, use its tool, bear odd input?

This is no benchmark, but what one would try by hand after every training, in a file that can be extended (`checks.yaml`
is the default list; its first lines explain the form). Each prompt is asked alone, so that its latency is what one user
would feel.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, Field, PositiveInt, ValidationError

from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.eval.ask import Progress, Question, QuestionLoop, RenderedPrompt, render_prompts
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow, mean_row, proportion_row
from nanochat_pl.tasks.answers import strict_letter
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["Check", "load_checks", "run_checks", "summarize_checks"]

_MAX_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Check:
    """One prompt and what is expected of the answer."""

    id: str
    category: str
    messages: list[dict[str, str]]
    """User and assistant take turns; the last message is the user's."""
    expect: Mapping[str, Any]
    """Expectation by kind: `contains`, `not_contains`, `matches`, `letters`, `max_tokens`, `stops`, `uses_tool`."""
    max_new_tokens: int = _MAX_NEW_TOKENS


def run_checks(
    engine: Engine,
    tokenizer: Tokenizer,
    checks: Sequence[Check],
    *,
    task: str = "checks",
    max_prompt_tokens: int = 2**31,
    seed: int = 0,
    log: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask each prompt alone, greedily, and compare the answer with what is expected.

    A record has `id`, `category`, `prompt`, `expected` and `output` (texts), `correct` (all expectations hold),
    `expectations` (kind -> whether it holds), `prompt_tokens`, `prompt_cut` (the prompt did not fit the context and
    lost its beginning), `output_tokens`, `truncated`, `tool_calls`, `tool_errors`, `first_token_s` (seconds from the
    question to the first token), `tokens_per_s` (over the tokens after the first; None where there are none). One token
    is generated beforehand, untimed, so that the first check does not pay for what a process does once.

    Args:
        engine: It has a tokenizer (else no tool is ever used), and its stop ids hold `<|assistant_end|>`.
        max_prompt_tokens: A longer prompt loses its beginning, as does one that leaves no room in the context.
        log: Answers already given, and where to put new ones; None = memory only.

    Raises:
        ValueError: No checks, or two of the same id.
    """
    loop = QuestionLoop([{"id": check.id, "check": check} for check in checks], log, progress, chunk_rows=1)
    if not loop.is_done:
        engine.run([Request([tokenizer.bos_id], max_new_tokens=1)])

    def answer(chunk: Sequence[Question]) -> list[dict[str, Any]]:
        check: Check = chunk[0]["check"]
        (prompt,) = render_prompts(
            tokenizer,
            [{"messages": [*check.messages, {"role": "assistant", "content": ""}]}],
            context_tokens=engine.model.config.sequence_len,
            max_new_tokens=check.max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
        completion, times = _timed(engine, Request(prompt.ids, check.max_new_tokens))
        return [_judge(check, tokenizer.decode(completion.tokens), prompt, completion, times)]

    records = loop.run(answer)
    return loop.evaluation(records, summarize_checks(records, task=task, seed=seed))


def summarize_checks(records: Sequence[Mapping[str, Any]], *, task: str = "checks", seed: int = 0) -> list[MetricRow]:
    """Return the metrics: `pass_rate` (over all, by category, by expectation), `truncation_rate`, `prompt_cut_rate`.

    `first_token_s` and `tokens_per_s` are means over the checks.
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


def _timed(engine: Engine, request: Request) -> tuple[Completion, list[float]]:
    """Return the completion of a request and the seconds until each token; until the end where there was none."""
    times: list[float] = []
    started = time.perf_counter()

    def note(number: int, token: int, sampled: bool) -> None:
        times.append(time.perf_counter() - started)

    (completion,) = engine.run([request], batch_size=1, on_token=note)
    return completion, times or [time.perf_counter() - started]


def _judge(
    check: Check, output: str, prompt: RenderedPrompt, completion: Completion, times: Sequence[float]
) -> dict[str, Any]:
    expectations = {kind: _EXPECTATIONS[kind](value, output, completion) for kind, value in check.expect.items()}
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


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _uses_tool(wanted: bool, output: str, completion: Completion) -> bool:
    calls, errors = completion.tool_calls, completion.tool_errors
    return calls > errors if wanted else calls == 0


_EXPECTATIONS: dict[str, Callable[[Any, str, Completion], bool]] = {
    "contains": lambda texts, output, _: all(text.casefold() in output.casefold() for text in _listed(texts)),
    "not_contains": lambda texts, output, _: not any(text.casefold() in output.casefold() for text in _listed(texts)),
    "matches": lambda pattern, output, _: re.search(pattern, output) is not None,
    "letters": lambda letters, output, _: strict_letter(output, letters) is not None,
    "max_tokens": lambda most, _, completion: len(completion.tokens) <= most,
    "stops": lambda wanted, _, completion: (completion.stop_token is not None) == wanted,
    "uses_tool": _uses_tool,
}
"""Kind of expectation -> whether an answer, and how it came about, meets the expected value."""


# -- the file -------------------------------------------------------------------------------------------------------

_Text = Annotated[str, Field(min_length=1, description="a text is needed, found {}")]
_Texts = Annotated[
    _Text | Annotated[list[_Text], Field(min_length=1)],
    Field(description="a text or a list of texts is needed, none of them empty, found {} (quote numbers, yes and no)"),
]
_Count = Annotated[PositiveInt, Field(description="a whole number from 1 up is needed, found {}")]
_Flag = Annotated[bool, Field(description="true or false is needed, found {}")]


def _different(letters: list[str]) -> list[str]:
    if len(set(letters)) < len(letters):
        raise ValueError
    return letters


class _ExpectEntry(BaseModel, extra="forbid", strict=True):
    """What the file may expect of an answer; a field's description is the error message for values that do not fit."""

    contains: _Texts = ""
    not_contains: _Texts = ""
    matches: str = Field(
        "", min_length=1, description="a regular expression is needed, found {} (quote numbers, yes and no)"
    )
    letters: Annotated[list[_Text], AfterValidator(_different)] = Field(
        [],
        min_length=2,
        description="a list of two letters or more, all different, is needed, found {} (quote Y and N)",
    )
    max_tokens: _Count = 1
    stops: _Flag = True
    uses_tool: _Flag = True


class _CheckEntry(BaseModel, extra="forbid", strict=True):
    """The fields of one entry; `_faults` checks how they go together."""

    id: _Text
    category: _Text
    prompt: str = Field("", description="a text is needed, found {}")
    messages: Any = None
    repeat: _Count = 1
    max_new_tokens: _Count = _MAX_NEW_TOKENS
    expect: _ExpectEntry


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
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no YAML: byte {error.start + 1} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {_yaml_fault(error)}") from None
    except ValueError:  # what looks like a date is one for YAML
        raise ValueError(f"{source} holds a date that does not exist; quote it, if it is a text") from None
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


def _check(entry: Mapping[str, Any]) -> Check:
    message = {"role": "user", "content": entry.get("prompt", "") * entry.get("repeat", 1)}
    return Check(
        id=entry["id"],
        category=entry["category"],
        messages=entry.get("messages") or [message],
        expect=entry["expect"],
        max_new_tokens=entry.get("max_new_tokens", _MAX_NEW_TOKENS),
    )


def _faults(entry: Any) -> Iterator[str]:
    """Yield everything that is wrong with one entry of the file."""
    if not isinstance(entry, dict):
        yield f"keys and values are needed, found {_kind(entry)}"
        return
    expect = entry["expect"] if isinstance(entry.get("expect"), dict) else {}
    try:
        _CheckEntry.model_validate(entry)
    except ValidationError as error:
        # Of pydantic's faults only the place counts, once each: a union reports one for each of its types.
        places = dict.fromkeys(tuple(map(str, fault["loc"]))[:2] for fault in error.errors())
        for key in dict.fromkeys(place[0] for place in places if place[0] != "expect"):
            yield f"{key}: " + _need(_CheckEntry, key, entry.get(key), "key")
        for key in [place[1] for place in places if place[0] == "expect" and len(place) > 1]:
            yield f"expect.{key}: " + _need(_ExpectEntry, key, expect.get(key), "expectation")
    if not expect:
        kinds = ", ".join(_ExpectEntry.model_fields)
        yield f"expect: at least one of {kinds} is needed, found {_kind(entry.get('expect'))}"
    if ("prompt" in entry) == ("messages" in entry):
        yield "either prompt or messages is needed"
    elif "messages" in entry:
        yield from _message_faults(entry["messages"])
    if "repeat" in entry and "messages" in entry:
        yield "repeat: has no effect on messages"
    if isinstance(pattern := expect.get("matches"), str):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"expect.matches: {pattern!r} is no regular expression: {error}"
    room, most = entry.get("max_new_tokens", _MAX_NEW_TOKENS), expect.get("max_tokens", 0)
    if isinstance(room, int) and isinstance(most, int) and most >= room:
        yield f"expect.max_tokens: no answer is longer than max_new_tokens={room}, so {most} expects nothing"


def _need(model: type[BaseModel], key: str, value: Any, what: str) -> str:
    """Return what a key of the file needs: the description of its field."""
    field = model.model_fields.get(key)
    if field is None:
        return f"unknown {what}; there are {', '.join(model.model_fields)}"
    return str(field.description).format(repr(value))


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or len(messages) % 2 == 0:
        yield "messages: an odd number of turns is needed, the user's first and last"
        return
    for index, message in enumerate(messages):
        role = ("user", "assistant")[index % 2]
        whole = isinstance(message, dict) and message.keys() == {"role", "content"}
        if not whole or message["role"] != role or not isinstance(message["content"], str):
            yield f"messages, turn {index + 1}: role: {role} and content: a text are needed, found {message!r}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


class _KeyTwice(yaml.MarkedYAMLError):
    """A key occurs twice in one mapping."""


class _StrictLoader(yaml.SafeLoader):
    """Loads plain data only and refuses a repeated key, of which YAML would silently take the second.

    Keys are compared as written in the file: one that is merged in (`<<: *other`) may be overridden.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise _KeyTwice(None, None, f"the key {twice[1]!r} comes twice", node.start_mark)
        return node


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Return where a file is no YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    match error:
        case _KeyTwice():
            return f"{where}{error.problem}"
        case yaml.composer.ComposerError():
            return f"{where}an alias such as *name stands for what &name marks further up, and nothing is marked so"
        case yaml.constructor.ConstructorError():
            return f"{where}only texts, numbers, lists and keys with values are read, no tags; << merges keys only"
        case yaml.reader.ReaderError():
            return "it holds a character that YAML does not allow"
    return f"{where}brackets, quotes, colons or indentation do not fit together"
