"""A model in the form that evaluation harnesses ask: how likely is a text, how likely its end, and what follows it.

`HarnessModel` answers with what the other evaluations use: beginnings that are shared are read once
(`core_scoring.py`), and answers come from the engine, many at a time. It needs no harness; `harness.py` passes it to
EleutherAI's. The rules are those of its Hugging Face model (lm-eval 0.4, 2026) except where a docstring says
`Differs:`, so that results may be compared with published ones.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nanochat_pl.engine import Engine, Request
from nanochat_pl.eval.ask import Progress
from nanochat_pl.eval.core_scoring import LineEncoder, Row, common_prefix, score_items
from nanochat_pl.eval.results import ExampleLog
from nanochat_pl.model.gpt import GPT
from nanochat_pl.requests import PENALTIES
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["HarnessModel", "generation_settings", "request_digest", "windows"]

log = logging.getLogger(__name__)

_CHUNK_REQUESTS = 256
"""Requests answered between two writes of the log; those of similar length share a forward."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks state the most tokens of an answer; the first one present counts."""

# Control tokens are written by name in a rendered conversation; a word joiner splits "<|" in anyone's words.
_CONTROL = re.compile(r"(<\|[a-z_]+\|>)")
_OPENING = re.compile("<(\u2060*)\\|")
_PARTED = re.compile("<\u2060(\u2060*)\\|")


class HarnessModel:
    """Answers the harness's requests with a model, its tokenizer and an engine.

    A request has `args`, and `task_name` and `doc_id`, which say what belongs together. To pass the model to the
    harness yourself, derive a class from this one and `lm_eval.api.model.LM`, in this order.

    Args:
        engine: An engine over the model; its stop ids end answers as well as stop strings do.
        chat: Contexts are conversations (`apply_chat_template`), not plain text.
        max_batch_tokens: As in `core_scoring.score_items`.
        max_new_tokens: Most tokens of an answer where the task does not say.
        seed: Names the random streams of sampled answers.
        answers: Requests already answered, and where to put new answers (`id`, `response`, `cut`): another log than
            that of the records. Its configuration must hold `chat`, `max_new_tokens` and `seed`. None = memory only.
        progress: Called with (answered, asked) of the requests of one kind after each chunk.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        chat: bool = False,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
        max_new_tokens: int = 256,
        seed: int = 0,
        answers: ExampleLog | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.engine, self.chat = model, tokenizer, engine, chat
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens
        self.max_new_tokens, self.seed, self.progress = max_new_tokens, seed, progress
        self.answers = answers or ExampleLog()
        self.answered: set[str] = set()
        """Digests (`request_digest`) of the requests answered in this session."""
        self.cut: set[str] = set()
        """Digests of the requests that lost their beginning."""
        self._context_tokens: int = model.config.sequence_len
        self._encoder = LineEncoder(tokenizer)
        self._ignored: set[str] = set()

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness may cache what depends on the tokenizer and its chat form."""
        return f"nanochat_pl-{self.tokenizer.fingerprint()[:16]}"

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return ln p(continuation | context), and whether it is the greedy one, for each (context, continuation).

        Both are encoded as one text after `<|bos|>`; white space at the context's end counts as the continuation's.
        A row longer than the model's context loses its beginning; an empty continuation is certain.
        Differs: the harness finds the continuation's tokens by counting those of the context, which loses one that
        reaches over the border; here that token is the first one scored.
        """
        responses = self._answer("loglikelihood", requests, self._score_pairs)
        return [(total, greedy) for total, greedy in responses]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return ln p(text) of each request (text,), after `<|bos|>`, in windows where it is longer than the context.

        Each token is scored once; all windows but the first are whole, and the last one scores what is left.
        """
        return self._answer("loglikelihood_rolling", requests, self._score_texts)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what the model writes after the context of each request (context, settings), up to a stop string.

        Settings: `until` (text or texts), `max_gen_toks` (or `max_new_tokens`, `max_tokens`,
        `max_completion_tokens`), `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, and the penalties of `Request`;
        others cause a warning. A context loses its beginning where it leaves too little room, but an answer takes at
        most half of the model's context from it. Equal requests that are sampled are different samples.
        Differs: for the harness an answer as long as the model's context is an error.
        """
        return self._answer("generate_until", requests, self._write)

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as text that this class reads as control tokens and words, whatever the words say.

        Args:
            chat_history: Messages of user and assistant in turns, after the system message where there is one.
            add_generation_prompt: Open the assistant's turn; else the last message, the assistant's, stays open.

        Raises:
            ValueError: The model was made with `chat=False`, or the turns are out of order.
        """
        if not self.chat:
            raise ValueError("conversations are asked of a model made for plain text; make it with chat=True")
        messages = [{"role": m["role"], "content": _escaped(m["content"])} for m in chat_history]
        ids, _ = self.tokenizer.render_conversation({"messages": messages}, max_tokens=2**31)
        if add_generation_prompt:
            ids = [*ids, self.tokenizer.special_id("<|assistant_start|>")]
        elif messages[-1]["role"] == "assistant":
            ids = ids[:-1]
        return self.tokenizer.decode(ids)

    def encode(self, context: str, continuation: str = "") -> list[int]:
        """Return the ids of a context and what follows it, beginning with `<|bos|>`."""
        if not (self.chat and context.startswith("<|bos|>")):  # plain text, not a rendered conversation
            return self._encoder.encode([context + continuation])[0]
        ids: list[int] = []
        for piece in _CONTROL.split(context + _escaped(continuation)):
            control = _CONTROL.fullmatch(piece) is not None
            words = _PARTED.sub(r"<\1|", piece)
            ids += [self.tokenizer.special_id(piece)] if control else self.tokenizer.encode(words)
        return ids

    def _answer(self, kind: str, requests: Sequence[Any], solve: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """Return the logged response to each request; `solve` returns (response, cut) for those without one."""
        times: Counter[str] = Counter()
        questions: dict[str, dict[str, Any]] = {}
        keys = []
        for request in requests:
            digest = request_digest(kind, request.args)
            times[digest] += 1
            # The same question twice has one answer, unless answers are drawn.
            key = f"{digest}/{times[digest]}" if kind == "generate_until" else digest
            keys.append(key)
            questions.setdefault(key, {"id": key, "digest": digest, "request": request})
        distinct = list(questions.values())
        pending = self.answers.pending(distinct, _CHUNK_REQUESTS) if distinct else []
        done = len(distinct) - sum(map(len, pending))
        for chunk in pending:
            responses = solve(list(chunk))
            self._encoder.forget()
            self.answers.append(
                [
                    {"id": question["id"], "response": response, "cut": cut}
                    for question, (response, cut) in zip(chunk, responses, strict=True)
                ]
            )
            self.answered |= {question["digest"] for question in chunk}
            done += len(chunk)
            if self.progress is not None:
                self.progress(done, len(distinct))
        found = [self.answers.records[key] for key in keys]
        cut = {key.partition("/")[0] for key, record in zip(keys, found, strict=True) if record["cut"]}
        self.cut |= cut
        if cut:
            log.warning(
                "%s: %d of %d requests are longer than the model's context of %d tokens and lost their beginning",
                kind,
                len(cut),
                len(times),
                self._context_tokens,
            )
        return [record["response"] for record in found]

    def _score_pairs(self, chunk: list[Any]) -> list[tuple[tuple[float, bool], bool]]:
        rows = []
        for question in chunk:
            context, continuation = question["request"].args
            ids = self.encode(context, continuation)
            rows.append((question["request"], ids, common_prefix([self.encode(context.rstrip()), ids])))
        cut = [len(ids) - 1 > self._context_tokens for _, ids, _ in rows]
        return list(zip(self._score(rows), cut, strict=True))

    def _score_texts(self, chunk: list[Any]) -> list[tuple[float, bool]]:
        rows = [(question["request"], self._encoder.encode(list(question["request"].args))[0], 1) for question in chunk]
        return [(total, False) for total, _ in self._score(rows)]

    def _score(self, rows: Sequence[tuple[Any, list[int], int]]) -> list[tuple[float, bool]]:
        """Return the sum of ln p over the tokens of each row from its start on, and whether all are the likeliest."""
        items: list[list[Row]] = []
        owners: list[list[int]] = []
        document = None
        for number, (request, ids, start) in enumerate(rows):
            for row in windows(ids, start, self._context_tokens):
                # Choices of a question are read as one where they share most of what they have.
                same = document == (request.task_name, request.doc_id)
                if same and 2 * common_prefix([items[-1][0].ids, row.ids]) >= len(row.ids):
                    items[-1].append(row)
                    owners[-1].append(number)
                else:
                    items.append([row])
                    owners.append([number])
                document = request.task_name, request.doc_id
        totals, greedy = [0.0] * len(rows), [True] * len(rows)
        for item, numbers, scores in zip(
            items, owners, score_items(self.model, items, self.max_batch_tokens), strict=True
        ):
            for row, number, score in zip(item, numbers, scores, strict=True):
                totals[number] -= sum(score.losses)
                greedy[number] &= score.predictions == list(row.ids[row.start :])
        return list(zip(totals, greedy, strict=True))

    def _write(self, chunk: list[Any]) -> list[tuple[str, bool]]:
        requests, answers, cut = [], [], []
        for question in chunk:
            context, task_settings = question["request"].args
            settings, until, ignored = generation_settings(task_settings, self.max_new_tokens)
            if new := ignored - self._ignored:
                self._ignored |= new
                log.warning("generation settings without effect here: %s", ", ".join(sorted(new)))
            ids = self.encode(context)
            room = self._context_tokens - min(settings["max_new_tokens"], self._context_tokens // 2)
            cut.append(len(ids) > room)
            requests.append(Request(ids[-room:], seed=f"{self.seed}/{question['id']}", **settings))
            answers.append(_StoppedText(self.tokenizer, until))
        self.engine.run(requests, self.batch_size, on_token=lambda i, token, _: answers[i].take(token))
        return [(answer.text, shortened) for answer, shortened in zip(answers, cut, strict=True)]


class _StoppedText:
    """Text as it is written, up to the first of its stop strings."""

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str]) -> None:
        self._tokenizer, self._stops, self._bytes = tokenizer, [text.encode() for text in until], bytearray()

    def take(self, token: int) -> bool | None:
        """Add a token; False = a stop string is complete."""
        # Among bytes, since a character may be several tokens; UTF-8 has no false matches.
        known = len(self._bytes)
        self._bytes += self._tokenizer.decode_bytes([token])
        positions = [self._bytes.find(stop, max(0, known - len(stop) + 1)) for stop in self._stops]
        found = [position for position in positions if position >= 0]
        if not found:
            return None
        del self._bytes[min(found) :]
        return False

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", errors="replace")


def windows(ids: Sequence[int], start: int, context_tokens: int) -> Iterator[Row]:
    """Yield rows in which each token from `start` on is scored once, each row reading at most `context_tokens`.

    A row that is not the first is as long as can be: its last scored token has the whole context before it.
    """
    done = start
    while done < len(ids):
        # The token before the first scored one is read, too, so there is room for a whole context of scored ones.
        end = min(len(ids), done + context_tokens)
        first = max(0, end - context_tokens - 1)
        yield Row(ids[first:end], done - first)
        done = end


def generation_settings(given: Mapping[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str], set[str]]:
    """Translate a task's generation settings; return settings of a `Request`, stop strings, and names unknown here.

    Answers are greedy where `do_sample` is false, or neither it nor a temperature is set; `do_sample` alone means
    temperature 1. `top_k` 0 means all tokens.
    """
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    sampled, temperature = given.get("do_sample"), given.get("temperature")
    if sampled is False:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0 if sampled else 0.0
    settings = {
        "max_new_tokens": int(next((given[name] for name in _LENGTHS if given.get(name) is not None), max_new_tokens)),
        "temperature": float(temperature),
        "top_k": given.get("top_k") or None,
        "top_p": given.get("top_p"),
        "min_p": given.get("min_p"),
    }
    settings |= {name: float(given[name]) for name in PENALTIES if given.get(name) is not None}
    known = {"until", *PENALTIES, "do_sample", *_LENGTHS, *settings}
    return settings, [text for text in until if text], set(given) - known


def request_digest(kind: str, args: Sequence[Any]) -> str:
    """Return 32 hex digits that name a request of a kind by all that is asked."""
    text = json.dumps([kind, *args], sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _escaped(text: str) -> str:
    return _OPENING.sub("<\u2060\\1|", text)
