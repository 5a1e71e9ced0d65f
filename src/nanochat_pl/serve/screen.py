"""The display of a chat: streamed answers, tool calls, several answers side by side, remarks.

A model's answer is shown as text only: it cannot move the cursor, colour the screen or rename the window, since control
characters are removed and rich's markup is never parsed. Without a terminal everything is plain text, with answers on
one stream and remarks on the other.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.paths import first_distinct, run_folder
from nanochat_pl.serve.chat import AnswerStats, Chat
from nanochat_pl.serve.text import ContentPart

__all__ = ["Screen", "labels", "model_line", "stats_line", "visible"]

COLUMN = 44
"""Answers stand side by side if each gets at least this many characters per line."""
MEASURE = 100
"""Answers are wrapped to lines of at most this many characters."""
REDRAW_S = 0.1
"""Seconds between two drawings of answers side by side: a slow terminal must not hold up the models."""

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Remove what a terminal would obey instead of showing it: control characters and changes of text direction."""
    return _INVISIBLE.sub("", text).replace("\t", "    ")


class _Marks:
    """Turn parts into pieces of text with their style; a tool call is `[12*3 = 36]`."""

    def __init__(self) -> None:
        self._open = False

    def take(self, part: ContentPart) -> Iterator[tuple[str, str]]:
        text = visible(part.text)
        if part.type == "python_output" and self._open:
            yield f" = {text}", "dim"
            yield from self.close()
            return
        yield from self.close()
        if part.type == "python":
            self._open = True
            yield f"[{text}", "dim"
        else:
            yield (f"[{text}]", "dim") if part.type == "python_output" else (text, "")

    def close(self) -> Iterator[tuple[str, str]]:
        if self._open:
            self._open = False
            yield "]", "dim"


class _Wrapped:
    """Break streamed lines between words: a word is shown once its end is known."""

    def __init__(self, console: Console):
        self._console = console
        self._width = min(console.width, MEASURE) if console.is_terminal else sys.maxsize
        self._column = 0
        self._space = self._word = ""
        self._style = ""

    def write(self, text: str, style: str) -> None:
        if style != self._style:
            self.flush()
            self._style = style
        for character in text:
            if character == "\n":
                self.flush()
                self._put("\n")
                self._column, self._space = 0, ""
            elif character.isspace():
                self.flush()
                self._space += character
            elif (size := cell_len(character)) + cell_len(self._word) >= self._width or size > 1:
                if size > 1:  # a script without spaces between words
                    self.flush()
                self._word += character
                self.flush()
            else:
                self._word += character

    def flush(self) -> None:
        """Show the word that was held back."""
        if not self._word:
            return
        size, space = cell_len(self._word), cell_len(self._space)
        if self._column + space + size > self._width:
            if self._column:
                self._put("\n")
            self._column, self._space, space = 0, "", 0  # at the start of a line the indentation is dropped
        self._put(self._space + self._word)
        self._column += space + size
        self._space = self._word = ""

    def _put(self, text: str) -> None:
        self._console.out(text, end="", style=self._style or None, highlight=False)


class Screen:
    """The output of a chat: answers go to `out`, remarks to `notes`, which may be the same console."""

    def __init__(self, out: Console, notes: Console):
        self.out, self.notes = out, notes

    def note(self, text: str, style: str = "dim") -> None:
        """Show a remark about the chat; its text is shown literally, without markup."""
        self.notes.print(Text(visible(text), style=style), soft_wrap=not self.notes.is_terminal)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self.note(text, style="yellow")

    def heading(self, text: str) -> None:
        """Show whose answer follows."""
        self.out.print(Text(visible(text), style="bold"), soft_wrap=True)

    def stream(self, parts: Iterable[ContentPart]) -> None:
        """Show one answer while it is generated."""
        marks, wrapped = _Marks(), _Wrapped(self.out)
        try:
            for part in parts:
                for text, style in marks.take(part):
                    wrapped.write(text, style)
                self.out.file.flush()
        finally:
            for text, style in marks.close():
                wrapped.write(text, style)
            wrapped.flush()
            self.out.out("", highlight=False)

    def has_columns(self, count: int) -> bool:
        """Return whether `count` answers fit side by side."""
        return count > 1 and self.out.is_terminal and self.out.width >= count * COLUMN

    def columns(self, headings: Sequence[str], answers: Sequence[Iterator[ContentPart]]) -> None:
        """Show several answers side by side while they are generated, one part of each in turn."""
        texts, marks = [Text() for _ in answers], [_Marks() for _ in answers]
        unfinished, drawn = dict(enumerate(answers)), 0.0

        def table() -> Table:
            shown = Table(expand=True, show_edge=False, pad_edge=False, header_style="bold")
            for heading in headings:
                shown.add_column(Text(visible(heading)), ratio=1, overflow="fold")
            shown.add_row(*texts)
            return shown

        with Live(Group(), console=self.out, transient=True, auto_refresh=False) as live:
            try:
                while unfinished:
                    for index, answer in list(unfinished.items()):
                        part = next(answer, None)
                        if part is None:
                            del unfinished[index]
                        for text, style in marks[index].take(part) if part else marks[index].close():
                            texts[index].append(text, style)
                    if time.monotonic() - drawn > REDRAW_S:
                        live.update(table(), refresh=True)
                        drawn = time.monotonic()
            finally:
                live.update(Group())  # the whole table follows, even if it is longer than the screen
        self.out.print(table())


def labels(models: Sequence[LoadedModel]) -> list[str]:
    """Return a short label for each model: stage and run of its folder, and more only if these are not distinct."""
    runs = [run_folder(model.path) if run_folder(model.path) != model.path.parent else model.path for model in models]
    short = ["/".join(run.absolute().parts[-2:]) for run in runs]
    longer = [f"{name}:{model.path.stem}" for name, model in zip(short, models)]
    return first_distinct(short, longer) or [f"{index}: {model.path}" for index, model in enumerate(models, 1)]


def model_line(chat: Chat) -> str:
    """Describe a model: file, stage, size, device, dtype and context length."""
    loaded, dtype = chat.loaded, str(chat.engine.dtype).removeprefix("torch.")
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return (
        f"{loaded.path}\n{loaded.stage}, step {loaded.step:,} · {_count(parameters)} parameters · "
        f"{loaded.model.device}, {dtype} · context {chat.sequence_len:,} tokens"
    )


def stats_line(stats: AnswerStats) -> str:
    """Describe an answer: its length, its speed, and why it ended if the model did not end it."""
    words = [f"{stats.new_tokens} token{'s' * (stats.new_tokens != 1)}"]
    if stats.tokens_per_s is not None:
        words.append(f"{stats.tokens_per_s:.1f} tokens/s")
    if stats.first_token_s is not None:
        words.append(f"first after {stats.first_token_s:.2f} s")
    why = {"length": "cut at its longest (/tokens)", "context": "cut by the end of the context", "stopped": "stopped"}
    if stats.ended in why:
        words.append(why[stats.ended])
    return " · ".join(words)


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
