"""`nanochat-pl chat` as people use it: one question, a pipe, several models, and a real terminal with a real Ctrl-C."""

import contextlib
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nanochat_pl.checkpoint import load_model
from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.cli.chat import main
from nanochat_pl.decoding import DecodingSession
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.serve.chat import Chat, Settings
from nanochat_pl.serve.screen import Screen
from nanochat_pl.serve.terminal import Terminal
from nanochat_pl.serve.text import ContentPart
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat Ünïcödé 你好世界 🌍🌍\n\n"] * 3, vocab_size=290)
ESCAPE = "\x1b"


def save_model(folder: Path, stage: str, seed: int, sequence_len: int) -> Path:
    """Write a checkpoint of a model that says random things and never ends by itself."""
    config = GPTConfig(sequence_len=sequence_len, vocab_size=290, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        model.lm_head.weight[-len(SPECIAL_TOKENS) :] = 0  # far below the fifty likeliest
    file = folder / stage / "d1" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ours = checkpoint_metadata(stage, config, {}, TOKENIZER)
    torch.save({"state_dict": state, "global_step": 7, "nanochat_pl": ours}, file)
    return file.parent.parent


@pytest.fixture(scope="module")
def tutor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("tutor"), "sft", 1, 128))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base"), "base", 2, 128))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with room for answers that last."""
    return str(save_model(tmp_path_factory.mktemp("talker"), "sft", 3, 16384))


Chatted = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chatted:
    """Run the command in this process, without a terminal: code, what it answered, what it remarked."""

    def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8"))
        code = main(["--seed", "1", "-n", "8", *arguments])
        out, err = capsys.readouterr()
        assert ESCAPE not in out + err
        return code, out, err

    return run


def test_one_question_prints_its_answer_alone_and_a_seed_repeats_it(tutor: str, chat: Chatted):
    code, out, err = chat(tutor, "-p", "the cat?")
    assert code == 0
    assert out.strip()
    assert "sft, step 7" in err
    assert "context 128 tokens" in err
    assert chat(tutor, "-p", "the cat?")[1] == out
    assert chat(tutor, "-p", "-", typed="the cat?\n")[1] == out


def test_a_question_is_answered_where_standard_input_is_closed(
    tutor: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", None)
    assert main([tutor, "-p", "the cat?", "-n", "4"]) == 0
    assert capsys.readouterr().out.strip()


def test_piped_lines_are_one_conversation_and_may_be_commands(tutor: str, chat: Chatted, tmp_path: Path):
    file = tmp_path / "talk.json"
    typed = f"the cat?\n\n/system be nice\nthe mat?\n/edit the hat?\n/regenerate\n/save {file}\n/stats\n/quit\nnever\n"
    code, out, err = chat(tutor, typed=typed)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("> the")] == ["> the cat?", "> the mat?"]
    assert "4 messages" in err
    assert '"the hat?"' in file.read_text()
    assert '"be nice"' in file.read_text()
    code, out, err = chat(tutor, typed=f"/load {file}\n/regenerate\n/save {file}\n")
    assert code == 2
    assert out.strip()
    assert "not from this chat" in err


def test_a_wrong_command_is_explained_and_the_chat_goes_on(tutor: str, chat: Chatted):
    wrong = [
        "/foo",
        "/temperature warm",
        "/temperature -1",
        "/topk -3",
        "/topp 2",
        "/clear all",
        "/load",
        "/load nowhere",
        "/edit",
    ]
    code, out, err = chat(tutor, typed="\n".join([*wrong, "the cat?", "/edit"]))
    assert code == 2
    assert "there is no /foo; there are /help" in err
    for remedy in (
        "must be a number",
        "temperature=-1 must",
        "top_k=-3 must be 1 or more; 0 or off",
        "top_p=2 must",
        "takes nothing",
        "needs a file",
        "nowhere",
    ):
        assert remedy in err
    assert "nothing was asked yet" in err
    assert "needs the new question" in err
    assert "> the cat?" in out


def test_commands_change_settings(tutor: str, chat: Chatted):
    _, _, err = chat(
        tutor, typed="/topk off\n/topp 0.5\n/minp 0.1\n/tokens 3\n/temperature 0\n/seed off\nthe cat?\n/stats\n"
    )
    assert "temperature 0.0, top_k off, top_p 0.5, min_p 0.1, max_new_tokens 3, seed off" in err
    assert "3 tokens" in err
    _, _, err = chat(
        tutor, "--presence-penalty", "0.5", typed="/repetition 1.3\n/frequency -0.5\n/stats\n/frequency off\n/stats\n"
    )
    assert "repetition_penalty 1.3, frequency_penalty -0.5, presence_penalty 0.5" in err
    assert "repetition_penalty 1.3, frequency_penalty off, presence_penalty 0.5" in err


def test_penalties_change_answers_and_off_changes_nothing(tutor: str, chat: Chatted):
    def answer(*options: str) -> str:
        return chat(tutor, "-p", "the cat?", "-t", "0", "-n", "40", *options)[1]

    plain = answer()
    off = ("--repetition-penalty", "off", "--frequency-penalty", "0", "--presence-penalty", "off")
    assert answer(*off) == plain
    for name in ("--repetition-penalty", "--frequency-penalty", "--presence-penalty"):
        assert answer(name, "2") != plain


def test_models_answer_the_same_questions_each_by_itself(tutor: str, base: str, chat: Chatted):
    code, out, err = chat(tutor, "--compare", base, "--question", "the cat?", "--question", "the mat?")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith(("> the", "sft/d1:", "base/d1:"))]
    assert lines == ["> the cat?", "sft/d1:", "base/d1:", "> the mat?", "sft/d1:", "base/d1:"]
    assert "never seen a conversation" in err
    alone = chat(base, "-p", "the mat?")[1]
    assert alone in out


def test_with_two_models_a_full_context_of_one_leaves_the_other_answering(tutor: str, talker: str, chat: Chatted):
    question = "the cat sat on the mat " * 20
    code, out, _ = chat(tutor, "--compare", talker, "--context", "refuse", typed=question)
    assert code == 2
    refused, _, answered = out.partition(f"\n2: {talker}")
    assert "context length is 128" in refused
    assert answered.partition(":\n")[2].strip()
    assert "context length" not in answered


def test_another_model_can_join_and_leave(tutor: str, base: str, chat: Chatted):
    _, out, err = chat(tutor, typed=f"the cat?\n/compare {base}\nthe mat?\n/compare off\nthe hat?\n")
    assert out.count("base/d1:") == 1
    assert "answering: sft/d1, base/d1" in err


def test_a_base_model_continues_text_when_asked_to(base: str, chat: Chatted):
    code, out, err = chat(base, "--complete", "-p", "the cat sat on")
    assert code == 0
    assert out.strip()
    assert "never seen" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "--complete continues text"), (["--complete"], "it takes this text for a whole one")],
)
def test_a_base_model_that_ends_at_once_says_so(
    base: str, chat: Chatted, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    ordinary = DecodingSession._choose

    def ends(self: Any, rows: Any, draws: Any, logits: torch.Tensor, events: Any) -> None:
        logits = torch.full_like(logits, -10.0)
        logits[:, TOKENIZER.bos_id] = 10.0
        ordinary(self, rows, draws, logits, events)

    monkeypatch.setattr(DecodingSession, "_choose", ends)
    code, out, err = chat(base, "-t", "0", "-p", "the cat", *arguments)
    assert code == 0
    assert not out.strip()
    assert f"The model ended at once: {'' if arguments else 'a base model'}" in err
    assert said in err


def test_commands_of_conversations_say_that_they_do_not_apply_to_complete(base: str, chat: Chatted, tmp_path: Path):
    commands = ("system be nice", "save talk.json", "regenerate", "edit the hat", "load talk.json")
    code, out, err = chat(base, "--complete", typed="the cat\n" + "".join(f"/{command}\n" for command in commands))
    assert code == 2
    assert out.startswith("> the cat\n")
    for command in commands:
        assert f"/{command.split()[0]} does not apply to --complete" in err
    _, _, err = chat(base, "--complete", typed="/help\n")
    assert "/temperature" in err
    assert "/regenerate" not in err


def test_a_chat_of_ten_contexts_warns_of_dropped_messages(tutor: str, chat: Chatted):
    questions = ["the cat sat on the mat " * 3 + str(i) for i in range(24)] + ["the cat sat on the mat " * 60]
    assert sum(map(len, map(TOKENIZER.encode, questions))) > 10 * 128
    code, out, err = chat(tutor, "-n", "2", typed="\n".join(questions))
    assert code == 0
    assert out.count("> the cat sat") == len(questions)
    assert "messages are no longer read" in err
    assert "only its end was read" in err
    code, out, err = chat(tutor, "-n", "2", "--context", "refuse", typed="\n".join(questions[:4]))
    assert code == 2
    assert "/clear begins a new one" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["nowhere"], "nowhere"),
        (["-t", "hot"], "temperature=hot must be a number"),
        (["-t", "-1"], "temperature=-1 must be a number from 0 up"),
        (["-k", "-3"], "top_k=-3 must be 1 or more; 0 or off = all tokens"),
        (["--top-p", "3"], "top_p=3 must lie above 0 and not above 1; off = all tokens"),
        (["--min-p", "2"], "min_p=2 must lie between 0 and 1; off"),
        (["--repetition-penalty", "0"], "repetition_penalty=0 must lie between 0.1 and 10; 1 or off = none"),
        (["--frequency-penalty", "3"], "frequency_penalty=3 must lie between -2 and 2; 0 or off = none"),
        (["-n", "-2"], "max_new_tokens=-2 must"),
        (["-p", "  "], "there is nothing to ask"),
        (["-p", "a", "--question", "b"], "--question"),
        (["--complete", "--system", "be nice"], "--system belongs to a conversation"),
        (["--colour"], "--help"),
    ],
)
def test_a_wrong_command_line_is_one_error_line(tutor: str, chat: Chatted, arguments: list[str], fault: str):
    code, out, err = chat(*arguments, *([tutor] if arguments != ["nowhere"] else []))
    assert code == 2
    assert out == ""
    assert fault in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


def test_a_second_ctrl_c_ends_an_answer_at_once(tutor: str):
    out = io.StringIO()
    console = Console(file=out)
    talk = Chat(load_model(tutor), Settings(max_new_tokens=60))
    terminal = Terminal([talk], Screen(console, console), lambda path: talk, interactive=True)

    def answer(chat: Chat) -> Iterator[ContentPart]:
        for place, part in enumerate(chat.ask("the cat?")):
            yield part
            if place == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("the second signal ends the answer before this")

    before = signal.getsignal(signal.SIGINT)
    terminal.answer(answer)
    assert signal.getsignal(signal.SIGINT) is before
    assert talk.stats is not None
    assert talk.stats.ended == "stopped"
    assert "stopped" in out.getvalue()
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]


def test_help_loads_neither_torch_nor_prompt_toolkit():
    code = "import sys; from nanochat_pl.cli.chat import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'prompt_toolkit') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


PROMPT = r".*\n>"
"""Keys pressed before it stands there mean what they mean to the terminal, not to the chat."""


class Person:
    """Somebody at a terminal."""

    def __init__(self, terminal: int, process: "subprocess.Popen[bytes]"):
        self.terminal, self.process, self.seen = terminal, process, ""

    def types(self, text: str) -> None:
        self.seen = ""
        os.write(self.terminal, text.encode())

    def waits_for(self, pattern: str, timeout_s: float = 60) -> str:
        """Look at the screen until it shows the pattern; returns what was seen, without colours and cursor moves."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            plain = re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", self.seen)
            if re.search(pattern, plain, re.DOTALL):
                return plain
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.terminal, 65536).decode("utf-8", "replace")
                except OSError:  # the other side is gone
                    break
        raise AssertionError(f"{pattern!r} never came; seen: {self.seen!r}")

    def leaves(self) -> int:
        """Press Ctrl-D and give the exit code."""
        self.types("\x04")
        with contextlib.suppress(OSError):
            while select.select([self.terminal], [], [], 60)[0] and os.read(self.terminal, 65536):
                pass
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def person(columns: int, state: Path, *arguments: str) -> Iterator[Person]:
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    # Without COLUMNS, which pytest-xdist sets in its workers and which counts for more than the terminal's size.
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat_pl.cli.main", "chat", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Person(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(talker: str, tmp_path: Path):
    with person(80, tmp_path, talker, "--seed", "1", "-n", "12000") as someone:
        someone.waits_for(PROMPT)
        someone.types("the cat?\r")
        someone.waits_for(r"cat\?.*\n.*\n")  # in the midst of the answer
        someone.types("\x03")  # the terminal turns it into SIGINT
        shown = someone.waits_for("stopped" + PROMPT)
        assert "tokens/s" in shown
        assert "^C" not in shown
        someone.types("/tok\t 5\r")
        someone.waits_for("max_new_tokens is 5" + PROMPT)
        someone.types("and \\\rtwo lines?\r")
        someone.waits_for("5 tokens" + PROMPT)
        someone.types("half a thought\x03")  # at the prompt it throws the line away
        someone.types(f"/save {tmp_path}/talk.json\r")
        someone.waits_for("saved 4 messages" + PROMPT)
        assert someone.leaves() == 0
    assert '"and \\ntwo lines?"' in (tmp_path / "talk.json").read_text()
    history = tmp_path / "nanochat_pl" / "chat_history"
    assert "+the cat?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_signal_from_elsewhere_stops_the_answer_too_and_no_history_is_kept(talker: str, tmp_path: Path):
    with person(80, tmp_path, talker, "-n", "12000", "--no-history") as someone:
        someone.waits_for(PROMPT)
        someone.types("the cat?\r")
        someone.waits_for(r"cat\?.*\n.*\n")  # in the midst of the answer
        someone.process.send_signal(signal.SIGINT)
        someone.waits_for("stopped" + PROMPT)
        someone.types("/quit\r")
        assert someone.process.wait(timeout=60) == 0
    assert not (tmp_path / "nanochat_pl").exists()


@pytest.mark.slow
def test_answers_stand_side_by_side_where_there_is_room(tutor: str, base: str, tmp_path: Path):
    for columns, together in ((120, True), (80, False)):
        with person(columns, tmp_path, tutor, "--compare", base, "-n", "8", "--no-history") as someone:
            someone.waits_for(PROMPT)
            someone.types("the cat?\r")
            shown = someone.waits_for("base/d1: 8 tokens" + PROMPT)
            assert bool(re.search(r"sft/d1 +┃ base/d1", shown)) == together
            assert ("\r\nbase/d1:\r\n" in shown) == (not together)
            assert someone.leaves() == 0
