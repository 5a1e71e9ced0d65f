"""Policy gradients: what is sampled, how it is weighed, and that the gradient is the formula's."""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat_pl.data.batch import IGNORE
from nanochat_pl.engine import Completion, Engine
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.rl.losses import by_length, micro_batches, policy_loss
from nanochat_pl.rl.rollouts import (
    Group,
    Questions,
    SampledAnswer,
    SamplingSettings,
    advantages,
    roll_out,
    rollout_metrics,
    rollout_sums,
)
from nanochat_pl.tasks.answers import pass_at_k
from nanochat_pl.tasks.base import Conversation, Mixture, Task

ALGORITHMS = ("reinforce", "rloo", "grpo", "dapo")
END = 9
SAMPLING = SamplingSettings(num_samples=3, max_new_tokens=4, temperature=1.0, top_k=None, batch_size=64)


class Letters(Task):
    """Question i has i + 1 tokens; an answer is worth how often it says `1`."""

    graded = True

    def __init__(self, size: int = 8):
        self.size = size
        super().__init__()

    @property
    def num_rows(self) -> int:
        return self.size

    def conversation(self, row: int, epoch: int) -> Conversation:
        return {"messages": [{"role": "user", "content": "q" * row}, {"role": "assistant", "content": "a"}]}

    def reward(self, conversation: Mapping[str, Any], completion: str) -> float:
        return float(completion.count("1"))


class Digits:
    """A tokenizer: ids 0 to 9 are digits, a question's length is its prompt's."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(str, ids))

    def render_for_completion(self, conversation: Mapping[str, Any], max_tokens: int = 2048) -> list[int]:
        return [8] * (len(conversation["messages"][0]["content"]) + 1)


class DiceEngine:
    """Answers with digits of each request's own random stream."""

    def __init__(self, faces: Sequence[int] = (1, 2, 3)):
        self.faces = faces
        self.calls = 0

    def run(self, requests: Sequence[Any], batch_size: int = 32) -> list[Completion]:
        self.calls += 1
        completions = []
        for request in requests:
            rng = random.Random(request.seed)
            tokens = [rng.choice(self.faces) for _ in range(rng.randint(1, request.max_new_tokens))]
            stop = END if len(tokens) < request.max_new_tokens else None
            completions.append(Completion(tokens, [1] * len(tokens), stop, 0, 0))
        return completions


def questions(size: int = 8) -> Questions:
    return Questions(Mixture({"letters": Letters(size)}), Digits(), max_prompt_tokens=100)


def rollout(asked: Sequence[tuple[int, int]], engine: Any = None, **settings: Any) -> Any:
    chosen: dict[str, Any] = {"algorithm": "reinforce", "max_resamples": 2, "seed": 5, "step": 3} | settings
    return roll_out(engine or DiceEngine(), questions(), asked, SAMPLING, **chosen)


def groups() -> list[Group]:
    """Two questions: an answer with a forced token, a truncated one, and one of the end token alone."""
    return [
        Group(0, 0, [8, 8], [
            SampledAnswer([1, 2, 3, END], [1, 0, 1, 1], 1.0, False, advantage=0.5),
            SampledAnswer([4, 5, 6, 7], [1, 1, 1, 1], 0.0, True, advantage=-0.5),
        ]),
        Group(1, 1, [8, 8, 8, 8], [
            SampledAnswer([END], [1], 2.0, False, advantage=1.5),
            SampledAnswer([3, END], [1, 1], 0.0, False, advantage=-1.5),
        ]),
    ]  # fmt: skip


NUM_TOKENS, NUM_ANSWERS = 10, 4


def lay(batch_rows: int, algorithm: str = "reinforce", of: list[Group] | None = None) -> list[Any]:
    return list(micro_batches(of or groups(), batch_rows, 0, algorithm, NUM_TOKENS, NUM_ANSWERS))


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("reinforce", [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("grpo", [1.5, -0.5, -0.5, -0.5]),
        ("dapo", [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_advantages_are_those_of_the_papers(algorithm: str, expected: list[float]):
    assert advantages([1.0, 0.0, 0.0, 0.0], algorithm) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.0] * 4, [1.0] * 2])
def test_advantages_of_equal_rewards_are_exactly_zero(algorithm: str, rewards: list[float]):
    assert advantages(rewards, algorithm) == [0.0] * len(rewards)


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 4, 7])
def test_every_answer_is_in_one_micro_batch_whatever_its_size(batch_rows: int):
    batches = lay(batch_rows)
    assert [len(batch.inputs) for batch in batches] == [min(batch_rows, 4 - first) for first in range(0, 4, batch_rows)]
    found = sorted(tuple(row[row != IGNORE].tolist()) for batch in batches for row in batch.targets)
    assert found == sorted([(1, 3, END), (4, 5, 6, 7), (END,), (3, END)])


def test_rows_hold_the_question_then_the_answer_and_train_the_end_token_but_no_forced_one():
    rows = {
        tuple(target[target != IGNORE].tolist()): (inputs.tolist(), target.tolist())
        for batch in lay(1)
        for inputs, target in zip(batch.inputs, batch.targets, strict=True)
    }
    assert rows[1, 3, END] == ([8, 8, 1, 2, 3], [IGNORE, 1, IGNORE, 3, END])
    assert rows[4, 5, 6, 7] == ([8, 8, 4, 5, 6], [IGNORE, 4, 5, 6, 7])
    assert rows[END,] == ([8, 8, 8, 8], [IGNORE, IGNORE, IGNORE, END])


def test_weights_of_a_step_add_up_to_one_and_only_grpo_gives_answers_equal_weight():
    for algorithm in ALGORITHMS:
        weights = [row.sum().item() for batch in lay(3, algorithm) for row in batch.weights]
        assert sum(weights) == pytest.approx(1)
        equal = weights == pytest.approx([1 / NUM_ANSWERS] * NUM_ANSWERS)
        assert equal == (algorithm == "grpo")


def naive_loss(
    logp: Tensor, batch: Any, algorithm: str, low: float, high: float, reference: Tensor | None, kl_coef: float
) -> Tensor:
    """The formulas, token by token."""
    total = logp.new_zeros(())
    for b, t in itertools.product(range(logp.size(0)), range(logp.size(1))):
        if batch.targets[b, t] == IGNORE:
            continue
        A, trained = batch.advantages[b, 0].item(), int((batch.targets[b] != IGNORE).sum())
        share = 1 / (trained * NUM_ANSWERS) if algorithm == "grpo" else 1 / NUM_TOKENS
        if algorithm in ("grpo", "dapo"):
            old = logp[b, t].detach() if batch.old is None else batch.old[b, t]
            ratio = (logp[b, t] - old).exp()
            value = -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)
        else:
            value = -A * logp[b, t]
        if reference is not None:
            d = reference[b, t] - logp[b, t]
            value = value + kl_coef * (d.exp() - d - 1)
        total = total + share * value
    return total


def noisy(of: list[Group], scale: float = 0.5) -> list[Group]:
    rng = torch.Generator().manual_seed(1)
    for group in of:
        for answer in group.answers:
            answer.old = -2 + scale * torch.randn(len(answer.tokens), generator=rng)
    return of


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("kl_coef", [None, 0.3])
def test_loss_and_gradient_are_the_formulas(algorithm: str, off_policy: bool, kl_coef: float | None):
    rng = torch.Generator().manual_seed(0)
    for batch in lay(3, algorithm, noisy(groups()) if off_policy else None):
        shape = batch.targets.shape
        one = (-2 + 0.5 * torch.randn(shape, generator=rng)).requires_grad_()
        two = one.detach().clone().requires_grad_()
        reference = None if kl_coef is None else -2 + torch.randn(shape, generator=rng)
        ours, _ = policy_loss(
            one, batch, algorithm, clip_low=0.2, clip_high=0.3, reference=reference, kl_coef=kl_coef or 0.0
        )
        naive = naive_loss(two, batch, algorithm, 0.2, 0.3, reference, kl_coef or 0.0)
        torch.testing.assert_close(ours, naive)
        ours.backward()
        naive.backward()
        torch.testing.assert_close(one.grad, two.grad)
        assert (one.grad[batch.targets == IGNORE] == 0).all()


def test_on_policy_the_ratio_is_exactly_one_and_the_gradient_that_of_reinforce():
    for batch in lay(4, "dapo"):
        one = torch.randn(batch.targets.shape).requires_grad_()
        two = one.detach().clone().requires_grad_()
        ratio_loss, found = policy_loss(one, batch, "dapo")
        plain_loss, _ = policy_loss(two, batch, "reinforce")
        ratio_loss.backward()
        plain_loss.backward()
        assert torch.equal(one.grad, two.grad)
        assert found["clipped"] == 0


def test_clipped_token_has_no_gradient_and_is_counted():
    (batch,) = lay(4, "grpo", noisy(groups(), 0.0))
    for shift, sign in ((0.5, 1), (-0.5, -1)):
        logp = torch.full(batch.targets.shape, -2 + shift).requires_grad_()
        loss, found = policy_loss(logp, batch, "grpo")
        loss.backward()
        moved_enough = (batch.advantages * sign > 0).expand_as(logp)
        assert (logp.grad[moved_enough] == 0).all()
        trained = batch.targets != IGNORE
        assert (logp.grad[~moved_enough & trained] != 0).all()
        assert found["clipped"] == (moved_enough & trained).sum()


def test_the_divergence_to_the_same_weights_is_zero_and_has_no_gradient():
    (batch,) = lay(4)
    logp = torch.randn(batch.targets.shape).requires_grad_()
    plain = torch.autograd.grad(policy_loss(logp, batch, "reinforce")[0], logp)[0]
    loss, found = policy_loss(logp, batch, "reinforce", reference=logp.detach(), kl_coef=10.0)
    assert found["kl"] == 0
    assert torch.equal(torch.autograd.grad(loss, logp)[0], plain)


def tiny_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=16, vocab_size=10, n_layer=1, n_head=2, n_kv_head=2, n_embd=32))
    model.init_weights()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_update_makes_a_better_answer_likelier_and_a_worse_one_less_likely(algorithm: str, advantage: float):
    for group in groups():
        for answer in group.answers:
            answer.advantage = advantage
            model = tiny_model()
            (batch,) = lay(1, algorithm, [Group(0, 0, group.prompt, [answer])])
            before = -model(batch.inputs, batch.targets, reduction="none")
            policy_loss(before, batch, algorithm)[0].backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
            after = -model(batch.inputs, batch.targets, reduction="none")
            assert ((after - before).sum() > 0) == (advantage > 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_gradient_does_not_depend_on_the_micro_batch(algorithm: str):
    gradients = []
    for batch_rows in (1, 3, 4):
        model = tiny_model()
        for batch in lay(batch_rows, algorithm):
            logp = -model(batch.inputs, batch.targets, reduction="none")
            policy_loss(logp, batch, algorithm)[0].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-7)


def test_answers_do_not_depend_on_which_rank_asks():
    asked = [(0, 3), (1, 5), (2, 3), (3, 0)]
    together = rollout(asked).groups
    apart = [*rollout(asked[0::2]).groups, *rollout(asked[1::2]).groups]
    assert sorted(apart, key=lambda group: group.slot) == together
    assert together[0].answers != together[2].answers, "the same question twice in a step is answered anew"
    assert rollout(asked, step=4).groups != together
    assert rollout(asked, seed=6).groups != together


def test_a_real_engine_gives_equal_answers_to_equal_streams():
    engine = Engine(tiny_model(), {END})
    asked = [(0, 3), (1, 5), (2, 3), (3, 0)]
    together = rollout(asked, engine).groups
    apart = [*rollout(asked[0::2], engine).groups, *rollout(asked[1::2], engine).groups]
    assert sorted(apart, key=lambda group: group.slot) == together
    for group in together:
        for answer in group.answers:
            assert answer.truncated == (answer.tokens[-1] != END)
            assert len(answer.tokens) == len(answer.mask) <= SAMPLING.max_new_tokens + 1
            assert answer.reward == answer.tokens.count(1)


def test_the_end_token_is_trained_where_there_is_one_and_is_not_part_of_the_text():
    for group in rollout([(0, 0), (1, 1)]).groups:
        for answer in group.answers:
            assert (answer.tokens[-1] == END) == (not answer.truncated)
            assert answer.mask[-1] == 1


def test_dapo_replaces_groups_without_signal_by_other_questions():
    asked, dice = [(slot, slot) for slot in range(6)], DiceEngine(faces=(1, 2, 2, 2, 2))
    plain = rollout(asked, dice, algorithm="grpo")
    dull = [group.slot for group in plain.groups if not group.has_signal]
    assert dull, "some group must be without signal for this test to mean anything"
    replaced = rollout(asked, dice, algorithm="dapo", max_resamples=20)
    assert all(group.has_signal for group in replaced.groups)
    assert [group.slot for group in replaced.groups] == list(range(6))
    kept = [group.slot for group in replaced.groups if group == plain.groups[group.slot]]
    assert kept == [slot for slot in range(6) if slot not in dull]
    assert replaced.resampled >= len(dull)
    assert replaced.new_tokens > plain.new_tokens


def test_dapo_stops_after_max_resamples():
    engine = DiceEngine(faces=(2,))
    hopeless = rollout([(0, 0), (1, 1)], engine, algorithm="dapo", max_resamples=3)
    assert engine.calls == 4
    assert hopeless.resampled == 6
    assert not any(group.has_signal for group in hopeless.groups)
    assert all(answer.advantage == 0 for group in hopeless.groups for answer in group.answers)


def test_metrics_of_several_ranks_add_up():
    asked = [(slot, slot) for slot in range(6)]
    together = rollout_sums(rollout(asked).groups)
    apart = [rollout_sums(rollout(asked[rank::2]).groups) for rank in range(2)]
    assert [a + b for a, b in zip(*apart, strict=True)] == pytest.approx(together)


def test_metrics_are_means_over_answers():
    found = rollout_metrics(rollout_sums(groups()))
    assert found["reward"] == 0.75
    assert found["rl/reward_std"] == pytest.approx(math.sqrt(5 / 4 - 0.75**2))
    assert found["rl/no_signal_frac"] == 0
    assert found["rl/truncated_frac"] == 0.25
    assert found["rl/answer_tokens"] == 11 / 4
    assert found["sequence_length"] == (11 + 2 * 2 + 2 * 4) / 4


@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(right: int):
    samples = [i < right for i in range(5)]
    for k in range(1, 6):
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(5, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_with_k_above_num_samples_is_an_error(k: int):
    with pytest.raises(ValueError, match="5 samples"):
        pass_at_k(5, 2, k)


def test_group_from_state_equals_the_group():
    for group in noisy(groups()):
        again = Group.from_state(dataclasses.asdict(group))
        assert [(a.tokens, a.mask, a.reward, a.advantage) for a in again.answers] == [
            (a.tokens, a.mask, a.reward, a.advantage) for a in group.answers
        ]
        assert all(torch.equal(a.old, b.old) for a, b in zip(again.answers, group.answers, strict=True))


def test_rows_come_in_the_order_of_their_length():
    lengths = [len(prompt) + len(answer.tokens) for prompt, answer in by_length(groups())]
    assert lengths == [6, 6, 6, 5]


def test_questions_that_leave_no_room_are_left_out_and_counted():
    found = Questions(Mixture({"letters": Letters()}), Digits(), max_prompt_tokens=5)
    assert found.num_too_long == 3
    assert sorted(len(found.prompt(row)) for row in found.usable) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"every one of the 8 questions.*raise stage\.sequence_len"):
        Questions(Mixture({"letters": Letters()}), Digits(), max_prompt_tokens=0)


def test_a_task_without_a_grade_is_named():
    class Chat(Letters):
        graded = False

    with pytest.raises(ValueError, match=r"chat.*has no reward.*mixture\.tasks\.chat=null"):
        Questions(Mixture({"letters": Letters(), "chat": Chat()}), Digits(), max_prompt_tokens=100)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200, None, "1", [1.0], ...], ids=str)
@pytest.mark.parametrize("method", ["reward", "grade"])
def test_a_reward_that_is_no_finite_number_names_task_question_and_value(value: Any, method: str):
    class Odd(Letters):
        pass

    setattr(Odd, method, lambda self, conversation, completion: value)
    if method == "grade":
        Odd.reward = Task.reward  # type: ignore[method-assign]
    questions = Questions(Mixture({"odd": Odd()}), Digits(), max_prompt_tokens=100)
    row = next(row for row in range(8) if questions.text(row))
    with pytest.raises(ValueError, match=r"the task odd rewarded an answer to the question 'q+' with") as error:
        questions.reward(row, "11")
    assert repr(value) in str(error.value)
    assert "matrix_lr" not in str(error.value)


@pytest.mark.parametrize("value", [10**400, torch.ones(2)], ids=["huge", "tensor"])
def test_a_reward_that_no_float_holds_is_refused_too(value: Any):
    class Odd(Letters):
        def reward(self, conversation, completion):
            return value

    questions = Questions(Mixture({"odd": Odd()}), Digits(), max_prompt_tokens=100)
    with pytest.raises(ValueError, match="a reward must be a finite number"):
        questions.reward(0, "11")


@pytest.mark.parametrize("value", [True, 0, 0.5, torch.tensor(1.0)])
def test_a_reward_may_be_any_kind_of_finite_number(value: Any):
    class Kind(Letters):
        def reward(self, conversation, completion):
            return value

    assert Questions(Mixture({"kind": Kind()}), Digits(), max_prompt_tokens=100).reward(0, "") == float(value)
