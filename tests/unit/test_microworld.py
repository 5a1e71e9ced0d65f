"""Laws of the generated world: its facts are well formed, its splits are apart, its files read like real ones."""

import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from multiprocessing.pool import ThreadPool

import pyarrow.parquet as pq
import pytest

from nanochat_pl.calculator import calculate
from nanochat_pl.eval.checks import load_checks
from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.base import Task, overlap
from nanochat_pl.tasks.chats import Chats
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.jsonl import JSONL
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.recall import Recall
from nanochat_pl.tasks.scienceqa import ScienceQA
from nanochat_pl.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_pl.world import write
from nanochat_pl.world.chats import (
    IDENTITY_CONVERSATIONS,
    TUTOR,
    fact_matching,
    identity_conversations,
    matching,
    wordings,
)
from nanochat_pl.world.documents import documents
from nanochat_pl.world.facts import relations, vocabulary
from nanochat_pl.world.problems import programming_problems, words_to_spell
from nanochat_pl.world.questions import (
    ARC_ROWS,
    MMLU_ROWS,
    SPLITS,
    arc_rows,
    mmlu_rows,
    questions,
    reading_rows,
    recall_rows,
    scienceqa_rows,
)
from nanochat_pl.world.write import FIRST_RELATIONS, write_microworld


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return write_microworld(tmp_path_factory.mktemp("microworld") / "world", seed=0)


def test_tables_are_read_when_they_are_needed_and_not_at_import():
    code = (
        "import nanochat_pl.world.write, nanochat_pl.tasks.spelling as spelling\n"
        "from nanochat_pl.world.facts import relations, table\n"
        "assert not any(read.cache_info().currsize for read in (table, relations, spelling.questions))\n"
        "assert relations() and spelling.questions() and table.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_there_are_enough_facts_and_templates():
    assert sum(len(relation.facts) for relation in relations()) >= 400
    assert sum(len(relation.forms) for relation in relations()) >= 20


@pytest.mark.parametrize("relation", relations(), ids=lambda r: r.name)
def test_every_relation_is_well_formed(relation):
    assert set(relation.also_true) <= set(relation.facts)
    for template in (*relation.statements, *relation.forms, relation.phrase):
        assert template.count("{s}") == 1
        assert ("{o}" in template) == (template in relation.statements)
    assert len(set(relation.forms)) == len(relation.forms) >= 4
    for fact, value in relation.facts.items():
        assert fact and value and fact == fact.strip() and value == value.strip()
        wrong = relation.distractors(fact)
        assert wrong and value not in wrong
        # An answer that is a choice letter would say two things after "The correct answer is".
        assert not re.fullmatch("[A-E]", value)


def test_no_pair_and_no_question_string_is_in_two_splits():
    pairs, strings = defaultdict(set), defaultdict(set)
    for question in questions(0):
        pairs[question.relation.name, question.fact, question.form].add(question.split)
        strings[question.text].add(question.split)
    assert all(len(splits) == 1 for splits in pairs.values())
    assert all(len(splits) == 1 for splits in strings.values())
    for rows in (scienceqa_rows, recall_rows):
        asked = {split: {row["question"] for row in rows(split)} for split in SPLITS}
        for left, right in (("train", "test"), ("train", "validation"), ("validation", "test")):
            assert not asked[left] & asked[right]


def test_every_held_out_fact_is_trained_under_other_forms_and_stated_in_the_documents():
    text = "\n".join(documents(0))
    trained = {(q.relation.name, q.fact) for q in questions(0) if q.split == "train"}
    held_out = [q for q in questions(0) if q.split == "test"]
    assert len(held_out) >= 500
    for question in held_out:
        assert (question.relation.name, question.fact) in trained
        stated = (t.format(s=question.fact, o=question.answer) for t in question.relation.statements)
        assert any(sentence in text for sentence in stated)


def test_documents_ask_no_question():
    forms = {q.text for q in questions(0)}
    for text in documents(0):
        assert "?" not in text
        assert not forms & set(text.split("\n"))


@pytest.mark.parametrize("split", SPLITS)
def test_multiple_choice_rows_have_one_right_choice_and_balanced_letters(split):
    answers = {(q.text): (q.answer, q.relation, q.fact) for q in questions(0)}
    letters: dict[int, Counter] = defaultdict(Counter)
    for row in scienceqa_rows(split):
        value, relation, fact = answers[row["question"]]
        assert 2 <= len(row["choices"]) <= 5 and len(set(row["choices"])) == len(row["choices"])
        assert row["choices"][row["answer"]] == value
        assert not set(row["choices"]) & set(relation.also_true.get(fact, ()))
        letters[len(row["choices"])][row["answer"]] += 1
    for count, dealt in letters.items():
        assert len(dealt) == count and max(dealt.values()) - min(dealt.values()) <= 1


def test_reading_rows_are_answered_by_their_own_text():
    for row in reading_rows("validation"):
        right = row["choices"][row["answer"]]
        assert right in row["hint"] + row["question"]
        assert 2 <= len(row["choices"]) <= 5 and len(set(row["choices"])) == len(row["choices"])


def listed(text: str) -> dict[str, str]:
    """The choices of a list by their letters."""
    return dict(re.findall(r"^([A-E])\. (.+)$", text, re.MULTILINE))


def test_matching_chats_give_the_letter_of_the_word_that_was_asked_last():
    rng, used = random.Random(0), set()
    for _ in range(300):
        texts = [message["content"] for message in matching(rng, vocabulary(), wordings())["messages"]]
        choices, [found] = listed(texts[0]), {said for said in wordings() if matches(said, texts[1])}
        used.add(found)
        assert len(texts) == 10 and 2 <= len(choices) <= 5
        for asked, said in zip(texts[::2], texts[1::2]):
            word = asked.split("\n")[-1].removeprefix("Find ")
            [letter] = [letter for letter, choice in choices.items() if choice == word]
            assert said == found.format(letter=letter, text=word)
    assert used == set(wordings())


def test_a_word_before_its_list_is_asked_for_once():
    rng, used = random.Random(0), set()
    for _ in range(300):
        asked, said = (
            message["content"] for message in matching(rng, vocabulary(), wordings(), behind=False)["messages"]
        )
        word, choices = re.match(r"Find (.+)\n\n", asked)[1], listed(asked)
        [letter] = [letter for letter, choice in choices.items() if choice == word]
        [found] = {wording for wording in wordings() if said == wording.format(letter=letter, text=word)}
        used.add(found)
    assert used == set(wordings())


def matches(wording: str, text: str) -> bool:
    return re.fullmatch(re.escape(wording).replace(r"\{letter\}", "[A-E]").replace(r"\{text\}", ".+"), text) is not None


def test_a_growing_answer_is_the_letter_alone_first_and_a_tutor_s_answer_at_last(world):
    assert wordings()[0] == "{letter}" and wordings()[1] == " {letter}" and wordings()[-1].startswith(wordings()[-2])
    for shorter, longer in itertools.pairwise(wordings()[1:-1]):
        assert longer.endswith(shorter.strip()) and len(longer.split()) == len(shorter.split()) + 1
    said = ScienceQA(world / "scienceqa", "validation", persona=None, solution=False, lecture=False)[0]
    text = dict(zip(said["letters"], said["choices"]))[said["answer"]]
    assert said["messages"][-1]["content"] == TUTOR.format(letter=said["answer"], text=text)


def test_chats_about_facts_ask_one_question_before_a_list_with_one_right_answer():
    answers, relation_of = defaultdict(set), {}
    by_relation: dict[str, list] = defaultdict(list)
    for question in questions(0):
        answers[question.text] |= {question.answer, *question.relation.also_true.get(question.fact, ())}
        relation_of[question.text] = question
        if question.split == "train":
            by_relation[question.relation.name].append(question)
    rng, sizes = random.Random(0), set()
    for _ in range(400):
        asked, said = (message["content"] for message in fact_matching(rng, by_relation)["messages"])
        text, choices = asked.partition("\n\n")[0], listed(asked)
        letter = re.fullmatch(r"The correct answer is ([A-E])\. .+", said)[1]
        assert said == TUTOR.format(letter=letter, text=choices[letter])
        assert answers[text] & {*choices.values()} == {choices[letter]} == {relation_of[text].answer}
        assert relation_of[text].split == "train"
        sizes.add(len(choices))
    assert sizes == {2, 3, 4, 5}


def test_lessons_about_few_facts_ask_for_each_of_them_many_times_and_for_no_other(world):
    fact_of = {question.text: question for question in questions(0) if question.split == "train"}
    rows = pq.read_table(world / "few_fact_matching" / "train.parquet").to_pylist()
    asked = [fact_of[row["messages"][0]["content"].partition("\n\n")[0]] for row in rows]
    times = Counter((question.relation.name, question.fact) for question in asked)
    assert {*times} == {(r.name, fact) for r in relations() if r.name in FIRST_RELATIONS for fact in r.facts}
    assert len(times) == 140 and min(times.values()) > 5


def test_files_have_the_columns_and_row_groups_of_the_real_sets(world):
    shards = sorted((world / "text").glob("shard_*.parquet"))
    assert len(shards) >= 3
    for shard in shards:
        file = pq.ParquetFile(shard)
        assert file.schema_arrow.names == ["text"] and file.num_row_groups > 2
    names = pq.read_schema(world / "scienceqa" / "test.parquet").names
    assert names == [
        "image", "question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill",
        "lecture", "solution",
    ]  # fmt: skip
    for split in ("scienceqa/test", "recall/test"):
        assert pq.read_metadata(world / f"{split}.parquet").num_rows >= 500


def test_word_problems_are_true_and_in_the_gsm8k_form(world):
    for row in pq.read_table(world / "gsm8k" / "test.parquet").to_pylist():
        notes = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", row["answer"])
        assert notes
        for a, sign, b, result, said in notes:
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
            assert value == int(result) == int(said)
        assert row["answer"].endswith(f"\n#### {notes[-1][3]}")


MEASURED = {
    "scienceqa": "704509acca0d6ee9",
    "reading": "af3ef860cd889c80",
    "recall": "4ea893cf117d0b4e",
    "matching": "b7dd658d74a702e9",
    "growing_matching": "365d3b41373c2557",
    "matching_before": "8dc874874c421407",
    "fact_matching": "f7f06ad263ec0455",
    "few_fact_matching": "ad099354c55ae9d5",
    "gsm8k": "c6af760ecbbe8d7c",
    "smoltalk/train": "8b2384019b028407",
    "text": "a81ccdf17919f5a8",
}
"""Beginnings of the SHA-256 of the sets that published measurements were made with."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_sets_behind_published_measurements_keep_their_hashes(world, name):
    digest = hashlib.sha256()
    for file in sorted(world.glob(f"{name}.parquet" if "/" in name else f"{name}/*.parquet")):
        digest.update(json.dumps(pq.read_table(file).to_pylist(), ensure_ascii=False, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == MEASURED[name], "other content: measured results no longer hold (see LOG.md)"


def held_out_pairs(world) -> dict[str, tuple[Task, list[Task]]]:
    """Name what is trained on, and what must share no question with it."""
    scienceqa = [ScienceQA(world / "scienceqa", split) for split in ("validation", "test")]
    pairs: dict[str, tuple[Task, list[Task]]] = {
        "scienceqa": (ScienceQA(world / "scienceqa"), scienceqa),
        "recall": (Recall(world / "recall"), [Recall(world / "recall", split) for split in ("validation", "test")]),
        "reading": (ScienceQA(world / "reading"), [ScienceQA(world / "reading", "validation")]),
        "gsm8k": (GSM8K(world / "gsm8k"), [GSM8K(world / "gsm8k", "test")]),
        **{name: (Chats(world / name), [Chats(world / name, "test")]) for name in ("smoltalk", "manners")},
        "identity": (
            JSONL(world / "identity_conversations.jsonl"),
            [JSONL(world / "identity_conversations.jsonl", "validation")],
        ),
    }
    for task in (SimpleSpelling, SpellingBee):
        words = world / "words_alpha.txt"
        pairs[task.__name__] = task(words, epochs=2), [task(words, "test", epochs=2)]
    mmlu = {split: MMLU(world / "mmlu", split) for split in MMLU_ROWS}
    for split in ("auxiliary_train", "dev", "validation"):
        pairs[f"mmlu {split}"] = mmlu[split], [mmlu[other] for other in MMLU_ROWS if other != split]
    for subset in ARC_ROWS:
        arc = {split: ARC(world / "arc", subset, split) for split in SPLITS}
        pairs[subset] = arc["train"], [arc["validation"], arc["test"]]
    return pairs


def test_no_split_of_any_set_asks_what_another_asks(world):
    for name, (train, others) in held_out_pairs(world).items():
        for other in others:
            assert len(train) and len(other)
            shared = overlap(train, other)
            assert not shared, f"{name}: {train[shared[0]]}"


def test_a_fact_held_out_in_one_set_of_questions_is_held_out_in_all(world):
    asked = {split: {q.text for q in questions(0) if q.split == split} for split in SPLITS}
    for subset in ARC_ROWS:
        for split in SPLITS:
            rows = arc_rows(subset, split)
            assert {row["question"] for row in rows} <= asked[split]
            assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    easy, challenge = ({row["id"] for split in SPLITS for row in arc_rows(subset, split)} for subset in ARC_ROWS)
    assert not easy & challenge


@pytest.mark.parametrize("subset", ARC_ROWS)
def test_arc_has_the_real_columns_and_one_right_choice(world, subset):
    answers = {q.text: (q.answer, q.relation, q.fact) for q in questions(0)}
    numbered, letters = 0, Counter()
    for split, count in ARC_ROWS[subset].items():
        table = pq.read_table(world / "arc" / subset / f"{split}.parquet")
        assert table.column_names == ["id", "question", "choices", "answerKey"] and table.num_rows == count
        for row in table.to_pylist():
            texts, labels = row["choices"]["text"], row["choices"]["label"]
            value, relation, fact = answers[row["question"]]
            assert labels in (list("ABCD"), list("1234")) and len(set(texts)) == 4
            assert texts[labels.index(row["answerKey"])] == value
            assert not set(texts) & set(relation.also_true.get(fact, ()))
            numbered += labels[0] == "1"
            letters[labels.index(row["answerKey"])] += 1
    assert 0 < numbered < sum(letters.values()) / 10 and max(letters.values()) - min(letters.values()) <= len(SPLITS)


def test_mmlu_has_the_real_columns_and_is_answered_by_its_own_text(world):
    for split, count in MMLU_ROWS.items():
        table = pq.read_table(world / "mmlu" / f"{split}.parquet")
        assert set(table.column_names) == {"question", "subject", "choices", "answer"} and table.num_rows == count
        assert table.to_pylist() == mmlu_rows()[split]
        subjects = Counter(table.column("subject").to_pylist())
        assert set(subjects) == ({""} if split == "auxiliary_train" else {"passages", "words"})
        for row in table.to_pylist():
            right = row["choices"][row["answer"]]
            assert len(set(row["choices"])) == 4 and right in row["question"]
    answers = Counter(row["answer"] for rows in mmlu_rows().values() for row in rows)
    assert max(answers.values()) - min(answers.values()) <= 1


def test_the_assistant_knows_who_it_is(world):
    lines = (world / "identity_conversations.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = [json.loads(line) for line in lines]
    assert conversations == identity_conversations(0) and len(conversations) == IDENTITY_CONVERSATIONS
    assert len({chat[0]["content"] for chat in conversations}) == IDENTITY_CONVERSATIONS
    assert len(JSONL(world / "identity_conversations.jsonl", val_fraction=0)) == IDENTITY_CONVERSATIONS
    for chat in conversations:
        if re.search(r"Who are you\?|What is your name\?", chat[0]["content"]):
            assert "Minnow" in chat[1]["content"]


def test_words_to_spell_are_plain_and_include_the_world_s_own(world):
    words = (world / "words_alpha.txt").read_text(encoding="utf-8").splitlines()
    assert words == words_to_spell(0) == sorted(set(words)) and len(words) >= 3000
    assert all(re.fullmatch("[a-z]{2,}", word) for word in words)
    assert {"hydrogen", "olive", "apple", "ada"} <= set(words)


def test_programming_problems_are_solved_by_their_own_solutions_only(world):
    rows = pq.read_table(world / "humaneval" / "test.parquet").to_pylist()
    assert rows == programming_problems() and len({row["entry_point"] for row in rows}) == len(rows) >= 10
    for row in rows:
        for body, right in ((row["canonical_solution"], True), ("    return None\n", False)):
            space: dict = {}
            exec(row["prompt"] + body + "\n" + row["test"], space)
            try:
                space["check"](space[row["entry_point"]])
                passed = True
            except AssertionError:
                passed = False
            assert passed is right, row["entry_point"]


@pytest.mark.slow
def test_same_seed_same_bytes_other_seed_other_content(world, tmp_path):
    again = write_microworld(tmp_path / "again", seed=0)
    other = write_microworld(tmp_path / "other", seed=1)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((world / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert (world / "microworld.json").read_text() != (other / "microworld.json").read_text()


@pytest.mark.slow
def test_writers_that_start_together_leave_one_complete_world(tmp_path, monkeypatch):
    written = []
    write_files = write._write_files
    monkeypatch.setattr(write, "_write_files", lambda folder, seed: (written.append(seed), write_files(folder, seed)))
    with ThreadPool(3) as pool:
        pool.map(write_microworld, [tmp_path / "world"] * 3)
    assert written == [0]
    assert (tmp_path / "world" / "microworld.json").is_file()


@pytest.mark.slow
def test_an_interrupted_write_is_repeated(tmp_path):
    (tmp_path / "world.part" / "text").mkdir(parents=True)
    (tmp_path / "world.part" / "text" / "shard_00000.parquet").write_bytes(b"half")
    assert (write_microworld(tmp_path / "world") / "microworld.json").is_file()
    assert not (tmp_path / "world.part").exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a generated world"):
        write_microworld(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_manners_are_conversations_by_turns_and_no_split_holds_one_of_another(world):
    splits = {}
    for split in ("train", "test"):
        chats = [row["messages"] for row in pq.read_table(world / "manners" / f"{split}.parquet").to_pylist()]
        for chat in chats:
            assert len(chat) % 2 == 0
            assert [message["role"] for message in chat] == ["user", "assistant"] * (len(chat) // 2)
            assert all(message["content"] for message in chat if message["role"] == "assistant")
        splits[split] = {json.dumps(chat) for chat in chats}
        assert len(splits[split]) == len(chats)
    assert not splits["train"] & splits["test"]


def test_manners_practise_the_questions_of_the_checks_in_other_words(world):
    """Only what has one wording (a greeting, no words at all) is the same in training and in the checks."""
    practised = set()
    for path in ("manners/train", "smoltalk/train", "sums/train", "gsm8k/train"):
        for row in pq.read_table(world / f"{path}.parquet").to_pylist():
            messages = row.get("messages") or [{"role": "user", "content": row["question"]}]
            practised |= {" ".join(m["content"].split()).casefold() for m in messages if m["role"] == "user"}
    asked = {" ".join(check.messages[-1]["content"].split()).casefold() for check in load_checks()}
    assert asked & practised <= {"hello!", "thank you!", "what is my name?", "", "?"}


def test_facts_in_manners_are_asked_in_forms_of_training(world):
    held_out = {question.text for question in questions() if question.split != "train"}
    for row in pq.read_table(world / "manners" / "train.parquet").to_pylist():
        for message in row["messages"]:
            text = message["content"].removeprefix("And ")
            assert not {text, text[:1].upper() + text[1:]} & held_out


@pytest.mark.parametrize("split", ["train", "test"])
def test_sums_for_the_calculator_are_true(world, split):
    for row in pq.read_table(world / "sums" / f"{split}.parquet").to_pylist():
        [(expression, result)] = re.findall(r"<<(.*?)=(\d+)>>", row["answer"])
        assert calculate(expression) == result
        assert row["answer"].endswith(f"\n#### {result}")
        assert set(re.findall(r"\d+", row["question"])) == set(re.findall(r"\d+", expression))
