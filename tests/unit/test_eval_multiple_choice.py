"""Likelihood of letters: the right token, and the same score in any batch."""

import pytest
import torch

from nanochat_pl.eval.multiple_choice import LetterTokens, letter_tokens, score_letters
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

TEXT = ["The correct answer is A. x", "The correct answer is B. y", "The correct answer is C. z"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT * 20, 285)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPT(
        GPTConfig(sequence_len=32, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    )
    draw = torch.Generator().manual_seed(0)
    model.init_weights(draw)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def test_letter_token_is_that_of_the_training_text(tokenizer):
    tokens = letter_tokens(tokenizer, "ABC")
    for letter in "ABC":
        ids, _ = tokenizer.render_conversation(
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": f"The correct answer is {letter}. x"},
                ]
            }
        )
        begun = [*tokens.stem, tokens.ids[letter]]
        start = ids.index(tokenizer.special_id("<|assistant_start|>")) + 1
        assert ids[start : start + len(begun)] == begun


class JoinsSpaceWithAB:
    """One token a character, but " A" and " B" are one."""

    def encode(self, text):
        return [ord(character) for character in text.replace(" A", "a").replace(" B", "b")]


def test_letter_token_includes_the_space_where_the_vocabulary_joins_them():
    tokens = letter_tokens(JoinsSpaceWithAB(), "AB")
    assert tokens.ids == {"A": ord("a"), "B": ord("b")}
    assert tokens.stem == tuple(map(ord, "The correct answer is"))
    assert letter_tokens(JoinsSpaceWithAB(), "AB", stem="").ids == {"A": ord("A"), "B": ord("B")}
    assert letter_tokens(JoinsSpaceWithAB(), "CD").stem == tuple(map(ord, "The correct answer is "))


def test_letter_of_several_tokens_is_logged_and_keeps_all_of_them(caplog):
    tokens = letter_tokens(JoinsSpaceWithAB(), "ABCD")
    assert "letters C, D after 'The correct answer is ': not one token" in caplog.text
    assert tokens.stem == tuple(map(ord, "The correct answer is")) and tokens.num_tokens == 2
    assert tokens.longer == {"A": (97,), "B": (98,), "C": (32, 67), "D": (32, 68)}


class JoinsFullStop:
    """One token a character, but "A." is one, and "B" is two."""

    def encode(self, text):
        return [ord(character) for character in text.replace("A.", "a").replace("B", "bb")]


def test_the_full_stop_counts_where_a_letter_is_joined_with_it():
    tokens = letter_tokens(JoinsFullStop(), "AB", stem="")
    assert (tokens.stem, tokens.longer) == ((), {"A": (97,), "B": (98, 98, 46)})


@pytest.mark.parametrize("limit", [1, 60, 10_000])
def test_a_letter_of_several_tokens_scores_the_sum_over_them(model, limit):
    tokens = LetterTokens((9, 8), {}, longer={"A": (65,), "B": (32, 66), "C": (32, 67, 46)})
    prompts, letters = [[5, 6, 7], [4] * 30, [1]], [list("ABC"), list("CA"), list("BC")]
    scores = score_letters(model, prompts, letters, tokens, max_batch_tokens=limit)
    for prompt, own, found in zip(prompts, letters, scores, strict=True):
        assert list(found) == own
        for letter, score in found.items():
            ids, expected = [*prompt, *tokens.stem], 0.0
            for token in tokens.longer[letter]:
                with torch.no_grad():
                    expected += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
                ids.append(token)
            assert score == pytest.approx(expected, abs=1e-4)


def test_fewer_than_two_letters_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="at least two letters"):
        letter_tokens(tokenizer, "AA")


def test_scores_in_batches_equal_those_one_at_a_time(model, tokenizer):
    tokens = letter_tokens(tokenizer, "ABC")
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 256, (n,), generator=draw).tolist() for n in (3, 40, 7, 7, 1, 25, 12)]
    letters = [list("ABC"), list("AB"), list("BC"), list("ABC"), list("CA"), list("ABC"), list("AB")]
    alone = [score_letters(model, [p], [own], tokens)[0] for p, own in zip(prompts, letters)]
    for limit in (1, 60, 10_000):
        together = score_letters(model, prompts, letters, tokens, max_batch_tokens=limit)
        for one, other in zip(alone, together):
            assert list(one) == list(other)
            assert one == pytest.approx(other, abs=1e-5)


def test_a_score_is_the_log_probability_of_the_whole_vocabulary(model, tokenizer):
    tokens = letter_tokens(tokenizer, "ABC")
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, *tokens.stem]]))[0, -1]
    expected = {letter: logits.log_softmax(-1)[tokens.ids[letter]].item() for letter in "ABC"}
    assert score_letters(model, [[5, 6, 7]], [list("ABC")], tokens)[0] == pytest.approx(expected, abs=1e-5)


def test_each_prompt_is_read_once_in_batches_within_the_limit(model, tokenizer, monkeypatch):
    seen, hidden = [], model.hidden

    def counted(ids, positions=None, kv_cache=None):
        seen.append(tuple(ids.shape))
        return hidden(ids, positions, kv_cache)

    monkeypatch.setattr(model, "hidden", counted)
    lengths = [3, 90, 7, 7, 200, 25, 12, 1]
    tokens = letter_tokens(tokenizer, "AB", stem="")
    score_letters(model, [[5] * length for length in lengths], [["A", "B"]] * len(lengths), tokens, 100)
    assert sum(rows for rows, _ in seen) == len(lengths)
    assert all(rows == 1 or rows * width <= 100 for rows, width in seen)


def test_broken_weights_are_an_error(tokenizer):
    model = GPT(GPTConfig(sequence_len=32, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8))
    with pytest.raises(ValueError, match="not finite"):
        score_letters(model, [[1]], [["A", "B"]], letter_tokens(tokenizer, "AB"))
