import random
from dataclasses import dataclass
from typing import Any
from nanochat_pl.engine import Engine as Old, sample

@dataclass(frozen=True)
class Request:
    prompt: Any
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    seed: Any = 0

@dataclass
class Completion:
    tokens: list
    mask: list
    stop_token: int | None
    tool_calls: int = 0
    tool_errors: int = 0

class Engine:
    def __init__(self, model, stop_ids, tokenizer=None, dtype="auto"):
        self.old = Old(model, stop_ids)
        self.stop = min(stop_ids)
    def refresh(self):
        pass
    def run(self, requests, batch_size=32, on_token=None):
        import nanochat_pl.engine as e
        r = requests[0]
        real = random.Random
        class Fake:
            Random = staticmethod(lambda name: real(str(requests[int(name.rpartition("/")[2])].seed)))
        e.random = Fake
        try:
            out = self.old.generate([x.prompt for x in requests], r.max_new_tokens, r.temperature, r.top_k, batch_size=batch_size)
        finally:
            e.random = random
        limit = self.old.model.config.sequence_len
        return [Completion(t, [1] * len(t), None if len(t) >= min(r.max_new_tokens, limit - len(x.prompt)) else self.stop) for t, x in zip(out, requests)]
