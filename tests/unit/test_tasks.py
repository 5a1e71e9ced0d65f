"""Laws of tasks and mixtures: which rows, how often, in which order."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks.base import Mixture, Sequence, Task, overlap, question_key
from nanochat_pl.tasks.chats import Chats
from nanochat_pl.tasks.recall import Recall
from nanochat_pl.world.write import write_microworld


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


def test_a_cap_takes_what_there_is_and_a_stop_demands_it():
    assert said(Numbers(at_most=3)) == said(Numbers())[:3] and len(Numbers(at_most=10_000)) == 10
    assert said(Numbers(start=1, step=4, at_most=2, epochs=2)) == [("1", "0"), ("5", "0"), ("1", "1"), ("5", "1")]
    with pytest.raises(ValueError, match="at_most=0"):
        Numbers(at_most=0)


@pytest.mark.parametrize(("epochs", "count"), [(0.3, 3), (0.25, 2), (1.0, 10), (2.5, 25), (1.99, 20)])
def test_a_part_of_an_epoch_draws_rows_without_repetition(epochs, count):
    task = Numbers(epochs=epochs)
    rows = [int(row) for row, _ in said(task)]
    assert len(task) == len(rows) == count and said(Numbers(epochs=epochs)) == said(task)
    part = rows[10 * int(epochs) :]
    assert rows[: 10 * int(epochs)] == list(range(10)) * int(epochs)
    assert part == sorted(set(part)) and len(said(task)) == len(set(said(task)))


def test_a_part_of_an_epoch_is_drawn_from_all_rows_not_cut_from_the_beginning():
    class Many(Numbers):
        num_rows = 1000

    rows = [int(row) for row, _ in said(Many(epochs=0.1))]
    assert len(rows) == 100 and min(rows) < 100 and max(rows) > 900


def test_a_part_too_small_for_one_row_is_an_error():
    with pytest.raises(ValueError, match="less than half a row"):
        Numbers(epochs=0.01)


class Sums(Numbers):
    """Right is the row's number; a reward also counts trying."""

    graded = True

    def grade(self, conversation, completion):
        return completion == conversation["messages"][0]["content"]

    def reward(self, conversation, completion):
        return 1.0 if self.grade(conversation, completion) else 0.1


def test_what_has_no_right_answer_cannot_be_graded():
    for task in (Numbers(), Mixture({"a": Numbers(), "b": Sums()})):
        assert not task.graded
    with pytest.raises(ValueError, match=r"Numbers cannot be graded.*ask or reward a task"):
        Numbers().grade(Numbers()[0], "0")
    with pytest.raises(ValueError, match="cannot be graded"):
        Numbers().reward(Numbers()[0], "0")
    with pytest.raises(ValueError, match="cannot be graded: it is no Task but a list"):
        Mixture({"a": [{"messages": []}]}).grade({"task": "a"}, "")


def test_a_mixture_hands_grading_on_to_the_task_a_conversation_is_from():
    inner = Mixture({"sums": Sums(), "half": Sums(epochs=0.5)})
    mixture = Mixture({"nested": inner, "sums": Sums(), "nothing": None})
    assert mixture.graded and len(mixture) == 25
    assert {c["task"] for c in mixture} == {"nested/sums", "nested/half", "sums"}
    for conversation in mixture:
        right = conversation["messages"][0]["content"]
        assert mixture.grade(conversation, right) and not mixture.grade(conversation, "no")
        assert [mixture.reward(conversation, text) for text in (right, "no")] == [1.0, 0.1]
    with pytest.raises(ValueError, match="task is None, which is none of nested, sums"):
        mixture.grade(Sums()[0], "0")


def test_a_sequence_keeps_the_order_given_and_every_task_s_own():
    tasks = {"first": Numbers(stop=3, epochs=2), "second": Numbers()}
    course = Sequence({"first": tasks["first"], "none": None, "second": tasks["second"]})
    assert said(course) == said(tasks["first"]) + said(tasks["second"]) and course.ordered
    assert [c["task"] for c in Mixture({"course": course})][5:7] == ["course/first", "course/second"]
    assert said(Mixture({"course": course})) == said(course)
    with pytest.raises(ValueError, match="phase of late has no effect"):
        Sequence({"late": Numbers(phase=1)})


def test_items_left_out_of_a_mixture_are_the_only_ones_missing():
    mixture = Mixture({"a": Sums(), "b": Sums(phase=1)})
    fewer = mixture.without([0, 7, 19])
    assert said(fewer) == [pair for i, pair in enumerate(said(mixture)) if i not in (0, 7, 19)]
    assert len(mixture) == 20 and fewer.ordered and fewer.graded and fewer.grade(fewer[0], said(fewer)[0][0])


def ask(text, **extras):
    return {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": text}], **extras}


def test_overlap_finds_questions_asked_again_whatever_their_case_spaces_or_order_of_choices():
    choices = {"question": "Which swims?", "choices": ["a cod", "a crow"]}
    rows = [
        ask("How  many?\n"),
        ask("Who?"),
        ask("Which swims? 1", **choices),
        ask("Which swims?", hint="Look.", **choices),
    ]
    others = [ask("HOW MANY?"), ask("unlike", question=" which Swims?", choices=["a crow", "A cod"]), ask("Why?")]
    assert overlap(rows, others) == [0, 2]
    assert overlap(rows, []) == [] and overlap(others, rows) == [0, 1]
    assert question_key({"messages": []}) == ""


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
