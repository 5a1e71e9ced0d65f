"""Inference checks: each expectation holds and fails where it should, and no fault of a file stays unnamed."""

from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch

from nanochat_pl.engine import Completion, Engine
from nanochat_pl.eval.checks import Check, load_checks, run_checks
from nanochat_pl.eval.results import ExampleLog, find_row
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

STOP = 7


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([message["content"][:200] for check in load_checks() for message in check.messages], 300)


class ScriptedEngine:
    """Gives the next answer of a list to each prompt, and to the warm-up none."""

    model = SimpleNamespace(config=GPTConfig(sequence_len=256))

    def __init__(self, tokenizer, *answers, stops=True, tool_calls=0, tool_errors=0):
        self.tokenizer, self.answers, self.prompts = tokenizer, list(answers), []
        self.ended = {"stop_token": STOP if stops else None, "tool_calls": tool_calls, "tool_errors": tool_errors}

    def run(self, requests, batch_size=32, on_token=None):
        (request,) = requests
        if on_token is None:
            assert request.max_new_tokens == 1
            return [Completion()]
        assert request.temperature == 0
        self.prompts.append(list(request.prompt))
        tokens = self.tokenizer.encode(self.answers.pop(0))[: request.max_new_tokens]
        for token in tokens:
            on_token(0, token, True)
        return [Completion(tokens, [1] * len(tokens), **self.ended)]


def check(identifier="one", category="any", **settings):
    messages = [{"role": "user", "content": "Say something."}]
    return Check(**{"id": identifier, "category": category, "messages": messages} | settings)


def file(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- expectations


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"contains": "Rome"}, "It is rome.", "It is Paris."),
        ({"contains": ["one", "two"]}, "Two, one", "only one"),
        ({"not_contains": "sorry"}, "Gladly", "I am Sorry"),
        ({"not_contains": ["a", "b"]}, "xyz", "xbz"),
        ({"matches": r"^\d+$"}, "42", "42 or so"),
        ({"letters": ["A", "B"]}, "The answer is B.", "The answer is C."),
        ({"letters": ["A", "B"]}, "A", "Ask me again"),
        ({"max_tokens": 3}, "ab", "a very long answer indeed"),
        ({"contains": "x", "max_tokens": 2}, "x", "y"),
    ],
)
def test_an_expectation_holds_for_the_one_answer_and_not_for_the_other(tokenizer, expect, right, wrong):
    checks = [check("right", expect=expect), check("wrong", expect=expect)]
    records = run_checks(ScriptedEngine(tokenizer, right, wrong), tokenizer, checks).records
    assert [record["correct"] for record in records] == [True, False]
    assert all(records[0]["expectations"].values())
    assert list(records[1]["expectations"]) == list(expect)


@pytest.mark.parametrize(
    ("expect", "ended", "holds"),
    [
        ({"stops": True}, {"stops": True}, True),
        ({"stops": True}, {"stops": False}, False),
        ({"stops": False}, {"stops": False}, True),
        ({"stops": False}, {"stops": True}, False),
        ({"uses_tool": True}, {"tool_calls": 2, "tool_errors": 1}, True),
        ({"uses_tool": True}, {"tool_calls": 2, "tool_errors": 2}, False),
        ({"uses_tool": True}, {}, False),
        ({"uses_tool": False}, {}, True),
        ({"uses_tool": False}, {"tool_calls": 1}, False),
    ],
)
def test_stops_and_uses_tool_look_at_how_generation_went(tokenizer, expect, ended, holds):
    (record,) = run_checks(ScriptedEngine(tokenizer, "x", **ended), tokenizer, [check(expect=expect)]).records
    assert record["correct"] is holds


# --- a run


def test_check_metrics_are_those_of_the_records(tokenizer):
    checks = [
        check("a", "greeting", expect={"contains": "hi", "stops": True}),
        check("b", "greeting", expect={"contains": "hi"}),
        check("c", "edge", expect={"matches": r"\w"}),
    ]
    evaluation = run_checks(ScriptedEngine(tokenizer, "oh hi", "no way", ""), tokenizer, checks)
    assert [(r["id"], r["correct"], r["output"]) for r in evaluation.records] == [
        ("a", True, "oh hi"),
        ("b", False, "no way"),
        ("c", False, ""),
    ]
    row = find_row(evaluation.rows, "pass_rate")
    assert (row.count, row.n) == (1, 3)
    parts = {next(iter(r.group.items())): (r.count, r.n) for r in evaluation.rows if r.group}
    assert parts == {
        ("category", "greeting"): (1, 2),
        ("category", "edge"): (0, 1),
        ("expectation", "contains"): (1, 2),
        ("expectation", "stops"): (1, 1),
        ("expectation", "matches"): (0, 1),
    }
    assert [r["tokens_per_s"] is None for r in evaluation.records] == [False, False, True]
    assert all(r["first_token_s"] > 0 for r in evaluation.records)
    assert find_row(evaluation.rows, "first_token_s").n == 3


def test_earlier_turns_stand_before_the_question(tokenizer):
    turns = [("user", "I am Mia."), ("assistant", "Hello Mia!"), ("user", "Who am I?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    engine = ScriptedEngine(tokenizer, "Mia")
    (record,) = run_checks(engine, tokenizer, [check(messages=messages, expect={"contains": "Mia"})]).records
    asked = tokenizer.render_for_completion({"messages": [*messages, {"role": "assistant", "content": ""}]})
    assert engine.prompts == [asked]
    assert record["prompt"] == "user: I am Mia.\nassistant: Hello Mia!\nuser: Who am I?"
    assert record["prompt_tokens"] == len(asked)


def test_checks_that_were_answered_are_not_asked_again(tokenizer, tmp_path):
    checks = [check(name, expect={"contains": "a"}) for name in "xyz"]
    path, seen = tmp_path / "examples.jsonl", []
    with pytest.raises(IndexError):
        run_checks(ScriptedEngine(tokenizer, "a", "b"), tokenizer, checks, log=ExampleLog(path, "c"))
    engine = ScriptedEngine(tokenizer, "a")
    log = ExampleLog(path, "c")
    evaluation = run_checks(engine, tokenizer, checks, log=log, progress=lambda *counts: seen.append(counts))
    assert [r["correct"] for r in evaluation.records] == [True, False, True]
    assert (len(engine.prompts), evaluation.num_answered, seen) == (1, 1, [(3, 3)])
    with pytest.raises(ValueError, match="an earlier one"):
        run_checks(engine, tokenizer, [checks[0], checks[0]])


def test_the_default_list_runs_on_a_real_model_and_repeats_itself(tokenizer):
    model = GPT(
        GPTConfig(sequence_len=128, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    engine = Engine(model, [tokenizer.special_id("<|assistant_end|>")], tokenizer, dtype="float32")
    checks = [Check(**vars(check) | {"max_new_tokens": 8}) for check in load_checks()]
    first, second = (run_checks(engine, tokenizer, checks) for _ in range(2))
    assert [r["output"] for r in first.records] == [r["output"] for r in second.records]
    by_id = {record["id"]: record for record in first.records}
    assert by_id["very long"]["prompt_cut"]
    assert by_id["nothing said"]["prompt_tokens"] == 4
    for record in first.records:
        assert 0 < record["first_token_s"] < first.seconds
        assert record["tokens_per_s"] is None or record["tokens_per_s"] > 0


# --- the file


def test_the_list_that_comes_with_the_package_covers_what_it_promises():
    checks = load_checks()
    assert {check.category for check in checks} == {"greeting", "format", "arithmetic", "multi-turn", "edge"}
    kinds = {kind for check in checks for kind in check.expect}
    assert kinds == {"contains", "not_contains", "matches", "letters", "max_tokens", "stops", "uses_tool"}
    assert len({check.id for check in checks}) == len(checks)
    assert files("nanochat_pl.eval").joinpath("checks.yaml").is_file()


def test_checks_file_of_the_user_gets_defaults(tmp_path):
    path = file(
        tmp_path,
        """
        - {id: a, category: x, prompt: ab, repeat: 3, expect: {contains: [b, c]}}
        - {id: b, category: x, max_new_tokens: 9, prompt: '', expect: {max_tokens: 8}}
        """,
    )
    first, second = load_checks(path)
    assert first.messages == [{"role": "user", "content": "ababab"}]
    assert (first.expect, first.max_new_tokens) == ({"contains": ["b", "c"]}, 128)
    assert (second.messages[0]["content"], second.max_new_tokens) == ("", 9)


def test_what_several_checks_share_is_written_once_by_anchors_and_merges(tmp_path):
    path = file(
        tmp_path,
        """
        - &polite
          id: a
          category: manners
          prompt: Hello!
          max_new_tokens: 9
          expect: &ends
            stops: true
        - <<: *polite
          id: b
          max_new_tokens: 7
          expect:
            <<: [*ends, {contains: hello}]
            contains: hi
        - {id: c, category: other, prompt: Bye!, expect: *ends}
        """,
    )
    first, second, third = load_checks(path)
    assert (second.id, second.category, second.messages, second.max_new_tokens) == ("b", "manners", first.messages, 7)
    assert (first.max_new_tokens, third.max_new_tokens) == (9, 128)
    assert (first.expect, second.expect, third.expect) == (
        {"stops": True},
        {"stops": True, "contains": "hi"},
        {"stops": True},
    )


def test_a_fault_that_was_merged_in_is_named_with_the_entry_that_merges_it(tmp_path):
    text = """
        - &one {id: a, category: x, prompt: p, expect: {stops: true}}
        - {<<: *one, id: b, messages: []}
        - {<<: *one}
        """
    with pytest.raises(ValueError, match=r"entry 2 \(b\): either prompt or messages is needed") as caught:
        load_checks(file(tmp_path, text))
    assert "entry 3 (a): id: 'a' is that of an earlier entry" in str(caught.value)
    assert "entry 1" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("just a text", "keys and values are needed, found str 'just a text'"),
        ("{category: x, prompt: p, expect: {stops: true}}", "id: a text is needed, found None"),
        ("{id: 3, category: x, prompt: p, expect: {stops: true}}", "id: a text is needed, found 3"),
        ("{id: a, prompt: p, expect: {stops: true}}", "category: a text is needed"),
        ("{id: a, category: x, expect: {stops: true}}", "either prompt or messages"),
        ("{id: a, category: x, prompt: p, messages: [], expect: {stops: true}}", "either prompt or messages"),
        ("{id: a, category: x, prompt: 5, expect: {stops: true}}", "prompt: a text is needed, found 5"),
        ("{id: a, category: x, prompt: p, expects: {stops: true}}", "expects: unknown key"),
        ("{id: a, category: x, prompt: p}", "expect: at least one of contains"),
        ("{id: a, category: x, prompt: p, expect: {}}", "expect: at least one of contains"),
        ("{id: a, category: x, prompt: p, expect: {contain: y}}", "expect.contain: unknown expectation"),
        ("{id: a, category: x, prompt: p, expect: {contains: 4}}", r"expect.contains: .*found 4 \(quote"),
        ("{id: a, category: x, prompt: p, expect: {contains: ''}}", "expect.contains: .*none of them empty"),
        ("{id: a, category: x, prompt: p, expect: {not_contains: []}}", "expect.not_contains"),
        ("{id: a, category: x, prompt: p, expect: {contains: [yes]}}", r"expect.contains: .*found \[True\]"),
        ("{id: a, category: x, prompt: p, expect: {matches: '('}}", "expect.matches: .*is no regular expression"),
        ("{id: a, category: x, prompt: p, expect: {matches: ''}}", "expect.matches: a regular expression is needed"),
        ("{id: a, category: x, prompt: p, expect: {letters: AB}}", "expect.letters: a list of two letters"),
        ("{id: a, category: x, prompt: p, expect: {letters: [Y, N, no]}}", "expect.letters: .*quote Y and N"),
        ("{id: a, category: x, prompt: p, expect: {max_tokens: many}}", "expect.max_tokens: a whole number"),
        ("{id: a, category: x, prompt: p, expect: {max_tokens: 128}}", "max_new_tokens=128, so 128 expects nothing"),
        ("{id: a, category: x, prompt: p, expect: {stops: 1}}", "expect.stops: true or false is needed, found 1"),
        ("{id: a, category: x, prompt: p, repeat: 0, expect: {stops: true}}", "repeat: a whole number from 1"),
        ("{id: a, category: x, prompt: p, max_new_tokens: true, expect: {stops: true}}", "max_new_tokens: a whole"),
        ("{id: a, category: x, messages: [], expect: {stops: true}}", "messages: an odd number of turns"),
        ("{id: a, category: x, messages: [hello], expect: {stops: true}}", "turn 1: role: user"),
        (
            "{id: a, category: x, repeat: 2, messages: [{role: user, content: hi}], expect: {stops: true}}",
            "repeat: has no effect",
        ),
        (
            "{id: a, category: x, messages: [{role: assistant, content: hi}], expect: {stops: true}}",
            "turn 1: role: user",
        ),
        ("{id: good, category: x, prompt: p, expect: {stops: true}}", "id: 'good' is that of an earlier entry"),
    ],
)
def test_a_malformed_entry_is_named_with_file_entry_and_fault(tmp_path, entry, fault):
    good = "{id: good, category: x, prompt: p, expect: {stops: true}}"
    with pytest.raises(ValueError, match=rf"mine\.yaml: entry 2.*: .*{fault}") as caught:
        load_checks(file(tmp_path, f"- {good}\n- {entry}\n"))
    assert "entry 1" not in str(caught.value)


def test_all_faults_of_a_checks_file_are_reported_at_once(tmp_path):
    path = file(tmp_path, "- {id: a, category: x}\n- 7\n- {id: c, category: x, prompt: p, expect: {stops: 2}}\n")
    with pytest.raises(ValueError) as caught:
        load_checks(path)
    for part in ("entry 1 (a): either", "entry 1 (a): expect", "entry 2: keys", "entry 3 (c): expect.stops"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds nothing; a list of checks"),
        ("id: a", "holds dict"),
        ("- {id: a", "is no YAML: line 1, column 9: brackets, quotes, colons or indentation do not fit"),
        ("- {id: a, category: x, prompt: p, expect: {contains: y, contains: z}}", "the key 'contains' comes twice"),
        ("- {<<: 5, id: a}", "is no YAML: line 1, column 8: .*<< merges keys only"),
        ("- {<<: *nobody, id: a}", r"is no YAML: line 1, column 8: an alias such as \*name stands for"),
        ("- &a {id: a}\n- {<<: *a, <<: *a}", "the key '<<' comes twice"),
        ("- &a {id: a, id: b}\n- {<<: *a}", "the key 'id' comes twice"),
        ("- !!python/object/apply:os.getcwd []", "is no YAML: line 1, column 3: only texts, .* are read, no tags"),
    ],
)
def test_a_file_that_is_no_list_of_checks_is_refused(tmp_path, text, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        load_checks(file(tmp_path, text))
    assert "mine.yaml" in str(caught.value)


def test_missing_checks_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file; give a YAML list"):
        load_checks(tmp_path / "none.yaml")
