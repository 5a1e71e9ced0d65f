"""Continuous batching: the rows that are generated together, and the session that decodes one token for all of them.

A prompt is read once, its keys and values are then copied to each of its samples. Rows of all lengths share one
key/value cache; a row that is done leaves and a waiting request takes its place, so a long answer never holds up a
batch of short ones.

With a `Calculator`, the expression that a row writes between `<|python_start|>` and `<|python_end|>` is evaluated, and
`<|output_start|>…<|output_end|>` follows it. These forced tokens are read one a step, like sampled ones, and count as
new ones.
(nanochat, 2025-11)
"""

import math
import random
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nanochat_pl.calculator import calculate
from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.requests import Completion, Event, Request, TokenLogprobs, check_request
from nanochat_pl.sampling import penalize, sample

__all__ = ["Calculator", "DecodingSession"]

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Most tokens, padding included, of the prompts that one forward reads; a longer prompt is read alone. A CPU is as fast
with few, and prompts of similar length waste little on padding."""
LOGPROBS_BLOCK = 128
"""How many positions of a prompt have their logits in memory at once."""
NOT_FINITE = (
    "the model computes values that are not finite: its weights are broken or its training diverged; open an earlier "
    "checkpoint of the run"
)
CAPACITY_STEP = 64
"""The cache grows by whole multiples of this many tokens a row."""


class _Row:
    """A request with its tokens so far."""

    def __init__(self, number: int, request: Request, prompt: tuple[int, ...], room: int, stop_ids: Collection[int]):
        self.number, self.request, self.prompt, self.room = number, request, prompt, room
        self.stop_ids = frozenset(stop_ids if request.stop_ids is None else request.stop_ids)
        self.random = random.Random(str(request.seed)).random
        greedy = request.temperature == 0
        self.restrictions = None if greedy else (request.top_k, request.top_p, request.min_p)
        self.completion = Completion()
        self.unreported: Sequence[TokenLogprobs | None] | None = None
        """Log-probabilities of the prompt, until the first event reports them."""
        self.sampled: Counter[int] | None = None
        """How often each token was sampled; None = the row has no penalty."""
        self.penalties = request.repetition_penalty, request.frequency_penalty, request.presence_penalty
        if self.penalties != (1, 0, 0):
            self.sampled = Counter()
        self.forced: deque[int] = deque()
        self.expression: list[int] | None = None
        self.done = False

    def take(self, sampled: int, tool: "Calculator | None", logprobs: TokenLogprobs | None) -> Event:
        """Append one token: the next forced one if a tool queued any, else the sampled one with its `logprobs`."""
        completion, forced = self.completion, bool(self.forced)
        token: int | None = self.forced.popleft() if forced else sampled
        assert token is not None
        if forced:
            logprobs = None
        if not forced and token in self.stop_ids:
            completion.stop_token, token, self.done = token, None, True
        else:
            completion.tokens.append(token)
            completion.mask.append(int(not forced))
            if self.request.logprobs is not None:
                completion.logprobs.append(logprobs)
            if self.sampled is not None and not forced:
                self.sampled[token] += 1
            self.done = len(completion.tokens) >= self.room
            if tool is not None and not forced:
                tool.watch(self, token)
        return self.event(token, not forced, logprobs)

    def event(self, token: int | None, sampled: bool, logprobs: TokenLogprobs | None = None) -> Event:
        """Return the event of a token, or without one of the row's end; the first event also reports the prompt."""
        prompt_logprobs, self.unreported = self.unreported, None
        return Event(self.number, token, sampled, self.completion if self.done else None, logprobs, prompt_logprobs)

    def penalized(self, exempt: Collection[int]) -> dict[int, float]:
        """Return the tokens that are penalized at the next position, each with the number subtracted from its logit."""
        repetition, frequency, presence = self.penalties
        sampled = Counter[int]() if self.sampled is None else self.sampled
        tokens = {*self.prompt, *self.completion.tokens} if repetition != 1 else sampled
        return {
            token: frequency * sampled[token] + presence * (token in sampled)
            for token in tokens
            if token not in self.stop_ids and token not in exempt
        }


class Calculator:
    """The tool: it reads the tokens of a row and queues results as forced tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.start, self.end, self.output_start, self.output_end = (
            tokenizer.special_id(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")
        )

    def watch(self, row: _Row, token: int) -> None:
        """Read a sampled token; at the end of an expression, evaluate it."""
        if token == self.start:
            row.expression = []
        elif token == self.end:
            if row.expression:
                row.completion.tool_calls += 1
                result = calculate(self.tokenizer.decode(row.expression))
                if result is None:
                    row.completion.tool_errors += 1
                else:
                    row.forced.extend((self.output_start, *self.tokenizer.encode(result), self.output_end))
            row.expression = None
        elif row.expression is not None:
            row.expression.append(token)


@dataclass
class _Prefill:
    """Prompts that were read in one forward."""

    cache: KVCache
    logits: Tensor
    """(n, V), logits of the token after each prompt."""
    scores: dict[tuple[int, ...], tuple[int, list[TokenLogprobs | None]]]
    """Prompt -> how many of the likeliest tokens are reported, and the report; only of prompts that are scored."""


@dataclass
class _Draw:
    """Rows with the same restrictions."""

    restrictions: tuple[Any, ...] | None
    """top_k, top_p, min_p; None = greedy."""
    places: list[int]
    """Their places in the batch."""
    index: Tensor | None
    """The same on the device; None = all rows."""
    numbers: Tensor | None
    """(2, n) float64: a uniform number and the temperature of each row; None for greedy."""


@dataclass
class _Plan:
    """Inputs for choosing the next tokens, apart from the logits.

    The plan is made before the forward, because sending data to a busy device waits until it is done.
    """

    draws: list[_Draw]
    penalties: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """Rows, tokens, repetition penalties and subtracted numbers, as `penalize` takes them; None = no row has any."""


class DecodingSession:
    """Generation to which requests may be added while it runs; made by `Engine.session`.

    Only one thread at a time may use it.
    """

    def __init__(
        self,
        model: GPT,
        stop_ids: Collection[int],
        tool: Calculator | None,
        batch_size: int,
        penalties: Mapping[str, Any] | None = None,
        context_tokens: int | None = None,
    ):
        self._penalties = penalties
        self._model, self._stop_ids, self._tool, self._batch_size = model, stop_ids, tool, batch_size
        self._context_tokens = context_tokens or model.config.sequence_len
        self._waiting: deque[_Row] = deque()
        self._waiting_for: Counter[tuple[int, ...]] = Counter()
        self._read: dict[tuple[int, ...], tuple[_Prefill, int]] = {}  # prompts with waiting samples
        self._active: list[_Row] = []  # in the order of the cache's rows
        self._cache: KVCache | None = None
        self._capacity = 0
        self._num_submitted = 0
        self.num_unfinished = 0
        """How many requests wait or run."""

    def submit(self, request: Request) -> int:
        """Queue a request and return the number of its events: 0, 1, 2, …

        Raises:
            ValueError: the prompt is empty, leaves no room or holds an unknown id, or a setting is out of range.
        """
        number, prompt = self._num_submitted, tuple(request.prompt)
        if self._penalties:
            request = replace(request, **self._penalties)
        check_request(request, prompt, f"prompt {number}", self._model.config, self._context_tokens)
        room = min(request.max_new_tokens, self._context_tokens - len(prompt))
        self._waiting.append(_Row(number, request, prompt, room, self._stop_ids))
        self._waiting_for[prompt] += 1
        self._capacity = max(self._capacity, -(-(len(prompt) + room) // CAPACITY_STEP) * CAPACITY_STEP)
        self._num_submitted += 1
        self.num_unfinished += 1
        return number

    def cancel(self, number: int) -> Completion | None:
        """End a request early; return its completion so far, or None if it has ended already."""
        for row in (*self._active, *self._waiting):
            if row.number == number and not row.done:
                row.done = True
                self.num_unfinished -= 1
                return row.completion
        return None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Decode one token for every active row, let waiting requests enter, and return the events.

        A request's first token comes in the step in which it enters.
        """
        events: list[Event] = []
        # 1) Rows that ended in the last step leave the cache. It closes the gaps by moving its last rows into them, and
        #    says which row now lies where.
        gone = [slot for slot, row in enumerate(self._active) if row.done]
        if gone and self._cache is not None:
            self._active = [self._active[slot] for slot in self._cache.drop_rows(gone)]
        # 2) The remaining rows read their last token together, in one forward, and each draws its next one with its own
        #    settings and random stream. The plan comes first: sending it would wait for a device that computes.
        running = self._active
        if running:
            plan = self._plan(running)
            self._choose(running, plan, self._read_tokens(running), events)
        # 3) Waiting requests take the free rows. Each prompt is read once, several in one forward, and its last logits
        #    give the first token of all its samples; the next step continues them.
        for rows, prefill, index in self._enter(events):
            self._active = self._active + rows
            self._choose(rows, self._plan(rows), prefill.logits[index], events)
        self.num_unfinished -= sum(event.completion is not None for event in events)
        return events

    def _enter(self, events: list[Event]) -> Iterator[tuple[list[_Row], _Prefill, list[int]]]:
        """Assign free rows of the cache to waiting requests; yield those together whose prompts were read together."""
        entering: list[_Row] = []
        while self._waiting and len(self._active) + len(entering) < self._batch_size:
            row = self._waiting.popleft()
            self._waiting_for[row.prompt] -= 1
            if row.done:
                continue
            if row.room > 0 or row.request.prompt_logprobs is not None:
                entering.append(row)
            else:
                row.done = True
                events.append(row.event(None, False))
        if not entering:
            return
        cache = self._reserve(len(self._active) + sum(row.room > 0 for row in entering))
        self._read_entering(entering)
        together: dict[int, list[_Row]] = {}
        for row in entering:
            if row.room > 0:
                together.setdefault(id(self._read[row.prompt][0]), []).append(row)
            else:
                row.done = True
                events.append(row.event(None, False))
        for rows in together.values():
            prefill, index = self._read[rows[0].prompt][0], [self._read[row.prompt][1] for row in rows]
            cache.add_rows(prefill.cache, index)
            yield rows, prefill, index
        self._read = {prompt: read for prompt, read in self._read.items() if self._waiting_for[prompt] > 0}
        self._waiting_for = +self._waiting_for

    def _read_entering(self, rows: Sequence[_Row]) -> None:
        """Read the unread prompts, and attach log-probabilities to the rows that request those of their prompt."""
        counts: dict[tuple[int, ...], int] = {}  # prompt -> how many of the likeliest tokens are reported
        for row in rows:
            if (count := row.request.prompt_logprobs) is not None:
                counts[row.prompt] = max(count, counts.get(row.prompt, 0))

        def is_known(prompt: tuple[int, ...]) -> bool:
            read = self._read.get(prompt)
            return read is not None and counts.get(prompt, -1) <= read[0].scores.get(prompt, (-1,))[0]

        unread = {row.prompt for row in rows if not is_known(row.prompt)}
        for prompts in _portions(sorted(unread, key=len, reverse=True), self._model.device.type):
            prefill = self._read_prompts(prompts, counts)
            self._read |= {prompt: (prefill, i) for i, prompt in enumerate(prompts)}
        for row in rows:
            if (count := row.request.prompt_logprobs) is not None:
                _, scores = self._read[row.prompt][0].scores[row.prompt]
                report = [each and replace(each, top=each.top[:count]) for each in scores]
                row.unreported = row.completion.prompt_logprobs = report

    def _reserve(self, rows: int) -> KVCache:
        """Return the cache, with room for `rows` rows of any length submitted so far."""
        if self._cache is None:
            rows = min(self._batch_size, rows + len(self._waiting))
            self._cache = self._make_cache(rows, self._capacity)
            self._cache.lengths = []
        elif rows > self._cache.rows:
            rows = min(self._batch_size, max(rows, 2 * self._cache.rows))
        self._cache.reserve(rows, self._capacity)
        return self._cache

    def _make_cache(self, rows: int, capacity: int) -> KVCache:
        device, dtype = self._model.device, self._model.compute_dtype
        # CPUs compute attention several times faster in fp32, even where they multiply by weights faster in bf16
        return KVCache(self._model.config, rows, capacity, device, torch.float32 if device.type == "cpu" else dtype)

    def _read_prompts(self, prompts: Sequence[tuple[int, ...]], counts: Mapping[tuple[int, ...], int]) -> _Prefill:
        """Read prompts, the longest first, in one forward; score those that are in `counts`."""
        device, lengths = self._model.device, [len(prompt) for prompt in prompts]
        padded = torch.zeros(len(prompts), lengths[0], dtype=torch.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        cache = self._make_cache(len(prompts), lengths[0])
        last = torch.tensor(lengths, device=device) - 1
        hidden = self._model.hidden(padded.to(device), kv_cache=cache)
        cache.advance(lengths)
        scores = {
            prompt: (counts[prompt], self._prompt_logprobs(prompt, row, counts[prompt]))
            for prompt, row in zip(prompts, hidden, strict=True)
            if prompt in counts
        }
        return _Prefill(cache, self._model.logits(hidden[torch.arange(len(prompts), device=device), last]), scores)

    def _prompt_logprobs(self, prompt: Sequence[int], hidden: Tensor, count: int) -> list[TokenLogprobs | None]:
        """Score each token of a prompt by the hidden state (T, C) before it; the first has none."""
        scores: list[TokenLogprobs | None] = [None]
        for start in range(0, len(prompt) - 1, LOGPROBS_BLOCK):
            tokens = prompt[start + 1 : start + 1 + LOGPROBS_BLOCK]
            logs = self._model.logits(hidden[start : start + len(tokens)]).float().log_softmax(dim=-1)
            own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None]).squeeze(1).tolist()
            top = logs.topk(count)
            if not all(map(math.isfinite, own)):
                raise ValueError(NOT_FINITE)
            likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            scores += [TokenLogprobs(log, tuple(zip(ids, values))) for log, (ids, values) in zip(own, likeliest)]
        return scores

    def _read_tokens(self, rows: Sequence[_Row]) -> Tensor:
        """Read the last token of each row; return the logits (B, V) of the next one."""
        assert self._cache is not None
        tokens = torch.tensor([row.completion.tokens[-1:] for row in rows], device=self._model.device)
        hidden = self._model.hidden(tokens, kv_cache=self._cache)
        self._cache.advance(1)
        return self._model.logits(hidden[:, 0])

    def _plan(self, rows: Sequence[_Row]) -> _Plan:
        """Group rows by their restrictions, draw random numbers, and send these and the penalties to the device."""
        device = _sampling_device(self._model.device)
        groups: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(row.restrictions, []).append(place)
        draws: list[_Draw] = []
        for restrictions, places in groups.items():
            index = None if len(groups) == 1 else torch.tensor(places, device=device)
            numbers = None
            if restrictions is not None:
                # a forced token needs no number: the token that is drawn in its place is dropped
                uniform = [0.0 if rows[place].forced else rows[place].random() for place in places]
                temperatures = [rows[place].request.temperature for place in places]
                numbers = torch.tensor([uniform, temperatures], dtype=torch.float64, device=device)
            draws.append(_Draw(restrictions, places, index, numbers))
        return _Plan(draws, self._penalties_of(rows))

    def _choose(self, rows: Sequence[_Row], plan: _Plan, logits: Tensor, events: list[Event]) -> None:
        """Draw each row's next token from logits (B, V) and let the row take it.

        Raises:
            ValueError: a row has logits that are not finite.
        """
        drawn, logits = [], logits.to(_sampling_device(logits.device))
        finite = logits.amax(dim=-1).isfinite().all()  # a NaN is the largest of any row
        penalized = logits if plan.penalties is None else penalize(logits.float(), *plan.penalties)
        for draw in plan.draws:
            part = penalized if draw.index is None else penalized.index_select(0, draw.index)
            if draw.restrictions is None or draw.numbers is None:
                drawn.append(part.argmax(dim=-1))
            else:
                uniform, temperature = draw.numbers
                drawn.append(sample(part, uniform, temperature.float(), *draw.restrictions))
        *tokens, is_finite = torch.cat([*drawn, finite[None]]).tolist()  # the only wait for the device
        if not is_finite:
            raise ValueError(NOT_FINITE)
        places = [place for draw in plan.draws for place in draw.places]
        scores = _logprobs(rows, logits, dict(zip(places, tokens, strict=True)))
        events.extend(rows[p].take(token, self._tool, scores.get(p)) for p, token in zip(places, tokens, strict=True))

    def _penalties_of(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Send the rows' penalties to the device; see `_Plan.penalties`."""
        tool, device = self._tool, _sampling_device(self._model.device)
        exempt = () if tool is None else (tool.start, tool.end, tool.output_start, tool.output_end)
        places: list[int] = []
        tokens: list[int] = []
        numbers: list[tuple[float, float]] = []  # repetition penalty, subtracted
        for place, row in enumerate(rows):
            if row.sampled is not None and not row.forced:
                subtracted = row.penalized(exempt)
                places += [place] * len(subtracted)
                tokens += subtracted
                numbers += [(row.penalties[0], number) for number in subtracted.values()]
        if not places:
            return None
        row_index, token_index = torch.tensor([places, tokens], device=device)
        repetition, subtraction = torch.tensor(numbers, dtype=torch.float32, device=device).unbind(1)
        return row_index, token_index, repetition, subtraction


def _logprobs(rows: Sequence[_Row], logits: Tensor, tokens: dict[int, int]) -> dict[int, TokenLogprobs]:
    """Score the tokens of the rows that ask for it, by the logits (B, V)."""
    counts = {place: row.request.logprobs for place, row in enumerate(rows) if row.request.logprobs is not None}
    if not counts:
        return {}
    logs = logits[list(counts)].float().log_softmax(dim=-1)
    top = logs.topk(max(counts.values()))
    values, ids = top.values.tolist(), top.indices.tolist()
    return {
        place: TokenLogprobs(float(logs[i, tokens[place]]), tuple(zip(ids[i][:count], values[i][:count])))
        for i, (place, count) in enumerate(counts.items())
    }


def _sampling_device(device: torch.device) -> torch.device:
    """Return the device that draws tokens: the model's, except for MPS, which has no double precision."""
    return torch.device("cpu") if device.type == "mps" else device


def _portions(prompts: Sequence[tuple[int, ...]], device_type: str) -> Iterator[Sequence[tuple[int, ...]]]:
    """Cut prompts, the longest first, into parts of at most `PREFILL_TOKENS`, padding included."""
    limit = PREFILL_TOKENS["cuda" if device_type == "cuda" else "cpu"]
    while prompts:
        count = max(1, limit // len(prompts[0]))
        yield prompts[:count]
        prompts = prompts[count:]
