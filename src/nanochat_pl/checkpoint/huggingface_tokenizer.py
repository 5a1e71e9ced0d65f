"""A tokenizer in Hugging Face's form: `tokenizer.json` for the `tokenizers` library, and the chat template.

The library writes each byte as one printable character and knows merges where tiktoken knows ranks. tiktoken merges
*any* two neighbours whose union has a rank, the lowest first, so every way to cut a token into two others becomes a
merge here. Both regex engines must also agree on where text is cut; `check_agreement` compares them before a file is
written or accepted.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nanochat_pl.paths import reason
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat_pl.vocabulary import BYTE_OF

__all__ = ["CHAT_TEMPLATE", "check_agreement", "from_tokenizer_json", "learned_tokens", "to_tokenizer_json"]

BROKEN = "<\ufdd0|"
"""The template's form of `<|` in a speaker's words, so that it begins no control token; the tokenizer reads it as `<|`.
U+FDD0 is not a character and occurs in no text."""

CHAT_TEMPLATE = """\
{#- How a conversation is read stands in docs/exchange.md. -#}
{%- if tools -%}
    {{- raise_exception('this model knows no tools but its own calculator: leave tools out') -}}
{%- endif -%}
{%- set ns = namespace(lead='', turns=[], parts=[], run='', learned='') -%}
{%- for message in messages -%}
    {%- set role = 'system' if message.role == 'developer' else message.role -%}
    {%- if role not in ('system', 'user', 'assistant') -%}
        {{- raise_exception('the role of a message must be system, user or assistant') -}}
    {%- endif -%}
    {%- if message.tool_calls -%}
        {{- raise_exception('this model knows no tools but its own calculator: a message must have no tool_calls') -}}
    {%- elif message.content is number -%}
        {{- raise_exception('content must be text or a list of parts') -}}
    {%- endif -%}
    {%- set ns.parts = [] -%}
    {%- if message.content is string -%}
        {%- set ns.parts = [['text', message.content]] if message.content else [] -%}
    {%- elif message.content -%}
        {%- for part in message.content -%}
            {%- if part.type not in ('text', 'python', 'python_output') -%}
                {{- raise_exception('a part must be text, or of an assistant python or python_output') -}}
            {%- elif part.type != 'text' and role != 'assistant' -%}
                {{- raise_exception('python and python_output are parts of an assistant\\'s message only') -}}
            {%- elif part.text or part.type != 'text' -%}
                {%- set ns.parts = ns.parts + [[part.type, part.text]] -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if role == 'system' and not ns.turns -%}
        {%- if ns.parts -%}
            {%- set ns.lead = (ns.lead + '\\n\\n' if ns.lead else '') + (ns.parts | map('last') | join) -%}
        {%- endif -%}
    {%- else -%}
        {%- set role = 'user' if role == 'system' else role -%}
        {%- if ns.turns and ns.turns[-1][0] == role -%}
            {%- set before = ns.turns[-1][1] -%}
            {%- set between = [['text', '\\n\\n']] if before and ns.parts else [] -%}
            {%- set ns.turns = ns.turns[:-1] + [[role, before + between + ns.parts]] -%}
        {%- else -%}
            {%- set silent = [['user', []]] if role == 'assistant' and not ns.turns else [] -%}
            {%- set ns.turns = ns.turns + silent + [[role, ns.parts]] -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if not messages -%}
    {{- raise_exception('a conversation needs one message or more') -}}
{%- elif not ns.turns -%}
    {%- set ns.turns = [['user', [['text', ns.lead]]]] -%}
    {%- set ns.lead = '' -%}
{%- endif -%}
{{- '<|bos|>' -}}
{%- for turn in ns.turns -%}
    {%- if turn[0] == 'user' -%}
        {%- set lead = ns.lead + '\\n\\n' if loop.first and ns.lead else '' -%}
        {%- set words = lead + (turn[1] | map('last') | join) -%}
        {{- '<|user_start|>' + words | replace('<|', '<\\ufdd0|') + '<|user_end|>' -}}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- set ns.run = '' -%}
        {%- set ns.learned = '' -%}
        {%- for part in turn[1] -%}
            {%- if part[0] == 'text' -%}
                {%- set ns.run = ns.run + part[1] -%}
            {%- else -%}
                {%- set ns.learned = ns.learned + ns.run | replace('<|', '<\\ufdd0|') -%}
                {%- set ns.run = '' -%}
                {%- if part[0] == 'python' -%}
                    {%- set words = part[1] | replace('<|', '<\\ufdd0|') -%}
                    {%- set ns.learned = ns.learned + '<|python_start|>' + words + '<|python_end|>' -%}
                {%- else -%}
                    {%- if ns.learned -%}
                        {% generation %}{{- ns.learned -}}{% endgeneration %}
                    {%- endif -%}
                    {%- set ns.learned = '' -%}
                    {{- '<|output_start|>' + part[1] | replace('<|', '<\\ufdd0|') + '<|output_end|>' -}}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set ns.learned = ns.learned + ns.run | replace('<|', '<\\ufdd0|') -%}
        {%- if not (loop.last and add_generation_prompt) -%}
            {%- set ns.learned = ns.learned + '<|assistant_end|>' -%}
        {%- endif -%}
        {%- if ns.learned -%}
            {% generation %}{{- ns.learned -}}{% endgeneration %}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.turns[-1][0] == 'user' -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""
"""The server's rendering of a conversation (`serve.context`, `Tokenizer.render_conversation`), in Jinja.

With `add_generation_prompt` the next answer is opened, or the assistant's last message is left open. Tokens that
`render_conversation` supervises are marked as `generation`. The loop goes over `message.content` itself, since other
servers detect by this that it may be a list.
"""

_CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}

_NORMALIZER = {"type": "Replace", "pattern": {"Regex": "(?<=<)\ufdd0(?=\\|)"}, "content": ""}
"""Removes U+FDD0 and nothing else: the `<` before it keeps its offset, where transformers finds an answer's start."""
_READ_NORMALIZERS = (None, _NORMALIZER, {"type": "Replace", "pattern": {"String": BROKEN}, "content": "<|"})
"""The normalizers that an import accepts; the last is that of earlier exports and means the same."""

_ODD_OPTIONS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
"""Options that a BPE of this form leaves empty; with a wrong prefix the library panics."""

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
"""Texts on which split patterns and regex engines are likely to differ."""


def learned_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """Return the byte string of every learned token, index = id."""
    return [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size - len(SPECIAL_TOKENS))]


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json`; the ids it gives to text are ours, with `<|bos|>` in front.

    One difference cannot be avoided: in text outside conversations the library reads control tokens that are spelt out
    as control tokens, and ours never does. In conversations the template breaks them (`BROKEN`), and the normalizer
    restores them after the library has searched for control tokens.
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
        "normalizer": _NORMALIZER,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_piece("SpecialToken", "<|bos|>", 0), _piece("Sequence", "A", 0)],
            "pair": [
                _piece("SpecialToken", "<|bos|>", 0),
                _piece("Sequence", "A", 0),
                _piece("SpecialToken", "<|bos|>", 1),
                _piece("Sequence", "B", 1),
            ],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [tokenizer.bos_id], "tokens": ["<|bos|>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a chunk that is one token is not split: tiktoken's rule
            "vocab": {text: token for token, text in enumerate(written)},
            "merges": [f"{written[left]} {written[right]}" for left, right in _merges(tokens)],
        },
    }


def _piece(kind: str, name: str, sequence: int) -> dict[str, Any]:
    return {kind: {"id": name, "type_id": sequence}}


def _merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (left id, right id) of every merge, in the order in which merges are done."""
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    for rank, token in enumerate(tokens):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(rank_of[left], rank_of[right]) for left, right in cuts if left in rank_of and right in rank_of]
        # Pairs whose halves are older than the token come first: the others occur only in unusual text.
        pairs.sort(key=lambda pair: (max(pair) > rank, pair))
        yield from pairs


def from_tokenizer_json(content: Mapping[str, Any]) -> Tokenizer:
    """Read the content of `tokenizer.json`.

    Raises:
        ValueError: if it is no byte-level BPE of nanochat's form, or gives text other ids than our tokenizer would.
    """
    try:
        model, steps = content["model"], content["pre_tokenizer"]["pretokenizers"]
        if model["type"] != "BPE" or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
            raise ValueError(
                f"it is {model['type']} after {' and '.join(step['type'] for step in steps)}, expected BPE after Split "
                "and ByteLevel"
            )
        odd = [f"{name}={model[name]!r}"[:80] for name in _ODD_OPTIONS if model.get(name)]
        if odd:
            raise ValueError(f"its model has {', '.join(odd)}, which changes how text is cut")
        if content.get("normalizer") not in _READ_NORMALIZERS:
            raise ValueError(f"it changes text before cutting it ({content['normalizer'].get('type')})")
        pattern = steps[0]["pattern"]["Regex"]
        if not isinstance(pattern, str):
            raise ValueError(f"its split pattern is {pattern!r}, no text")
        special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        texts = {token: text for text, token in model["vocab"].items() if text not in special}
        tokens = [bytes(BYTE_OF[char] for char in texts[token]) for token in range(len(texts))]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"it is no byte-level BPE with a split pattern and ids 0, 1, 2 ... ({reason(error)})"
        ) from None
    expected = {name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
    if special != expected:
        raise ValueError(f"expected the special tokens {expected}, found {special}")
    tokenizer = Tokenizer(tokens, pattern=pattern, origin="Hugging Face tokenizer.json")
    check_agreement(tokenizer, content)
    return tokenizer


def check_agreement(tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Encode difficult texts and the text of every token with both libraries.

    Raises:
        ValueError: if they disagree; the message shows the text.
    """
    import tokenizers

    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    except BaseException as error:  # the library raises bare exceptions, and panics past Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError("the tokenizers library cannot read it; fetch it again") from None
    words = [token.decode("utf-8", errors="ignore") for token in learned_tokens(tokenizer)]
    texts = [*_PROBES, *words, *(" ".join(words[i : i + 50]) for i in range(0, len(words), 500))]
    for text, encoded in zip(texts, theirs.encode_batch(texts, add_special_tokens=False)):
        ours = tokenizer.encode(text)
        if encoded.ids != ours:
            raise ValueError(
                f"the tokenizers library cuts {text[:60]!r} into {encoded.ids[:8]}, tiktoken into {ours[:8]}: the "
                f"split pattern {tokenizer.pattern!r} or the merges mean different things to the two"
            )
