"""How much text a token carries: ours against the vocabularies of GPT-2 and GPT-4, domain by domain.

Fewer tokens for the same text mean more text in the context and fewer steps to write it; what a vocabulary has not
seen, such as other languages, shows at once. tiktoken would fetch the files of the other vocabularies from the network:
here only those in its cache are used, and the result says which were missing.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nanochat_pl.eval.ask import Progress
from nanochat_pl.eval.results import Evaluation, MetricRow
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["OTHERS", "Others", "cached_encoders", "evaluate_compression", "sample_texts"]

Encode = Callable[[str], Sequence[int]]

_URL = "https://openaipublic.blob.core.windows.net"
_MAIN = f"{_URL}/gpt-2/encodings/main"
OTHERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt2": (
        (f"{_MAIN}/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        (f"{_MAIN}/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ),
    "cl100k_base": (
        (f"{_URL}/encodings/cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    ),
}
"""Name in tiktoken -> the files it reads (address, SHA-256); the cache names a file by the SHA-1 of its address."""


class Others(NamedTuple):
    """The vocabularies to compare with."""

    encoders: dict[str, Encode]
    missing: dict[str, str]
    """Name of a vocabulary that is not there -> why, and what to do."""


def sample_texts() -> dict[str, list[str]]:
    """Return a short text of each domain: news, languages (ten that are not English), code, math, science."""
    text = files("nanochat_pl.eval").joinpath("compression.yaml").read_text(encoding="utf-8")
    return {domain: [sample] for domain, sample in yaml.safe_load(text).items()}


def cached_encoders(names: Sequence[str] = tuple(OTHERS)) -> Others:
    """Open the vocabularies of `OTHERS` whose files tiktoken has in its cache; no socket is opened.

    The cache is the folder TIKTOKEN_CACHE_DIR, else DATA_GYM_CACHE_DIR, else `data-gym-cache` in the folder for
    temporary files, as for tiktoken itself.

    Raises:
        ValueError: A name is not in `OTHERS`.
    """
    import tiktoken

    unknown = [name for name in names if name not in OTHERS]
    if unknown:
        raise ValueError(f"unknown vocabulary {', '.join(unknown)}; choose of {', '.join(OTHERS)}")
    encoders: dict[str, Encode] = {}
    missing: dict[str, str] = {}
    for name in names:
        fault = _fault(name)
        if fault is None:
            encoders[name] = tiktoken.get_encoding(name).encode_ordinary
        else:
            missing[name] = (
                f"{fault}; where there is a network, run TIKTOKEN_CACHE_DIR=tiktoken_cache python -c "
                f"\"import tiktoken; tiktoken.get_encoding('{name}')\", bring the folder tiktoken_cache here and set "
                "TIKTOKEN_CACHE_DIR to it"
            )
    return Others(encoders, missing)


def _fault(name: str) -> str | None:
    """Return why tiktoken would have to fetch a vocabulary's files; None = it has them all, undamaged."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        return "an empty TIKTOKEN_CACHE_DIR (or DATA_GYM_CACHE_DIR) turns tiktoken's cache off"
    cache = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    for address, expected in OTHERS[name]:
        file = cache / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
        what = f"{address.rpartition('/')[2]} ({file.name})"
        if not file.is_file():
            return f"{what} is not in {cache}"
        # tiktoken deletes and fetches a file whose content is not the expected one
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            return f"{what} in {cache} is damaged"
    return None


def evaluate_compression(
    tokenizer: Tokenizer,
    texts: Mapping[str, Sequence[str]] | None = None,
    *,
    others: Others | None = None,
    name: str = "ours",
    task: str = "tokenizer",
    progress: Progress | None = None,
) -> Evaluation:
    """Count the tokens of each text in each vocabulary.

    Rows are grouped by `domain` and `tokenizer` (`n` = texts): `bytes_per_token` (UTF-8 bytes), `tokens` (sum),
    `tokens_per_text` (mean); and for `name` also `tokens_ratio/<other>`, its tokens over the other's: below 1 it needs
    fewer. (nanochat's relative difference in percent is 100 (1 - ratio).) The same follows over all domains, in groups
    without `domain`, and for `name` once without any group. A missing vocabulary has one row without a value.

    There is a record for each domain and tokenizer, with the id `domain/tokenizer`; that of a missing tokenizer has the
    id `tokenizer` and says in `missing` how to bring it.

    Args:
        texts: Texts by domain, such as `sample_texts()` and the caller's `train` and `val`; None = `sample_texts()`.
        others: Vocabularies to compare with; None = `cached_encoders()`.
        progress: Called with (domains done, domains) after each.

    Raises:
        ValueError: No domain, one without text, or a `name` that one of the others has.
    """
    started = time.perf_counter()
    texts = sample_texts() if texts is None else texts
    others = cached_encoders() if others is None else others
    empty = [domain for domain, samples in texts.items() if not any(samples)]
    if empty or not texts:
        raise ValueError(
            f"there is no text to measure compression on{': ' * bool(empty)}{', '.join(empty)}; give each domain some"
        )
    if name in others.encoders or name in others.missing:
        raise ValueError(f"name={name} is that of another vocabulary to compare with; choose another one")
    encoders: dict[str, Encode] = {name: tokenizer.encode, **others.encoders}
    records: list[dict[str, Any]] = []
    for number, (domain, samples) in enumerate(texts.items(), start=1):
        num_bytes = sum(len(text.encode("utf-8", errors="replace")) for text in samples)
        for who, encode in encoders.items():
            records.append(
                {
                    "id": f"{domain}/{who}",
                    "domain": domain,
                    "tokenizer": who,
                    "texts": len(samples),
                    "bytes": num_bytes,
                    "tokens": sum(len(encode(text)) for text in samples),
                }
            )
        if progress is not None:
            progress(number, len(texts))
    rows = [
        row
        for domain in texts
        for row in _rows(task, name, [r for r in records if r["domain"] == domain], {"domain": domain})
    ]
    overall = _rows(task, name, records, {})
    ours = [
        MetricRow(task=task, metric=row.metric, value=row.value, n=row.n)
        for row in overall
        if row.group == {"tokenizer": name}
    ]
    absent = [
        MetricRow(task=task, metric="bytes_per_token", value=None, n=0, group={"tokenizer": who})
        for who in others.missing
    ]
    return Evaluation(
        records=[*records, *({"id": who, "tokenizer": who, "missing": why} for who, why in others.missing.items())],
        rows=[*ours, *rows, *overall, *absent],
        seconds=time.perf_counter() - started,
        num_answered=len(records),
    )


def _rows(task: str, name: str, records: Sequence[Mapping[str, Any]], group: Mapping[str, str]) -> list[MetricRow]:
    """Return the metrics of one domain, or of all, for each tokenizer."""
    totals: dict[str, dict[str, int]] = {}
    for record in records:
        total = totals.setdefault(record["tokenizer"], dict.fromkeys(("texts", "bytes", "tokens"), 0))
        for key in total:
            total[key] += record[key]
    rows = []
    for who, total in totals.items():
        metrics = {
            "bytes_per_token": total["bytes"] / total["tokens"],
            "tokens": total["tokens"],
            "tokens_per_text": total["tokens"] / total["texts"],
        }
        if who == name:
            metrics |= {
                f"tokens_ratio/{other}": total["tokens"] / totals[other]["tokens"] for other in totals if other != name
            }
        for metric, value in metrics.items():
            rows.append(
                MetricRow(task=task, metric=metric, value=value, n=total["texts"], group={**group, "tokenizer": who})
            )
    return rows
