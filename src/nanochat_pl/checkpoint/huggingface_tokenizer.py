"""A tokenizer in Hugging Face's form: `tokenizer.json` for the `tokenizers` library, and the chat template.

The library writes each byte as one printable character and knows merges where tiktoken knows ranks. tiktoken merges
*any* two neighbours whose union has a rank, the lowest first, so every way to cut a token into two others becomes a
merge here. Both regex engines must also agree on where text is cut; `check_agreement` asks both before a file is
written or believed.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["CHAT_TEMPLATE", "check_agreement", "from_tokenizer_json", "learned_tokens", "to_tokenizer_json"]

CHAT_TEMPLATE = """\
{%- if not messages -%}
    {{- raise_exception('a conversation needs one message or more') -}}
{%- elif messages[0].role == 'system' -%}
    {%- if messages | length < 2 or messages[1].role != 'user' -%}
        {{- raise_exception('a system message must be followed by a user message') -}}
    {%- endif -%}
    {%- set lead = messages[0].content + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set lead = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|bos|>' -}}
{%- for message in turns -%}
    {%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}
        {{- raise_exception('user and assistant must take turns, the user first') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {%- if message.content is not string -%}
            {{- raise_exception('the content of a user message must be a string') -}}
        {%- endif -%}
        {{- '<|user_start|>' + (lead if loop.first else '') + message.content + '<|user_end|>' -}}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- if message.content is string -%}
            {{- message.content -}}
        {%- else -%}
            {%- for part in message.content -%}
                {%- if part.type == 'python' -%}
                    {{- '<|python_start|>' + part.text + '<|python_end|>' -}}
                {%- elif part.type == 'python_output' -%}
                    {{- '<|output_start|>' + part.text + '<|output_end|>' -}}
                {%- elif part.type != 'text' -%}
                    {{- raise_exception('a part must be text, python or python_output') -}}
                {%- elif loop.previtem is defined and loop.previtem.type == 'text' -%}
                    {{- raise_exception('two text parts in a row would be cut into other tokens; join them') -}}
                {%- else -%}
                    {{- part.text -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|assistant_end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""
"""What `Tokenizer.render_conversation` lays out, in Jinja; with `add_generation_prompt`, `render_for_completion`."""

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
_CHAR_OF = {byte: char for char, byte in _BYTE_OF.items()}

_PROBES = (
    "The quick brown fox, isn't it? I'LL say WE'VE 'twas  two  spaces\tand\ttabs.",
    "Numbers: 1 12 123 1234567890, 3.14159, 2^10 = 1024; ١٢٣ ④ Ⅷ ½",
    "line\nbreaks\r\n\r\n  indented\n\n\n    deeper  \n \t \n",
    "def f(x):\n    return {'a': [x ** 2, -x // 3]}  # comment!!! ???\n",
    "Ünïcödé, naïve café, Ελληνικά, русский, עברית, العربية, हिन्दी, 日本語, 한국어, ไทย",
    "e\u0301 combining, 👩‍👩‍👧 joined, 🇪🇺 flags, \u00a0no-break\u2003em\u3000wide\u2028line\u0085next\u200bzero",
    "'s'S 'ſ 'k'K don't DON'T 'Re 'vE it's's",
    "",
)
"""Text on which split patterns and regex engines are apt to differ."""


def learned_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """Return the byte string of every learned token, index = id."""
    return [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size - len(SPECIAL_TOKENS))]


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json`; the ids it gives to text are ours.

    One difference cannot be helped: the library reads control tokens spelt out in text as control tokens, ours never.
    """
    tokens = learned_tokens(tokenizer)
    written = ["".join(_CHAR_OF[byte] for byte in token) for token in tokens]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.special_id(name), "content": name, **plain} for name in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a chunk that is a token as a whole is not taken apart: tiktoken's rule
            "vocab": {text: token for token, text in enumerate(written)},
            "merges": [f"{written[left]} {written[right]}" for left, right in _merges(tokens)],
        },
    }


def _merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (left id, right id) of every merge, in the order in which merges are done."""
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    for rank, token in enumerate(tokens):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(rank_of[left], rank_of[right]) for left, right in cuts if left in rank_of and right in rank_of]
        # Of one token's pairs those first whose halves are older than it: the others meet only in odd text.
        pairs.sort(key=lambda pair: (max(pair) > rank, pair))
        yield from pairs


def from_tokenizer_json(content: Mapping[str, Any]) -> Tokenizer:
    """Read the content of `tokenizer.json`.

    Raises:
        ValueError: It is no byte-level BPE of nanochat's form, or gives text other ids than our tokenizer would.
    """
    try:
        model, steps = content["model"], content["pre_tokenizer"]["pretokenizers"]
        if model["type"] != "BPE" or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
            raise ValueError(
                f"it is {model['type']} after {' and '.join(step['type'] for step in steps)}, expected BPE after Split "
                "and ByteLevel"
            )
        if content.get("normalizer") is not None:
            raise ValueError(f"it changes text before cutting it ({content['normalizer'].get('type')})")
        pattern = steps[0]["pattern"]["Regex"]
        if not isinstance(pattern, str):
            raise ValueError(f"its split pattern is {pattern!r}, no text")
        special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        texts = {token: text for text, token in model["vocab"].items() if text not in special}
        tokens = [bytes(_BYTE_OF[char] for char in texts[token]) for token in range(len(texts))]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"it is no byte-level BPE with a split pattern and ids 0, 1, 2 ... ({type(error).__name__}: {error})"
        ) from None
    expected = {name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
    if special != expected:
        raise ValueError(f"expected the special tokens {expected}, found {special}")
    tokenizer = Tokenizer(tokens, pattern=pattern, origin="Hugging Face tokenizer.json")
    check_agreement(tokenizer, content)
    return tokenizer


def check_agreement(tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Encode hard text and every token's own text with both libraries.

    Raises:
        ValueError: They disagree; shows where.
    """
    import tokenizers

    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"the tokenizers library cannot read it: {str(error).splitlines()[0]}") from None
    words = [token.decode("utf-8", errors="ignore") for token in learned_tokens(tokenizer)]
    texts = [*_PROBES, *words, *(" ".join(words[i : i + 50]) for i in range(0, len(words), 500))]
    for text, encoded in zip(texts, theirs.encode_batch(texts, add_special_tokens=False)):
        ours = tokenizer.encode(text)
        if encoded.ids != ours:
            raise ValueError(
                f"the tokenizers library cuts {text[:60]!r} into {encoded.ids[:8]}, tiktoken into {ours[:8]}: the "
                f"split pattern {tokenizer.pattern!r} or the merges mean different things to the two"
            )
