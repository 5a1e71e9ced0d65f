"""Generation of many different requests at once; RL, evaluation, terminal and server all use this engine.

The answer to a request depends on the model and on its own prompt, settings and random stream, but not on the other
rows of the batch (up to the rounding of matrix products of another shape).
Differs from nanochat (2025-11): there one random stream serves all rows, the first token is drawn once for all samples
of a prompt, and finished rows are computed until the last one ends.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nanochat_pl.decoding import Calculator, DecodingSession
from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.inference import InferenceCopy
from nanochat_pl.requests import Completion, Event, Request, TokenLogprobs, check_request
from nanochat_pl.runtime import pick_compute_dtype

__all__ = ["Completion", "DecodingSession", "Engine", "Event", "Request", "TokenLogprobs"]


class Engine:
    """Generate with a model.

    Args:
        model: its weights are read, never changed. The engine decodes with a copy in `dtype`, which it updates at the
            beginning of each session if the weights have changed.
        stop_ids: tokens that end a row; they are not part of the result.
        tokenizer: with one (`encode`, `decode`, `special_id`) the calculator is on; without, its tokens are ordinary.
        dtype: dtype of the copy and the cache: float32, bfloat16, or auto = bfloat16 where the device computes in it.
        penalties: fields of `Request` that hold for every request, such as {"repetition_penalty": 1.1}.
        context_tokens: most tokens of a row, prompt and answer; None = the model's `sequence_len`. It may exceed the
            length that the model was trained with, up to `rotary_rows`.

    Raises:
        ValueError: when the dtype is unknown, or the model has fewer positions.
    """

    def __init__(
        self,
        model: GPT,
        stop_ids: Collection[int],
        tokenizer: Any | None = None,
        dtype: str = "auto",
        penalties: Mapping[str, float] | None = None,
        context_tokens: int | None = None,
    ):
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.dtype = pick_compute_dtype(dtype, model.device, "engine.dtype")
        self.context_tokens = model.config.sequence_len if context_tokens is None else context_tokens
        if not 1 <= self.context_tokens <= model.config.rotary_rows:
            raise ValueError(
                f"context_tokens={context_tokens} is none of the {model.config.rotary_rows} positions that the model "
                "knows (ten times model.sequence_len); lower it"
            )
        self._copy = InferenceCopy(model, self.dtype)
        self._penalties = dict(penalties or {})
        self._tool = None if tokenizer is None else Calculator(tokenizer)

    def refresh(self) -> None:
        """Read the model's weights again.

        This is needed only after changes that torch does not count, such as those through `.data`.
        """
        self._copy.refresh()

    def session(self, batch_size: int = 32) -> DecodingSession:
        """Begin a session of `batch_size` rows, to which requests can be added while it runs.

        Do not change the model's weights before the session ends.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        return DecodingSession(
            self._copy.follow(), self.stop_ids, self._tool, batch_size, self._penalties, self.context_tokens
        )

    def run(
        self,
        requests: Sequence[Request],
        batch_size: int = 32,
        on_token: Callable[[int, int, bool], bool | None] | None = None,
    ) -> list[Completion]:
        """Continue every prompt until a stop token, its `max_new_tokens`, or a row of `context_tokens`.

        Args:
            requests: in any order; equal prompts are read once.
            batch_size: most rows at once.
            on_token: called with (number of the request, token, whether the model sampled it) for each new token, stop
                tokens excepted; False ends that request.

        Returns:
            The completion of each request, in the order of the requests.

        Raises:
            ValueError: for a prompt that is empty, leaves no room or holds an unknown id; for settings out of range.
        """
        session = self.session(batch_size)
        for i, request in enumerate(requests):
            check_request(request, request.prompt, f"prompt {i}", self.model.config, self.context_tokens)
        first: dict[tuple[int, ...], int] = {}
        # the longest first, so that the cache never grows; samples of one prompt together, so that it is soon forgotten
        order = sorted(
            range(len(requests)),
            key=lambda i: (-len(requests[i].prompt), first.setdefault(tuple(requests[i].prompt), i)),
        )
        for i in order:
            session.submit(requests[i])
        completions: dict[int, Completion] = {}
        while session.num_unfinished:
            for event in session.step():
                i, ended = order[event.id], event.completion
                if (
                    on_token is not None
                    and event.token is not None
                    and on_token(i, event.token, event.sampled) is False
                ):
                    ended = session.cancel(event.id) or ended
                if ended is not None:
                    completions[i] = ended
        return [completions[i] for i in range(len(requests))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | str = 0,
        num_samples: int = 1,
        batch_size: int = 32,
        on_token: Callable[[int, int, bool], bool | None] | None = None,
        **penalties: Any,
    ) -> list[Completion]:
        """Continue every prompt `num_samples` times with the same settings; see `Request` and `run`.

        Sample j of prompt i is number i * num_samples + j, and its random stream is named by (seed, i, j).
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        requests = [
            Request(prompt, max_new_tokens, temperature, top_k, top_p, min_p, seed=f"{seed}/{i}/{j}", **penalties)
            for i, prompt in enumerate(prompts)
            for j in range(num_samples)
        ]
        return self.run(requests, batch_size, on_token)
