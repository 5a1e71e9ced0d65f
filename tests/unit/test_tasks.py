"""Laws of tasks and mixtures: which rows, how often, in which order."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.data.microworld import write_microworld
from nanochat_pl.tasks.base import Mixture, Task, question_only
from nanochat_pl.tasks.chats import Chats
from nanochat_pl.tasks.recall import Recall


class Numbers(Task):
    """Ten rows; each says its number and its epoch."""

    num_rows = 10

    def conversation(self, row, epoch):
        return {"messages": [{"role": "user", "content": str(row)}, {"role": "assistant", "content": str(epoch)}]}


def said(task):
    return [tuple(message["content"] for message in conversation["messages"]) for conversation in task]


def test_start_stop_and_step_choose_rows_like_a_slice():
    assert [row for row, _ in said(Numbers(start=1, stop=8, step=3))] == ["1", "4", "7"]
    assert len(Numbers(start=1, stop=8, step=3)) == 3


def test_epochs_repeat_every_row_and_tell_which_time_it_is():
    task = Numbers(stop=2, epochs=3)
    assert said(task) == [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"), ("0", "2"), ("1", "2")]
    assert said(task[2:4]) == said(task)[2:4] and said([task[-1]]) == said(task)[-1:]
    with pytest.raises(IndexError):
        task[6]


def test_more_rows_than_there_are_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"12 rows .* there are 10"):
        Numbers(stop=12)
    with pytest.raises(ValueError, match="epochs=0"):
        Numbers(epochs=0)


def test_mixture_has_every_item_once_in_the_order_of_random_42():
    tasks = {"few": Numbers(stop=3, epochs=2), "many": Numbers()}
    mixture = Mixture(tasks)
    expected = [(name, i) for name, task in tasks.items() for i in range(len(task))]
    random.Random(42).shuffle(expected)
    assert [c["task"] for c in mixture] == [name for name, _ in expected]
    assert said(mixture) == [said([tasks[name][i]])[0] for name, i in expected]
    assert said(Mixture(tasks, seed=1)) != said(mixture)


def test_mixture_keeps_a_curriculum_or_refuses_it():
    ordered = Numbers()
    ordered.ordered = True
    assert said(Mixture({"a": ordered})) == said(ordered) and Mixture({"a": ordered}).ordered
    with pytest.raises(ValueError, match="curriculum"):
        Mixture({"a": ordered, "b": Numbers()})
    with pytest.raises(ValueError, match="at least one"):
        Mixture({})


def test_phases_follow_each_other_and_each_is_shuffled_by_itself():
    tasks = {"late": Numbers(phase=1), "early": Numbers(epochs=2), "also late": Numbers(phase=1)}
    mixture = Mixture(tasks)
    names = [conversation["task"] for conversation in mixture]
    assert mixture.ordered and not Mixture({"a": Numbers(phase=3), "b": Numbers(phase=3)}).ordered
    assert names[:20] == ["early"] * 20 and sorted(set(names[20:])) == ["also late", "late"]
    assert names[20:] != sorted(names[20:])
    early = Mixture({"early": tasks["early"]})
    assert said(mixture)[:20] == said(early)


def test_question_only_leaves_the_answer_to_say():
    conversation = Numbers()[4]
    assert question_only(conversation)["messages"][-1] == {"role": "assistant", "content": ""}
    assert conversation["messages"][-1]["content"] == "0"
    with pytest.raises(ValueError, match="user's"):
        question_only({"messages": [{"role": "user", "content": "hi"}]})


def test_recall_asks_the_facts_without_choices(tmp_path):
    world = write_microworld(tmp_path / "world")
    task = Recall(world / "recall", "test")
    assert len(task) >= 500
    conversation = task[0]
    user, assistant = (message["content"] for message in conversation["messages"])
    assert user == conversation["question"] and "\n" not in user
    assert assistant == f"The correct answer is {conversation['answer']}."
    assert len({conversation["id"] for conversation in task}) == len(task)


def write_chats(folder, *rows):
    messages = [{"messages": [{"role": role, "content": role} for role in roles.split()]} for roles in rows]
    pq.write_table(pa.Table.from_pylist(messages), folder / "train.parquet")
    return folder


def test_chats_are_read_as_they_are(tmp_path):
    task = Chats(write_chats(tmp_path, "user assistant", "system user assistant user assistant"), phase=1)
    assert [len(conversation["messages"]) for conversation in task] == [2, 5] and task.phase == 1
    assert len(Chats(tmp_path, stop=1, epochs=3)) == 3


@pytest.mark.parametrize("roles", ["assistant user", "user", "user user assistant", "system assistant"])
def test_chats_whose_turns_do_not_alternate_are_named(tmp_path, roles):
    with pytest.raises(ValueError, match=r"train\.parquet, row 1 .*take turns"):
        Chats(write_chats(tmp_path, "user assistant", roles))


def test_recall_says_what_is_wrong_with_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test\.parquet"):
        Recall(tmp_path, "test")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="truncated"):
        Recall(tmp_path, "test")
