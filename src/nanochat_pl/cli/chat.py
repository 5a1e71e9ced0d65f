"""`nanochat-pl chat CKPT`: talk to a model, compare several, or send questions through a pipe.

Answers go to standard output; where nobody types, everything else goes to standard error, so that answers can be used
by other programs.
"""

import io
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nanochat_pl.cli.arguments import Arguments, refuse, share_cores
from nanochat_pl.serve.settings import SETTINGS, Settings, read_setting, shown_setting

if TYPE_CHECKING:
    import torch

    from nanochat_pl.serve.terminal import Terminal

__all__ = ["main"]

EPILOG = """\
A terminal gets a chat; /help lists its commands. Without a terminal, each line of standard input is a question (or a
command) of one conversation; -p - takes the whole of it as one question.
"""


def main(arguments: list[str]) -> int:
    """Chat; return 0, or 2 for what the user can mend, or 130 after Ctrl-C where nobody types."""
    share_cores()
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        if options.prompt is not None and options.question:
            raise ValueError("-p asks one question and prints its answer alone; give --question for all of them")
        if options.complete and options.system is not None:
            raise ValueError("--system belongs to a conversation, and --complete continues plain text: leave one out")
        return _chat(options)
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130


def _parser() -> Arguments:
    parser = Arguments(prog="nanochat-pl chat", description="Talk to a trained model.", epilog=EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="run folder, checkpoint file, or a folder of another format")
    parser.add_argument(
        "--compare", action="append", default=[], metavar="CKPT", help="let this model answer as well; may be repeated"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="print the answer to this and leave; - reads it")
    parser.add_argument(
        "--question", action="append", default=[], metavar="TEXT", help="ask this by itself; may be repeated"
    )
    parser.add_argument("--complete", action="store_true", help="continue plain text, as base models can")
    parser.add_argument("--system", metavar="TEXT", help="system message; joins the first question")
    for name, typed in SETTINGS.items():
        default = getattr(Settings, name)
        meaning = f"{typed.meaning} (default {shown_setting(name, default)})"
        parser.add_argument(*typed.flags, type=_reader(name), default=default, metavar="N", help=meaning)
    parser.add_argument(
        "--context",
        choices=("drop", "refuse"),
        default="drop",
        help="a full context: leave out the oldest turns (default), or refuse further questions",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="number format of decoding"
    )
    parser.add_argument("--no-history", action="store_true", help="keep what is typed in no file")
    return parser


def _reader(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return read_setting(name, text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return read


def _chat(options: Namespace) -> int:
    """Open the models and ask what the options say."""
    from rich.console import Console

    from nanochat_pl.checkpoint import load_model
    from nanochat_pl.serve.chat import Chat
    from nanochat_pl.serve.screen import Screen
    from nanochat_pl.serve.terminal import Terminal

    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    device = _device(options.device)

    def open_chat(path: str) -> Chat:
        loaded = load_model(path, device)
        return Chat(loaded, settings, system=options.system, policy=options.context, dtype=options.dtype)

    one_shot = options.prompt is not None or bool(options.question)
    if sys.stdin is None:  # whoever started this has closed it
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    interactive = not one_shot and sys.stdin.isatty() and sys.stdout.isatty()
    streams: tuple[Any, ...] = (sys.stdin, sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(errors="replace")  # whatever the locale can say; never a traceback
    out = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    notes = out if interactive else Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False)
    chats = [open_chat(path) for path in (options.checkpoint, *options.compare)]
    terminal = Terminal(chats, Screen(out, notes), open_chat, complete=options.complete, interactive=interactive)
    terminal.introduce()
    if options.prompt is not None:
        text = sys.stdin.read().rstrip("\n") if options.prompt == "-" else options.prompt
        if not text.strip():
            raise ValueError("there is nothing to ask: the text of -p is empty")
        terminal.ask(text)
    elif options.question:
        for question in options.question:
            terminal.ask_anew(question)
    elif interactive:
        _interact(terminal, options.no_history)
    else:
        for line in sys.stdin:
            if line.strip() and not terminal.take(line.rstrip("\r\n")):
                break
    return 2 if terminal.num_refused and not interactive else 0


def _device(name: str) -> "torch.device":
    from nanochat_pl.runtime import pick_device

    try:
        return pick_device(name)
    except ValueError as error:  # it speaks of the setting that training has
        raise ValueError(str(error).replace("trainer.accelerator", "--device")) from None


def _interact(terminal: "Terminal", no_history: bool) -> None:
    from nanochat_pl.serve.terminal import COMMANDS, history_file, prompt_session

    commands = [f"/{name}" for name in COMMANDS]
    history = None if no_history else history_file()
    try:
        session = prompt_session(history, commands)
    except OSError as error:
        terminal.screen.warn(f"What is typed cannot be kept for the next chat ({error}); --no-history does without.")
        session = prompt_session(None, commands)
    terminal.interact(session)
