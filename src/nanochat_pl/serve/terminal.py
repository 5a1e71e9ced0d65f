"""The chat in a terminal: questions, commands, and one model or several that answer the same question.

`Terminal.take` handles one input from any source; `interact` reads inputs of one or more lines from a person. Ctrl-C
ends an answer, never the chat.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.serve.chat import AnswerStats, Chat
from nanochat_pl.serve.context import ContextFull
from nanochat_pl.serve.screen import Screen, labels, model_line, stats_line
from nanochat_pl.serve.settings import SETTINGS, read_setting, shown_setting
from nanochat_pl.serve.text import ContentPart

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyPressEvent

__all__ = ["COMMANDS", "Terminal", "history_file", "prompt_session"]

COMMANDS = {
    "help": ("", "this list"),
    "system": ("[text|off]", "show or set the system message"),
    **{
        typed.command: ("[number|off]" if typed.can_be_off else "[number]", typed.command_meaning or typed.meaning)
        for typed in SETTINGS.values()
    },
    "regenerate": ("", "answer the last question again"),
    "edit": ("[text]", "ask something else in place of the last question"),
    "save": ("file", "the conversation as JSON; fine-tuning reads it too"),
    "load": ("file", "go on with a saved conversation"),
    "stats": ("", "figures of the last answer, and the settings"),
    "clear": ("", "begin a new conversation; the system message stays"),
    "compare": ("[checkpoint|off]", "let another model answer as well"),
    "quit": ("", "leave, like Ctrl-D"),
}
CONVERSATION_COMMANDS = ("system", "regenerate", "edit", "save", "load")
"""Commands that do not apply to the continuation of plain text."""
_SETTING_OF = {typed.command: name for name, typed in SETTINGS.items()}


class Terminal:
    """One conversation on a screen, or the same conversation with several models.

    Args:
        chats: one for each model.
        screen: the output.
        open_chat: opens a chat with another checkpoint, for /compare.
        complete: whether inputs are plain text to continue, not questions.
        interactive: whether a person types: statistics follow each answer, and Ctrl-C ends only an answer.
    """

    def __init__(
        self,
        chats: Sequence[Chat],
        screen: Screen,
        open_chat: Callable[[str], Chat],
        *,
        complete: bool = False,
        interactive: bool = False,
    ):
        self.chats, self.screen, self.complete, self.interactive = list(chats), screen, complete, interactive
        self._open_chat = open_chat
        self.num_refused = 0
        """How many inputs were refused."""
        self._own_files: set[Path] = set()
        self._read: Callable[[str], str] | None = None

    def introduce(self) -> None:
        """Describe the models that answer, and warn of base models."""
        for chat in self.chats:
            self._introduce(chat)

    def _introduce(self, chat: Chat) -> None:
        self.screen.note(model_line(chat))
        if chat.loaded.stage == "base" and not self.complete:
            self.screen.warn(
                "A base model: it has never seen a conversation and may answer with anything. "
                "--complete lets it continue text, which is what it has learned."
            )

    # -- inputs -------------------------------------------------------------------------------------------------

    def interact(self, session: "PromptSession[str]") -> None:
        """Take inputs from a person until /quit or Ctrl-D."""
        self._read = lambda default: session.prompt(default=default)
        self.screen.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n")
        while True:
            try:
                text = self._read("")
                if text.strip():
                    if not self.take(text):
                        return
                    self.screen.note("")
            except KeyboardInterrupt:  # drops the line, or ends the answer or command
                continue
            except EOFError:
                return

    def take(self, text: str) -> bool:
        """Answer a question or run a command; return False for /quit."""
        command = re.fullmatch(r"/([a-z]+)(?:\s+(.*))?\s*", text, re.DOTALL)
        try:
            if command is None and self.interactive:
                self.ask(text)
            elif command is None:
                self._quote_and_ask(text)
            else:
                return self._run_command(command[1], (command[2] or "").strip())
        except (ValueError, OSError) as error:
            self.num_refused += 1
            remedy = "; /clear begins a new one" if isinstance(error, ContextFull) else ""
            if remedy and self.chats[0].system:
                remedy += ", /system off leaves out the system message, which /clear keeps"
            self.screen.warn(f"{error}{remedy}")
        return True

    def _run_command(self, name: str, argument: str) -> bool:
        if name in ("quit", "exit"):
            return False
        if name not in COMMANDS:
            raise ValueError(
                f"there is no /{name}; there are {', '.join(f'/{known}' for known in COMMANDS)}. "
                "A question that begins like this can be asked with a space before it."
            )
        if self.complete and name in CONVERSATION_COMMANDS:
            raise ValueError(f"/{name} does not apply to --complete, which continues plain text; chat without it")
        if argument and not COMMANDS[name][0]:
            raise ValueError(f"/{name} takes nothing behind it, found {argument!r}")
        if name in _SETTING_OF:
            self._set(_SETTING_OF[name], argument)
        else:
            getattr(self, f"_{name}")(argument)
        return True

    # -- answers ------------------------------------------------------------------------------------------------

    def ask(self, text: str) -> None:
        """Show the answer to a question, or the continuation of a text.

        Raises:
            ContextFull: the prompt is too long, and the context policy is `refuse`.
        """
        self.answer(lambda chat: chat.complete(text) if self.complete else chat.ask(text))

    def ask_anew(self, question: str) -> None:
        """Show a question and its answer in a new conversation; see `ask`."""
        for chat in self.chats:
            chat.clear()
        self._quote_and_ask(question)

    def _quote_and_ask(self, question: str) -> None:
        self.screen.heading(f"> {question}")
        self.ask(question)
        self.screen.heading("")

    def answer(self, begin: Callable[[Chat], Iterator[ContentPart]]) -> None:
        """Show the answer of every model.

        Raises:
            ValueError: `begin` raised it; with several models, a full context is shown in place of the answer.
        """
        with self._stoppable():
            if len(self.chats) == 1:
                self.screen.stream(begin(self.chats[0]))
            else:
                names = labels([chat.loaded for chat in self.chats])
                answers = [self._begin(begin, chat) for chat in self.chats]
                if self.screen.has_columns(len(answers)):
                    self.screen.columns(names, answers)
                else:
                    for place, (name, answer) in enumerate(zip(names, answers)):
                        self.screen.heading("\n" * bool(place) + f"{name}:")
                        self.screen.stream(answer)
        self._show_stats()

    def _begin(self, begin: Callable[[Chat], Iterator[ContentPart]], chat: Chat) -> Iterator[ContentPart]:
        """Begin an answer; if the context is full, show that in its place, so that the other models still answer."""
        try:
            return begin(chat)
        except ContextFull as error:
            self.num_refused += 1
            return iter([ContentPart("text", f"({error})")])

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let Ctrl-C end answers after their next token; a second Ctrl-C ends them at once."""
        if not self.interactive:
            yield
            return
        pressed = False

        def stop(*_: Any) -> None:
            nonlocal pressed
            if pressed:
                raise KeyboardInterrupt
            pressed = True
            for chat in self.chats:
                chat.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            with _unechoed_controls():
                yield
        except KeyboardInterrupt:
            pass  # the text so far belongs to the conversation
        finally:
            signal.signal(signal.SIGINT, before)

    def _show_stats(self) -> None:
        for whose, chat, stats in self._labelled_stats():
            if self.interactive:
                self.screen.note(f"{whose}{stats_line(stats)}")
            if stats.ended == "end" and not stats.new_tokens:
                self.screen.warn(f"{whose}{self._why_silent(chat)}")
            if stats.truncated:
                what = "text" if self.complete else "question"
                self.screen.warn(f"{whose}The {what} is longer than the context; only its end was read.")
            if stats.dropped:
                self.screen.warn(
                    f"{whose}The context is full: the oldest {stats.dropped} messages are no longer read. "
                    "/clear begins anew."
                )

    def _labelled_stats(self) -> Iterator[tuple[str, Chat, AnswerStats]]:
        """Yield a label (empty for a single model), chat and statistics of each model that has answered."""
        names = labels([chat.loaded for chat in self.chats])
        for name, chat in zip(names, self.chats):
            if chat.stats is not None:
                yield f"{name}: " if len(names) > 1 else "", chat, chat.stats

    def _why_silent(self, chat: Chat) -> str:
        """Explain an answer without tokens."""
        if self.complete:
            return "The model ended at once: it takes this text for a whole one. Another temperature or text may help."
        if chat.loaded.stage == "base":
            return "The model ended at once: a base model has never seen a conversation; --complete continues text."
        return "The model ended at once, without a word; /regenerate asks again."

    # -- commands -----------------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        uses = {f"/{name} {argument}": what for name, (argument, what) in COMMANDS.items()}
        if self.complete:
            uses = {use: what for use, what in uses.items() if use[1:].split()[0] not in CONVERSATION_COMMANDS}
        width = max(map(len, uses))
        lines = [f"{use:{width}} {what}" for use, what in uses.items()]
        lines += [
            "",
            "Esc Enter, or a backslash before Enter, begins a new line; pasted lines stay whole.",
            "Ctrl-C stops an answer, Ctrl-D leaves; arrow keys bring back what was typed.",
        ]
        self.screen.note("\n".join(lines), style="")

    def _set(self, name: str, argument: str) -> None:
        if argument:
            value = read_setting(name, argument)
            for chat in self.chats:
                chat.set(**{name: value})
        value = getattr(self.chats[0].settings, name)
        self.screen.note(f"{name} is {shown_setting(name, value)}")

    def _system(self, argument: str) -> None:
        if argument:
            for chat in self.chats:
                chat.system = None if argument == "off" else argument
        self.screen.note(f"system message: {self.chats[0].system or 'none'}")

    def _regenerate(self, _: str) -> None:
        self._needs_conversation()
        self.answer(Chat.regenerate)

    def _edit(self, argument: str) -> None:
        self._needs_conversation()
        text = argument
        if not text:
            if self._read is None:
                raise ValueError("/edit needs the new question behind it where nobody is there to type")
            with contextlib.suppress(KeyboardInterrupt, EOFError):
                text = self._read(self.chats[0].question or "")
        if text.strip():
            self.answer(lambda chat: chat.edit(text))

    def _save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save needs a file's name, such as /save talk.json")
        for place, chat in enumerate(self.chats, 1):
            file = Path(argument).expanduser()
            if place > 1:
                file = file.with_name(f"{file.stem}-{place}{file.suffix}")
            if file.exists() and file.resolve() not in self._own_files:
                raise ValueError(f"{file} is there already and not from this chat; save under another name")
            chat.save(file)
            self._own_files.add(file.resolve())
            self.screen.note(f"saved {len(chat.messages)} messages to {file}")

    def _load(self, argument: str) -> None:
        if not argument:
            raise ValueError("/load needs a file's name, such as /load talk.json")
        for chat in self.chats:
            chat.load(argument)
        system = " and a system message" if self.chats[0].system else ""
        self.screen.note(f"{len(self.chats[0].messages)} messages{system}; the last question was:")
        self.screen.note(self.chats[0].question or "", style="")

    def _stats(self, _: str) -> None:
        for whose, chat, stats in self._labelled_stats():
            prompt = f"prompt of {stats.prompt_tokens} of {chat.sequence_len} tokens"
            self.screen.note(f"{whose}{stats_line(stats)} · {prompt} · {stats.total_s:.2f} s in all")
        chat = self.chats[0]
        names = sorted(SETTINGS, key=lambda name: name.endswith("penalty"))  # the penalties last
        values = ", ".join(f"{name} {shown_setting(name, getattr(chat.settings, name))}" for name in names)
        self.screen.note(f"{len(chat.messages)} messages · {values} · full context: {chat.policy}")

    def _clear(self, _: str) -> None:
        for chat in self.chats:
            chat.clear()
        self.screen.note("a new conversation")

    def _compare(self, argument: str) -> None:
        if argument == "off":
            del self.chats[1:]
        elif argument:
            first, other = self.chats[0], self._open_chat(argument)
            other.set(**asdict(first.settings))
            other.system, other.messages = first.system, [dict(message) for message in first.messages]
            self.chats.append(other)
            self._introduce(other)
        self.screen.note("answering: " + ", ".join(labels([chat.loaded for chat in self.chats])))

    def _needs_conversation(self) -> None:
        if not self.chats[0].messages:
            raise ValueError("nothing was asked yet")


def history_file() -> Path:
    """Return the file that keeps questions between chats, in the system's folder for application state."""
    state = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME")
    return Path(state or Path.home() / ".local" / "state") / "nanochat_pl" / "chat_history"


@contextlib.contextmanager
def _unechoed_controls() -> Iterator[None]:
    """Keep the terminal from echoing `^C` into an answer; without a terminal, do nothing."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, termios.error):  # another system, or no terminal
        yield
        return
    changed = [*before]
    changed[3] &= ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def prompt_session(history: Path | None, commands: Sequence[str]) -> "PromptSession[str]":
    """Make the prompt of an interactive chat.

    Args:
        history: the file that keeps the inputs, readable by its owner only; None = they are not kept.
        commands: commands with their slash, which Tab completes.

    Raises:
        OSError: the file cannot be written.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(history, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    return PromptSession(
        [("bold", "> ")],
        multiline=True,  # Enter still sends; this allows pasted and inserted line breaks
        prompt_continuation=[("", "  ")],
        key_bindings=keys,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
    )
