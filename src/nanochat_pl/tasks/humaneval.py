"""HumanEval (Chen et al., 2021): functions to write from their docstrings, which then run against hidden tests.

Grading runs code that a model wrote, so it happens in the sandbox or not at all.
"""

import ast
import keyword
import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.sandbox import ProgramResult, isolation_for, run_tests
from nanochat_pl.tasks import columns
from nanochat_pl.tasks.base import Conversation
from nanochat_pl.tasks.hub import HubOptions, HubTask

__all__ = ["HumanEval", "extract_code", "extract_imports"]

_ORIGINAL_FENCED = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)
_FENCE = re.compile(r"(?P<indent>(?<![^\n])[ \t]*)?(?<![`~])(?P<fence>`{3,}+|~{3,}+)(?P<info>[^`\n]*)\r?\n")
_PYTHON = re.compile(r"\{?\.?(?:python[\d.]*|py[\d.]*|ipython[\d.]*|pycon)?\}?(?:[\s,{:].*)?$", re.IGNORECASE)


def extract_code(completion: str, entry_point: str | None = None, strict: str = "stated") -> str:
    """Return the code of an answer: its first fenced block of Python or of no named language, else the whole answer.

    A fence is three or more backticks or tildes; one that is never closed reaches to the end. Where there are several
    blocks, the first that defines `entry_point` counts; where only the text before the first fence does, that text.
    With strict=original only backticks followed by `python` or nothing are a fence, and only where they are closed.
    """
    if strict == "original":
        match = _ORIGINAL_FENCED.search(completion)
        return (match.group(1) if match else completion).strip()
    return textwrap.dedent(_chosen(completion, entry_point)).strip()


def _chosen(completion: str, entry_point: str | None) -> str:
    before, blocks = _blocks(completion)
    candidates = [*blocks, before] if entry_point else blocks
    defining = [text for text in candidates if entry_point and _defines(text, entry_point)]
    return next(iter(defining or blocks), completion)


def _defines(code: str, name: str) -> bool:
    """Return whether code defines, assigns or imports a name; a call of it does not count."""
    name = re.escape(name)
    pattern = (
        rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+{name}\b|class[ \t]+{name}\b|{name}[ \t]*(?::[^=\n]*)?=(?!=)"
        rf"|(?:from|import)[ \t][^\n]*\b{name}[ \t]*$)"
    )
    return re.search(pattern, code, re.MULTILINE) is not None


def _blocks(completion: str) -> tuple[str, list[str]]:
    """Return the text before the first fence, and the contents of fences of Python or of no named language."""
    blocks: list[str] = []
    before, position = None, 0
    never: set[str] = set()
    while fence := _FENCE.search(completion, position):
        before = completion[: fence.start()] if before is None else before
        mark, room = f"{fence['fence'][0]}{{{len(fence['fence'])},}}[ \\t]*\\r?$", len(fence["indent"] or "") + 3
        # As in Markdown, a fence that is indented further belongs to what is inside, such as a docstring.
        closing, end = rf"^[ \t]{{0,{room}}}{mark}", None
        if closing not in never:
            end = re.compile(closing, re.MULTILINE).search(completion, fence.end())
        if end is None:  # closed at the end of the last line of the code, or never
            never.add(closing)  # nor for a later fence: each search scans to the end only once
            end = re.compile(rf"(?<=[^\s`~]){mark}", re.MULTILINE).search(completion, fence.end())
        inside = completion[fence.end() : end.start() if end else len(completion)]
        if _PYTHON.match(fence["info"].strip()) and inside.strip():
            blocks.append(inside)
        position = end.end() if end else len(completion)
    if before is None:  # at most a fence in the last line, which is not followed by a block
        before = re.sub(r"\n[ \t]*(?:`{3,}|~{3,})[ \t]*\s*\Z", "", completion)
    return before, blocks


def extract_imports(prompt: str) -> str:
    """Return the import lines that a prompt begins with; empty lines and comments may be among them."""
    imports = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(imports)


class HumanEval(HubTask):
    """Rows `prompt` (imports, signature, docstring), `canonical_solution` (the body), `test`, `entry_point`, `task_id`.

    Extras of a conversation: `id` (the task_id), `prompt`, `test`, `entry_point`.

    Args:
        path: folder with `<split>.parquet`, or the hub's files.
        split: test is the only one there is.
        sandbox: how answers run: auto (the strongest isolation that holds), weak (limits only), see `run_python`.
        timeout_s: seconds that an answer with its tests may take.
        options: see `HubTask`; with strict=stated, code is found in any Python fence, also one that is not closed.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if a column is missing, or a row has no prompt, no entry point that its prompt names, or no test
            that checks something.
    """

    grading_threads = 4  # they wait for programs
    runs_programs = True
    hub_repo, hub_folder = "openai/openai_humaneval", "openai_humaneval"
    columns = staticmethod(columns.humaneval)

    def __init__(
        self,
        path: str | Path,
        split: str = "test",
        *,
        sandbox: str = "auto",
        timeout_s: float = 5.0,
        **options: Unpack[HubOptions],
    ):
        self.sandbox, self.timeout_s = sandbox, timeout_s
        super().__init__(path, split, **options)

    def record(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        missing = [name for name in ("task_id", "prompt", "test", "entry_point") if not row[name].strip()]
        name = row["entry_point"]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"no entry point ({name!r} is no name of a function)")
        if not re.search(rf"\b{re.escape(name)}\b", row["prompt"]):
            raise ValueError(f"an entry point that its prompt does not name ({name!r})")
        if not _checks(row["test"]):
            raise ValueError("a test without a function check(candidate) that asserts something")
        return {"id": row["task_id"], **row}

    @property
    def isolation(self) -> str:
        """The isolation in which answers run; ValueError if nothing that `sandbox` allows works here."""
        return isolation_for(self.sandbox)

    def conversation(self, row: int, epoch: int) -> Conversation:
        record = self._records[row]
        messages = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": f"{record['prompt']}\n{record['canonical_solution']}"},
        ]
        kept = {key: record[key] for key in ("prompt", "test", "entry_point")}
        return {"messages": messages, "id": record["id"], **kept}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the code of an answer passes the tests.

        Differs from nanochat (2025-11): the tests run in another process, so that code that ends early
        (`sys.exit()`) passes nothing, nor does an object that equals everything.

        Raises:
            ValueError: if generated code cannot run here as `sandbox` demands.
        """
        return self.run(conversation, completion)[0]

    def code(self, conversation: Mapping[str, Any], completion: str) -> str:
        """Return the code by which an answer is graded.

        An answer that is indented from its first line on and defines no function is the body of the prompt's function.
        """
        prompt, entry_point = conversation["prompt"], conversation["entry_point"]
        chosen = _chosen(completion, entry_point).strip("\r\n")
        is_body = chosen[:1] in {" ", "\t"} and not _defines(chosen, entry_point) and _defines(prompt, entry_point)
        if self.strict == "stated" and is_body:
            return f"{prompt.rstrip()}\n{textwrap.indent(textwrap.dedent(chosen).strip(), '    ')}"
        return extract_code(completion, entry_point, self.strict)

    def run(self, conversation: Mapping[str, Any], completion: str) -> tuple[bool, ProgramResult]:
        """Return whether an answer is right, and how its program ended: its error and the isolation in which it ran."""
        result = run_tests(
            f"{extract_imports(conversation['prompt'])}\n\n{self.code(conversation, completion)}\n",
            prompt=conversation["prompt"],
            imports=extract_imports(conversation["prompt"]),
            test=conversation["test"],
            entry_point=conversation["entry_point"],
            timeout_s=self.timeout_s,
            mode=self.sandbox,
        )
        return result.success, result


def _checks(test: str) -> bool:
    """Return whether a test defines `check` and does something in it; any other would pass all answers or none."""
    try:
        with warnings.catch_warnings():  # of odd escapes in somebody's test
            warnings.simplefilter("ignore")
            body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    defined = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    return any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for check in defined for node in ast.walk(check))
