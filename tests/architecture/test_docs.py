"""The documents keep their word: every command in them parses and composes, every key and file they name exists.

Commands are those in fenced `bash` blocks. Nothing is trained here; the README's chain of commands runs in the
integration tests.
"""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from nanochat_pl.cli.explain import asked_for_help
from nanochat_pl.cli.main import COMMANDS, module_of
from nanochat_pl.config.command_line import OPEN_KEYS, CommandLine, quote_texts
from nanochat_pl.config.compose import ROOTS, compose_checked, config_dir, known_names

REPO = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(REPO)) for path in DOCUMENTS]
PYTHON = re.compile(r"^(\.venv/bin/)?python3?$")
PLACEHOLDER = re.compile(r"<[^<>]+>")


def blocks(document: str, language: str) -> list[str]:
    """Give the fenced blocks of one language."""
    text = (REPO / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> Iterator[list[str]]:
    """Split the commands of a document into words, placeholders replaced, variables in front dropped."""
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(PLACEHOLDER.sub("some/path", line), comments=True)
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def check_command(words: list[str]) -> None:
    """Raise unless a command can be run as it stands."""
    program, *rest = words
    script = rest[0] if PYTHON.match(program) and rest else program
    if program == "nanochat-pl" and rest[0] not in ("train", "evaluate"):
        assert rest[0] in COMMANDS, f"unknown command {rest[0]}"
        said = StringIO()
        with redirect_stdout(said), suppress(SystemExit):
            import_module(module_of(rest[0])).main(["--help"])
        unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in said.getvalue()]
        assert not unknown, f"unknown {', '.join(unknown)}"
    elif script in ("train.py", "evaluate.py") or program == "nanochat-pl":
        name, arguments = (script.removesuffix(".py"), rest[1:]) if program != "nanochat-pl" else (rest[0], rest[1:])
        if "--help" in arguments:
            with redirect_stdout(StringIO()):
                assert asked_for_help(name, arguments) == 0
            return
        line = CommandLine.parse(quote_texts(arguments))
        assert compose_checked(name, line)
    elif program == "make":
        subprocess.run(["make", "-n", *rest], cwd=REPO, check=True, capture_output=True)
    elif PYTHON.match(program) and script == "-m":
        assert rest[1] in ("venv", "pip", "pytest"), f"unknown module {rest[1]}"
        files = [rest[i + 1] for i, word in enumerate(rest) if word == "-r"]
        assert all((REPO / file).is_file() for file in files)
    elif PYTHON.match(program):
        assert (REPO / script).is_file(), f"there is no {script}"
        ast.parse((REPO / script).read_text(encoding="utf-8"))
    else:
        known = (
            "source .venv/bin/activate",
            "cd",
            "git clone",
            ".venv/bin/pre-commit install",
            "wandb sync",
            "pip install",
        )
        assert " ".join(words).startswith(known), "a command that no test understands"


@pytest.mark.slow
@pytest.mark.parametrize("document", NAMES)
def test_every_command_can_be_run(document: str):
    for words in commands(document):
        try:
            check_command(words)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{document}: {shlex.join(words)}: {error}") from error


def test_the_readme_begins_with_its_two_commands():
    first = blocks("README.md", "bash")[0]
    assert [line.partition("#")[0].strip() for line in first.splitlines()] == ["make quickstart", "make test"]


@pytest.mark.parametrize("document", NAMES)
def test_every_python_example_parses_and_its_imports_resolve(document: str):
    for block in blocks(document, "python"):
        if document == "CONTRIBUTING.md":  # pieces of files to be written, some of them bodies of classes
            continue
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), document, "exec"), {})


@pytest.mark.parametrize("document", [name for name in NAMES if name != "CONTRIBUTING.md"])
def test_every_key_named_in_the_text_is_a_setting(document: str):
    names = {name for root in ROOTS.values() for name in known_names(root, config_dir())}
    sections = {name.partition(".")[0] for name in names if "." in name}
    text = re.sub(r"^```.*?^```", "", (REPO / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`'?([^`\n]+)`", text):
        key, equals, _ = code.partition("=")
        in_section = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in sections
        at_top = equals and re.fullmatch(r"[a-z_]{3,}", key) and document in ("README.md", "docs/configuration.md")
        if (in_section and not key.endswith((".json", ".py"))) or (at_top and key not in ("key", "group")):
            known = key in names or key.startswith(OPEN_KEYS)
            assert known, f"{document} names `{code}`, but there is no setting {key}"


@pytest.mark.parametrize("document", [*NAMES, "CHANGELOG.md", "LOG.md"])
def test_every_link_between_files_leads_somewhere(document: str):
    path = REPO / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (path.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("document", ["architecture", "robustness"])
def test_files_named_exist(document: str):
    text = (REPO / "docs" / f"{document}.md").read_text(encoding="utf-8")
    source = REPO / "src" / "nanochat_pl"
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        assert (REPO / name).is_file() or (source / name).is_file(), f"docs/{document}.md names {name}"


def test_readmes_tree_names_every_package_and_module_of_the_first_level():
    section = (REPO / "README.md").read_text(encoding="utf-8").partition("## Where the code is")[2]
    tree = section.split("```")[1]
    parts = {path.name for path in (REPO / "src" / "nanochat_pl").iterdir() if not path.name.startswith("__")}
    named = set(re.findall(r"[\w.]+", tree))
    assert parts - {"py.typed"} <= named
    assert len(tree.splitlines()) <= 40
    for name in re.findall(r"^  (\w+)/", tree, re.MULTILINE):
        assert (REPO / "src" / "nanochat_pl" / name).is_dir()


def test_the_tour_names_files_and_functions_that_there_are():
    rows = re.findall(r"^\| \d+ \| `([^`]+)` \| (.*?) \|", (REPO / "docs" / "tour.md").read_text(), re.MULTILINE)
    assert len(rows) == 12
    for file, seen in rows:
        text = (REPO / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", seen):
            word = name.rpartition(".")[2]
            assert re.search(rf"^\s*(def|class) {word}\b|^{word}\b", text, re.MULTILINE), f"{file} has no {name}"


def test_readme_shows_the_training_step_that_runs():
    shown = next(block for block in blocks("README.md", "python") if block.startswith("def training_step"))
    source = (REPO / "src" / "nanochat_pl" / "training" / "module.py").read_text(encoding="utf-8")
    lines = {line.strip() for line in source.splitlines()}
    missing = [line for line in shown.splitlines()[1:] if line.strip() not in lines | {"", "..."}]
    assert not missing, "\n".join(missing)
