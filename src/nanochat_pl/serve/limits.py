"""What a server allows, decided by who runs it; batch and queue belong to each model's `Worker`."""

from dataclasses import dataclass
from typing import get_args

from nanochat_pl.serve.context import Policy

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and rights of a server.

    Raises:
        ValueError: for limits that allow nothing, an empty key or an unknown policy.
    """

    api_keys: tuple[str, ...] = ()
    """Requests must bear one of them; none = whoever reaches the server may use it."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may use it, `*` = all; none = only its own."""
    hosts: tuple[str, ...] = ()
    """Names it may be called by (the header `Host`, without a port); none = any. A server that only its own machine
    reaches needs them: else a page from elsewhere could let its own name lead there, and read along."""
    max_messages: int = 500
    max_message_chars: int = 8_000
    max_total_chars: int = 32_000
    """Of all messages or prompts of a request together."""
    max_body_bytes: int = 1 << 20
    max_tokens: int = 2048
    """Most new tokens of a choice, and a chat's default."""
    max_choices: int = 32
    """Answers one request may ask for: `n` times its prompts."""
    request_timeout_s: float = 120.0
    """From its arrival to its last token, waiting included."""
    stalled_client_s: float = 60.0
    """A client that is to send the body of its request, or to read its stream, and does neither for so long is left."""
    heartbeat_s: float = 15.0
    """A stream that has nothing to say for so long says a comment line: proxies cut connections that are silent."""
    context: Policy = "refuse"
    """What happens to a conversation that is too long, unless the request says."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith(("max_", "request_", "stalled_", "heartbeat_")) and not value > 0:
                raise ValueError(f"{name}={value} must be above 0")
        if not all(self.api_keys):
            raise ValueError("an API key is empty; put a long random string there")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ValueError("an API key holds blanks or characters beyond ASCII, which no header can carry")
        if self.context not in get_args(Policy):
            raise ValueError(f"context={self.context!r} is unknown; choose one of {', '.join(get_args(Policy))}")
