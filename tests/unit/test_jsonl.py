"""Laws of conversations of one's own: both layouts, every fault named at once, a validation split that never leaks."""

import json
from pathlib import Path

import pytest

from nanochat_pl.tasks.base import overlap
from nanochat_pl.tasks.jsonl import JSONL
from nanochat_pl.tokenizer import Tokenizer


def chat(question: str, answer: object = "Ahoy!", system: str | None = None) -> list[dict]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(folder: Path, *lines: object, name: str = "own.jsonl") -> Path:
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    return folder / name


def whole(path: Path) -> JSONL:
    return JSONL(path, val_fraction=0)


def test_both_layouts_system_messages_and_tool_parts_are_read(tmp_path):
    parts = [
        {"type": "text", "text": "Aye: "},
        {"type": "python", "text": "2*3"},
        {"type": "python_output", "text": "6"},
    ]
    long = [*chat("One?"), *chat("Two?", parts)]
    path = write(
        tmp_path, chat("Hi"), {"messages": chat("Hi again", system="Talk so."), "source": "me", "task": 1}, "", long
    )
    task = whole(path)
    assert [c["messages"] for c in task] == [chat("Hi"), chat("Hi again", system="Talk so."), long]
    assert [c["id"] for c in task] == ["own.jsonl:1", "own.jsonl:2", "own.jsonl:4"]
    assert all(set(c) == {"messages", "id"} for c in task)
    tokenizer = Tokenizer.train(["Hi, ahoy! One, two, aye."] * 20, 270)
    for conversation in task:
        _, mask = tokenizer.render_conversation(conversation)
        assert sum(mask) > 0


def test_fields_beside_role_and_content_are_ignored(tmp_path):
    noted = [message | {"name": "x", "weight": 1} for message in chat("Hi")]
    assert whole(write(tmp_path, noted))[0]["messages"] == chat("Hi")


def test_byte_order_mark_other_line_ends_and_separators_inside_of_strings_are_read(tmp_path):
    text = "\r\n".join(json.dumps(chat(q), ensure_ascii=False) for q in ("Grüß\u2028dich", "2\x0b?"))
    (tmp_path / "own.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert [c["messages"][0]["content"] for c in whole(tmp_path / "own.jsonl")] == ["Grüß\u2028dich", "2\x0b?"]


def user(content: object) -> str:
    return json.dumps([{"role": "user", "content": content}, {"role": "assistant", "content": "Aye."}])


FAULTS = {
    '{"messages": [': r"not JSON: .*\(column",
    '"hello"': "a string where a list of messages is needed",
    "7": "a number where",
    '{"conversations": []}': r"too few messages \(0\)",
    '{"text": "hi"}': r"without `messages` \(it has: text\)",
    '{"messages": [], "messages": []}': "the key 'messages' stands twice in one object",
    '[{"role": "user", "content": "hi", "role": "user"}]': "the key 'role' stands twice",
    json.dumps(chat("hi")) + ",": r"not JSON: a trailing comma after the value \(column",
    json.dumps(chat("hi"))[:-1] + ",]": r"not JSON: a trailing comma before a bracket \(column",
    '{"messages": [],}': "not JSON: a trailing comma before a bracket",
    '[{"role": "user", "content": "\\ud800"}]': "one half of a surrogate pair",
    '{"conversations": [{"from": "tool", "value": "hi"}]}': "message 1 is from .tool., which is none of human, user",
    '{"conversations": [{"from": "gpt", "value": "hi"}]}': 'message 1 has the role "assistant" where "user" is due',
    '{"instruction": "Greet.", "output": true}': "`output` is no text but true",
    '{"prompt": "", "completion": "hi"}': r"message 1 \(user\) has an empty content",
    '{"messages": {"role": "user"}}': "an object where a list of messages is needed",
    '[{"role": null, "content": "hi"}]': "message 1 has the role null where",
    user(True): "a truth value as content",
    '{"instruction": "Greet.", "output": ""}': r"message 2 \(assistant\) has an empty content",
    '{"instruction": "Greet.", "output": "hi", "history": [["a", "b"]]}': "`history` beside `instruction` is not read",
    '{"prompt": "hi", "completion": null}': "`completion` is no text but null",
    '{"prompt": "hi", "chosen": "a", "rejected": "b"}': r"without `messages` \(it has: prompt, chosen, rejected\)",
    '{"messages": null}': "null where a list of messages",
    "[]": r"too few messages \(0\); user and assistant take turns, and one of each",
    '["hi", "ahoy"]': "message 1 is a string, not an object",
    '[{"from": "human", "value": "hi"}]': r"message 1 has no role and no content \(it has: from, value\)",
    '[{"role": "user"}]': "message 1 has no content",
    '[{"role": "assistant", "content": "Ahoy!"}]': 'message 1 has the role "assistant" where "user" is due',
    '[{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]': 'message 2 has the role "user"',
    '[{"role": "user", "content": "hi"}]': r"too few messages \(1\); user and assistant take turns, and one of each",
    '[{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]': "one of each is needed",
    json.dumps([*chat("hi"), {"role": "user", "content": "bye"}]): "the last message is the user's",
    json.dumps([*chat("hi"), {"role": "system", "content": "x"}]): 'message 3 has the role "system" where "user"',
    user(" "): r"message 1 \(user\) has an empty content",
    user(None): r"message 1 \(user\) has null as content; a string or a list of parts is needed",
    user([{"type": "image_url", "image_url": "x.png"}]): r'message 1 \(user\), part 1 is not {"type": text, "text"',
    user([{"type": "python", "text": "1+1"}]): r"message 1 \(user\), part 1 is not",
    json.dumps(chat("hi", [{"type": "image", "text": "x"}])): r"message 2 \(assistant\), part 1 is not",
    json.dumps(chat("hi", [{"type": "text", "text": 3}])): r"message 2 \(assistant\), part 1 is not",
    json.dumps(chat("hi", [])): r"message 2 \(assistant\) has an empty content",
    json.dumps(chat("hi", {"text": "x"})): "an object as content; a string or a list of parts is needed",
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_malformed_line_is_named_with_file_number_and_fault(tmp_path, line):
    path = write(tmp_path, chat("Hi"), "", line, chat("Bye"))
    with pytest.raises(ValueError, match=f"1 of the 3 lines of .*\n  {path}:3: .*{FAULTS[line]}"):
        JSONL(path)


def test_all_malformed_lines_are_named_together_twenty_in_full(tmp_path):
    path = write(tmp_path, *[chat("Hi") if i % 10 == 0 else '{"messages": 1}' for i in range(100)])
    with pytest.raises(ValueError, match="90 of the 100 lines") as error:
        JSONL(path)
    lines = str(error.value).splitlines()
    named = [int(line.split(":")[1]) for line in lines if line.startswith(f"  {path}:")]
    assert named == [i + 1 for i in range(100) if i % 10][:20] and "  and 70 more" in lines


def test_bytes_that_are_no_utf8_are_a_fault_of_their_line(tmp_path):
    (tmp_path / "own.jsonl").write_bytes(json.dumps(chat("Hi")).encode() + b'\n[{"role": "user\xff"}]\n')
    with pytest.raises(ValueError, match=r"own\.jsonl:2: not UTF-8 \(byte 0xff"):
        JSONL(tmp_path / "own.jsonl")


ALPACA = {"instruction": "Name it.", "input": "a dog", "output": "Rex"}
PROMPT = {"prompt": "Hi", "completion": "Ahoy!"}
TALK = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy!"}]}
FORMS = [
    (chat("Hi"), chat("Hi"), "list of messages"),
    ({"messages": chat("Hi")}, chat("Hi"), "messages"),
    (TALK, chat("Hi"), "ShareGPT"),
    (
        {"conversations": [{"from": "system", "value": "Talk so."}, *TALK["conversations"]]},
        chat("Hi", system="Talk so."),
        "ShareGPT",
    ),
    ({"conversations": chat("Hi")}, chat("Hi"), "ShareGPT"),
    (ALPACA, chat("Name it.\n\na dog", "Rex"), "Alpaca"),
    (ALPACA | {"input": ""}, chat("Name it.", "Rex"), "Alpaca"),
    ({"instruction": "Hi", "output": "Ahoy!", "system": "Talk so."}, chat("Hi", system="Talk so."), "Alpaca"),
    (PROMPT, chat("Hi"), "prompt and completion"),
    ({"prompt": chat("Hi")[:1], "completion": chat("Hi")[1:]}, chat("Hi"), "prompt and completion"),
    ({"messages": chat("Hi"), "system": "Talk so."}, chat("Hi", system="Talk so."), "messages"),
    (TALK | {"system": "Talk so."}, chat("Hi", system="Talk so."), "ShareGPT"),
    ({"messages": chat("Hi", system="Talk so."), "system": "Talk so."}, chat("Hi", system="Talk so."), "messages"),
    (PROMPT | {"system": "", "label": True, "weight": None}, chat("Hi"), "prompt and completion"),
    (PROMPT | {"label": 0, "train": "train", "weight": 1.0}, chat("Hi"), "prompt and completion"),
    (PROMPT | {"messages": None, "instruction": ""}, chat("Hi"), "prompt and completion"),
    ({"messages": json.dumps(chat("Hi"))}, chat("Hi"), "messages"),
    ({"messages": [], "prompt": "Hi", "completion": "Ahoy!"}, chat("Hi"), "prompt and completion"),
    ({"prompt": str(chat("Hi")[:1]), "completion": json.dumps(chat("Hi")[1:])}, chat("Hi"), "prompt and completion"),
    ({"prompt": "[1, 2]", "completion": 2.0}, chat("[1, 2]", "2"), "prompt and completion"),
    ({"instruction": "2 + 2", "output": 4}, chat("2 + 2", "4"), "Alpaca"),
    (chat("2 + 2", 4), chat("2 + 2", "4"), "list of messages"),
    ({"messages": [{"role": "Human", "content": "Hi"}, {"role": "ASSISTANT", "content": "Ahoy!"}]}, chat("Hi"), "mes"),
    ({"messages": chat([{"type": "text", "text": "H"}, {"type": "text", "text": "i"}])}, chat("Hi"), "messages"),
    *(
        (
            {"conversations": [{"from": "Human", "value": "Hi"}, {"from": speaker, "value": "Ahoy!"}]},
            chat("Hi"),
            "ShareGPT",
        )
        for speaker in ("GPT", "bing", "ChatGPT", "Bard")
    ),
]
LOST = [
    (PROMPT | {"label": False}, "the object has `label` false"),
    ({"messages": [chat("Hi")[0], chat("Hi")[1] | {"weight": 0}]}, "message 2 has `weight` 0"),
    ([chat("Hi")[0], chat("Hi")[1] | {"weight": 0.5}], "message 2 has `weight` 0.5"),
    ({"conversations": [TALK["conversations"][0], TALK["conversations"][1] | {"loss": False}]}, "message 2 has `loss`"),
    ([chat("Hi")[0], chat("Hi")[1] | {"tool_calls": [{"id": "1"}]}], "message 2 has `tool_calls`"),
    ({"messages": chat("Hi", system="Talk so."), "system": "Be so."}, "beside another system message"),
    (TALK | {"system": 3}, "`system` is no text"),
    (PROMPT | {"weight": "0.5"}, 'the object has `weight` "0.5"'),
    ({"messages": [chat("Hi")[0], chat("Hi")[1] | {"train": "False"}]}, 'message 2 has `train` "False"'),
    ({"messages": [chat("Hi")[0], chat("Hi")[1] | {"train_on_turn": False}]}, "message 2 has `train_on_turn` false"),
    (PROMPT | {"loss_mask": [1, 0]}, "the object has `loss_mask`"),
    (PROMPT | {"weight": 10**400}, "the object has `weight` a number of 1,329 bits"),
]


@pytest.mark.parametrize(("value", "messages", "form"), FORMS)
def test_every_known_form_is_read_and_named(tmp_path, caplog, value, messages, form):
    caplog.set_level("INFO")
    path = write(tmp_path, value, chat("Bye"), value)
    assert [c["messages"] for c in whole(path)] == [messages, chat("Bye"), messages]
    count = 3 if form == "list of messages" else 2
    assert f"{path}: 3 conversations (form: {count} {form}" in caplog.text


@pytest.mark.parametrize(("value", "fault"), LOST)
def test_weights_and_tool_calls_in_conversations_are_refused(tmp_path, value, fault):
    with pytest.raises(ValueError, match=fault):
        JSONL(write(tmp_path, chat("Bye"), value))


def test_repairs_of_a_file_are_logged_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    parts = chat([{"type": "text", "text": "Hi"}])
    path = write(tmp_path, parts, parts, {"messages": str(chat("Hi"))}, [{"role": "Human", "content": "Hi"}, parts[1]])
    assert [c["messages"] for c in whole(path)] == [chat("Hi")] * 4
    (line,) = [record.getMessage() for record in caplog.records if "repaired" in record.getMessage()]
    assert line.startswith(f"repaired in {path}: 2 contents of text parts made one text")
    assert "1 lists written as text" in line and "1 speakers read as their role" in line


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("values", [[chat("Hi"), chat("Bye")], [TALK, TALK], [ALPACA], [{"messages": chat("Hi")}] * 3])
def test_a_plain_json_list_is_read_as_its_lines_would_be(tmp_path, values, indent):
    (tmp_path / "own.json").write_text(json.dumps(values, indent=indent))
    lines = whole(write(tmp_path, *values))
    assert [c["messages"] for c in whole(tmp_path / "own.json")] == [c["messages"] for c in lines]
    assert whole(tmp_path / "own.json")[0]["id"] == "own.json:1"
    faulty = [*values, {"messages": 1}]
    (tmp_path / "own.json").write_text(json.dumps(faulty, indent=indent))
    with pytest.raises(
        ValueError, match=rf"1 of the {len(faulty)} elements .*\n.*own\.json, element {len(faulty)}: a numb"
    ):
        whole(tmp_path / "own.json")


def test_a_single_object_over_several_lines_is_one_conversation(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"messages": chat("Hi")}, indent=2))
    assert [c["messages"] for c in whole(tmp_path / "own.json")] == [chat("Hi")]


def test_a_list_that_is_not_json_is_named_with_its_line(tmp_path):
    text = json.dumps([chat("Hi"), chat("Bye")], indent=2)
    (tmp_path / "own.json").write_text(text[:-2] + ",\n]")
    lines = text.count("\n") + 1
    with pytest.raises(
        ValueError, match=rf"own\.json begins as one list: not JSON: a trailing comma .*line ({lines - 1}|{lines}),"
    ):
        whole(tmp_path / "own.json")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    (tmp_path / "own.jsonl").write_bytes(json.dumps(chat("Hi")).encode(encoding))
    with pytest.raises(ValueError, match=r"own\.jsonl: line 1 .*UTF-(16|32).*save the file as UTF-8"):
        whole(tmp_path / "own.jsonl")


def test_one_conversation_that_lacks_an_answer_is_still_a_line(tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps([{"role": "user", "content": "hi"}]))
    with pytest.raises(ValueError, match="mend or drop these lines"):
        JSONL(tmp_path / "own.jsonl")


def test_the_validation_split_is_drawn_by_chance_and_shares_nothing_with_training(tmp_path):
    path = write(tmp_path, *[chat(f"Question {i}?") for i in range(200)])
    train, validation = JSONL(path), JSONL(path, "validation")
    assert (len(train), len(validation)) == (180, 20) and not overlap(train, validation)
    lines = [int(c["id"].split(":")[1]) for c in validation]
    assert lines == sorted(lines) and min(lines) <= 100, "not the tail of the file"
    assert [c["id"] for c in JSONL(path, "validation")] == [c["id"] for c in validation]
    assert [c["id"] for c in JSONL(path, "validation", seed=1)] != [c["id"] for c in validation]
    assert len(JSONL(path, val_fraction=0)) == 200 and len(JSONL(path, "validation", val_fraction=0.25)) == 50


def test_conversations_that_begin_alike_are_never_divided(tmp_path):
    path = write(tmp_path, *[chat(f"Question {i % 30}?", f"Answer {i}.") for i in range(120)])
    train, validation = JSONL(path), JSONL(path, "validation")
    assert len(train) + len(validation) == 120 and 0 < len(validation) <= 12
    assert not overlap(train, validation)


def test_a_split_without_conversations_says_why(tmp_path):
    path = write(tmp_path, chat("Hi"), chat("Hi"), chat("Hi"))
    assert len(JSONL(path)) == 3
    for fraction in (0, 0.5):
        with pytest.raises(ValueError, match=r"validation split .* none of its 3 conversations"):
            JSONL(path, "validation", val_fraction=fraction)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no rows"):
        JSONL(tmp_path / "empty.jsonl")
    for wrong in ({"split": "test"}, {"val_fraction": 1}, {"val_fraction": -0.1}):
        with pytest.raises(ValueError, match="must be one of train, validation"):
            JSONL(path, **wrong)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pirate\.jsonl of conversations; write one a line"):
        JSONL(tmp_path / "pirate.jsonl")


def test_a_file_is_mixed_in_from_the_command_line(tmp_path):
    from hydra.utils import instantiate

    from nanochat_pl.config.command_line import CommandLine, quote_texts
    from nanochat_pl.config.compose import compose_checked

    path = write(tmp_path, *[chat(f"Question {i}?") for i in range(30)], name="pirate.jsonl")
    task = f"{{_target_: nanochat_pl.tasks.jsonl.JSONL, path: {path}, epochs: 10}}"
    for stage in ("mid", "sft"):
        arguments = quote_texts([f"stage={stage}", f"+mixture.tasks.pirate={task}"])
        (cfg,) = compose_checked("train", CommandLine.parse(arguments))
        assert len(instantiate(cfg.mixture.tasks.pirate)) == 270
        assert "smoltalk" in cfg.mixture.tasks


def test_a_path_in_the_place_of_a_task_reads_its_conversations(tmp_path):
    from hydra.utils import instantiate

    from nanochat_pl.config.command_line import CommandLine, quote_texts
    from nanochat_pl.config.compose import compose_checked
    from nanochat_pl.config.schema import MixtureConfig

    path = write(tmp_path, *[chat(f"Question {i}?") for i in range(30)], name="pirate (a=1).jsonl")
    arguments = quote_texts(["stage=sft", f"+mixture.tasks.pirate={path}"])
    (cfg,) = compose_checked("train", CommandLine.parse(arguments))
    mixture = MixtureConfig(**cfg.mixture)
    assert len(instantiate(mixture.tasks["pirate"])) == 30 and "smoltalk" in mixture.tasks
    both = MixtureConfig(tasks={"pirate": str(path)}, val_tasks={"pirate": str(path)})
    train, validation = instantiate(both.tasks["pirate"]), instantiate(both.val_tasks["pirate"])
    assert (len(train), len(validation)) == (27, 3) and not overlap(train, validation)
    assert MixtureConfig(tasks={"pirate": None}).tasks == {"pirate": None}
    for wrong in ("pirate", "pirate.parquet", 7):
        with pytest.raises(ValueError, match=rf"mixture\.tasks\.a={wrong} is no task; give the path of a \.jsonl"):
            MixtureConfig(tasks={"a": wrong})


def test_real_identity_conversations_are_read(data_root):
    path = data_root / "identity_conversations.jsonl"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert [c["messages"] for c in whole(path)] == [json.loads(line) for line in lines]
