"""What every task promises, asked of every task class there is: a new one is tested here once it has a case.

Each is made of the embedded data (generated, or the few rows below) and, where there are any, of real data.
"""

import importlib
import inspect
import json
import pkgutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nanochat_pl.tasks
from nanochat_pl.tasks.base import Mixture, Sequence, Task, overlap
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.world.write import write_microworld

CONTAINERS = (Mixture, Sequence)
"""Tasks made of tasks; their laws are in test_tasks.py."""


def task_classes() -> dict[str, type[Task]]:
    """Give every class of the package that makes conversations, by name."""
    found = {}
    for module in pkgutil.iter_modules(nanochat_pl.tasks.__path__, "nanochat_pl.tasks."):
        for name, value in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(value) and value.__module__ == module.name
            if own and issubclass(value, Task) and not inspect.isabstract(value) and value not in CONTAINERS:
                found[name] = value
    return found


CLASSES = task_classes()


@dataclass(frozen=True)
class Case:
    """How to make a task of the data below a folder."""

    place: str | None
    """File or folder there; None = generated, no path."""
    train: dict[str, Any]
    held_out: dict[str, Any]
    real: bool = True
    """There are real data of this kind."""
    graded: int = 25
    """So many conversations are graded."""
    answer: Callable[[Any], Any] = lambda conversation: conversation.get("answer")
    """What makes two right answers different."""


def splits(train: str = "train", held_out: str = "test", **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"split": train, **arguments}, {"split": held_out, **arguments}


CASES: dict[str, Case] = {
    "ARC": Case("arc", *splits(subset="ARC-Easy")),
    "Arithmetic": Case(None, *splits(size=3000), real=False),
    "Chats": Case("smoltalk", *splits()),
    "GSM8K": Case("gsm8k", *splits()),
    "HumanEval": Case("humaneval", {}, {}, graded=3, answer=lambda conversation: conversation["entry_point"]),
    "JSONL": Case("identity_conversations.jsonl", *splits("train", "validation")),
    "MMLU": Case("mmlu", *splits("auxiliary_train", "test")),
    "Recall": Case("recall", *splits(), real=False),
    "ScienceQA": Case("scienceqa", *splits()),
    "SimpleSpelling": Case("words_alpha.txt", *splits(size=500)),
    "SpellingBee": Case("words_alpha.txt", *splits(size=500)),
}

SOURCES = ("embedded", "real")
BOTH = [
    pytest.param(name, source, id=f"{name}-{source}", marks=[pytest.mark.slow] if source == "real" else [])
    for name in CLASSES
    for source in SOURCES
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deny what reaches another machine; the sandbox may listen on this one, to see that its programs cannot."""

    def deny(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was sought")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, deny)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, deny)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded world, and a few rows of the sets that it does not have."""
    root = write_microworld(tmp_path_factory.mktemp("tasks") / "world")
    questions = [{"question": f"What is {i} + 1?", "choices": [str(i + j) for j in (1, 2, 3, 4)]} for i in range(40)]
    for split, chosen in (("auxiliary_train", questions[:20]), ("test", questions[20:])):
        fill(root / "mmlu" / f"{split}.parquet", [{**q, "answer": i % 4, "subject": ""} for i, q in enumerate(chosen)])
    for split, chosen in (("train", questions[:20]), ("test", questions[20:])):
        rows = [
            {
                "question": q["question"],
                "choices": {"text": q["choices"], "label": list("ABCD")},
                "answerKey": "ABCD"[i % 4],
            }
            for i, q in enumerate(chosen)
        ]
        fill(root / "arc" / "ARC-Easy" / f"{split}.parquet", rows)
    problems = [
        {
            "task_id": f"Test/{name}",
            "prompt": f'def {name}(x):\n    """Return x {sign} 3."""\n',
            "canonical_solution": f"    return x {sign} 3\n",
            "test": f"def check(candidate):\n    assert candidate(7) == 7 {sign} 3\n",
            "entry_point": name,
        }
        for name, sign in (("add", "+"), ("subtract", "-"), ("multiply", "*"))
    ]
    fill(root / "humaneval" / "test.parquet", problems)
    chats = [
        [{"role": "user", "content": f"Who {i}?"}, {"role": "assistant", "content": f"I, {i}."}] for i in range(40)
    ]
    if not (identity := root / "identity_conversations.jsonl").exists():
        identity.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    if not (words := root / "words_alpha.txt").exists():
        words.write_text(
            "".join(f"{a}{b}{c}ing\n" for a in "bcdfgl" for b in "aeiou" for c in "kmnpst"), encoding="utf-8"
        )
    return root


def fill(file: Path, rows: list[dict[str, Any]]) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.fixture
def root(request: pytest.FixtureRequest, source: str, name: str) -> Path:
    if source == "embedded":
        return request.getfixturevalue("embedded")
    if not CASES[name].real:
        pytest.skip(f"{name} is generated: there are no real data of it")
    return request.getfixturevalue("data_root")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"What is {i} and {i * i}? The correct answer is {i % 7}." for i in range(200)], 300)


def make(name: str, root: Path, held_out: bool = False, **more: Any) -> Task:
    case = CASES[name]
    arguments = {**(case.held_out if held_out else case.train), **more}
    return CLASSES[name](**arguments) if case.place is None else CLASSES[name](root / case.place, **arguments)


def sample(task: Task, count: int = 40) -> list[dict[str, Any]]:
    """Give conversations from all over a task."""
    return [task[i] for i in range(0, len(task), -(-len(task) // count))]


def reply(tokenizer: Tokenizer, conversation: Any) -> str:
    """Give what the assistant says last as the model would say it: decoded, without the end of its turn."""
    whole, _ = tokenizer.render_conversation(conversation, max_tokens=2**31)
    prompt = tokenizer.render_for_completion(conversation, max_tokens=2**31)
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.special_id("<|assistant_end|>")
    return tokenizer.decode(whole[len(prompt) : -1])


def test_every_task_class_has_a_case():
    assert set(CLASSES) == set(CASES), "write a Case for the new task, or delete the one of a task that is gone"


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_conversations_are_plain_data_that_render_with_something_to_learn(name: str, root: Path, tokenizer: Tokenizer):
    for held_out in (False, True):
        task = make(name, root, held_out)
        assert len(task) > 0
        for conversation in sample(task):
            assert json.loads(json.dumps(conversation)) == conversation
            ids, mask = tokenizer.render_conversation(conversation, max_tokens=2**31)
            assert len(ids) == len(mask) and sum(mask) > 0
            assert conversation["messages"][-1]["role"] == "assistant" and reply(tokenizer, conversation)


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_equal_arguments_give_equal_conversations(name: str, root: Path):
    first, second = make(name, root), make(name, root)
    assert len(first) == len(second) and sample(first) == sample(second)
    assert sample(first) == sample(first)


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_conversations_that_are_graded_can_be_told_apart(name: str, root: Path):
    for held_out in (False, True):
        task = make(name, root, held_out)
        ids = [conversation.get("id") for conversation in task]
        if task.graded:
            assert None not in ids and len(set(ids)) == len(task)


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_slices_caps_and_epochs_choose_rows(name: str, root: Path):
    whole = make(name, root)
    n = len(whole)
    part = make(name, root, start=1, stop=n, step=3)
    assert len(part) == len(range(1, n, 3)) and sample(part, 5) == [
        whole[1 + 3 * i] for i in range(0, len(part), -(-len(part) // 5))
    ]
    assert len(make(name, root, at_most=2)) == 2 and len(make(name, root, at_most=10 * n)) == n
    assert list(make(name, root, at_most=2)) == whole[:2]
    twice = make(name, root, epochs=2)
    assert len(twice) == 2 * n and len(make(name, root, epochs=0.5)) == round(n / 2)
    assert len(twice[n - 2 : n + 2]) == 4 and twice[-1] == twice[2 * n - 1]
    assert make(name, root, phase=1).phase == 1
    with pytest.raises(ValueError, match="were asked for"):
        make(name, root, stop=n + 1)
    with pytest.raises(IndexError):
        whole[n]


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_own_answers_are_right_and_others_wrong_or_grading_is_refused(name: str, root: Path, tokenizer: Tokenizer):
    task, case = make(name, root, held_out=True), CASES[name]
    conversations = sample(task, case.graded)
    if not task.graded:
        with pytest.raises(ValueError, match="cannot be graded"):
            task.grade(conversations[0], reply(tokenizer, conversations[0]))
        with pytest.raises(ValueError, match="cannot be graded"):
            task.reward(conversations[0], "")
        return
    tried = 0
    for conversation, other in zip(conversations, [*conversations[1:], conversations[0]], strict=True):
        own = reply(tokenizer, conversation)
        assert task.grade(conversation, own) is True, own
        assert task.reward(conversation, own) == 1.0
        wrong = ["", "I do not know."]
        if case.answer(conversation) != case.answer(other):
            wrong.append(reply(tokenizer, other))
            tried += 1
        for text in wrong:
            assert task.grade(conversation, text) is False, text
            assert task.reward(conversation, text) < 1.0
    assert tried


@pytest.mark.parametrize(("name", "source"), BOTH)
def test_held_out_questions_are_not_trained_on_or_counted(name: str, root: Path, source: str):
    train, held_out = make(name, root), make(name, root, held_out=True)
    if CASES[name].train == CASES[name].held_out:
        pytest.skip(f"{name} has one split")
    shared = overlap(train, held_out)
    print(f"{name}, {source}: {len(shared)} of {len(train)} training questions are held-out questions too")
    if train.graded and source == "embedded":
        assert not shared
    assert len(shared) < len(train) / 2 or not train.graded


@pytest.mark.parametrize("name", [name for name in CLASSES if CASES.get(name) and CASES[name].place])
def test_missing_data_are_named_and_offline_forbids_fetching_them(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        make(name, tmp_path)
    if CLASSES[name].on_hub:
        with pytest.raises(FileNotFoundError, match="offline=true"):
            make(name, tmp_path, fetch=True, offline=True)


@pytest.mark.parametrize("name", CLASSES)
def test_the_constructor_explains_its_arguments_and_errors(name: str):
    text = inspect.getdoc(CLASSES[name]) or ""
    assert "Args:" in text and "Raises:" in text
    for parameter in set(inspect.signature(CLASSES[name]).parameters) - {"self"}:
        assert parameter in text, f"{name} does not explain {parameter}"
