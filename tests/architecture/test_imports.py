"""The house's plan, held by parsing: who may import whom, and what stays out of the computing ring.

`docs/architecture.md` explains the table; this is the table in force. Imports are read from the syntax tree, so one
inside a function counts as well, except where only the cost of loading is at stake.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCE = REPO / "src" / "nanochat_pl"

PURE = (
    "runtime",
    "paths",
    "downloads",
    "rows",
    "world",
    "vocabulary",
    "tokenizer",
    "model",
    "optim",
    "data",
    "tasks",
    "checkpoint",
    "calculator",
    "sandbox",
    "sampling",
    "requests",
    "decoding",
    "engine",
    "serve",
    "eval",
    "report",
    "rl",
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "runtime": (),
    "paths": (),
    "downloads": ("paths",),
    "vocabulary": (),
    "tokenizer": ("vocabulary", "paths"),
    "model": (),
    "optim": ("runtime",),
    "data": ("runtime", "paths", "rows", "world"),
    "world": ("rows",),
    "rows": (),
    "tasks": ("paths", "downloads", "rows", "sandbox"),
    "checkpoint": ("model", "vocabulary", "tokenizer", "paths", "downloads", "runtime"),
    "calculator": (),
    "sandbox": (),
    "sampling": (),
    "requests": ("model",),
    "decoding": ("model", "calculator", "sampling", "requests"),
    "engine": ("model", "decoding", "requests", "runtime"),
    "serve": ("engine", "requests", "tokenizer", "checkpoint", "runtime", "paths"),
    "eval": ("engine", "requests", "model", "tokenizer", "tasks", "runtime", "calculator"),
    "report": ("eval", "paths", "config.stages"),
    "rl": ("engine", "tokenizer", "tasks", "runtime", "data.batch", "config.values"),
    "config": (
        "paths",
        "downloads",
        "data",
        "world",
        "tasks",
        "model",
        "optim",
        "tokenizer",
        "checkpoint",
        "requests",
        "eval",
        "rl.config",
    ),
    "eval.runner": (*PURE, "config", "training"),
    "eval.evaluations": (*PURE, "config"),
    "eval.texts": ("data", "rows", "tokenizer", "vocabulary"),
    "training": (*PURE, "config"),
    "lit": ("training",),
    "api": ("config", "paths", "training", "cli"),
    "cli": (*PURE, "config", "training"),
}
"""Part (a package or module, the longest name that fits) -> parts it may import beside its own package."""

FRAMEWORKS = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb")
OUTER = ("config", "training", "eval.runner", "lit", "api", "cli")
SLOW_TO_LOAD = ("wandb", "datasets")
LIGHT = (
    "__init__", "paths", "downloads", "checkpoint", "checkpoint.hub", "checkpoint.formats", "requests",
    "serve.context", "serve.errors", "serve.handle", "serve.middleware", "serve.settings", "cli.chat", "cli.serve",
    "model.config", "model.accounting", "optim.config", "rl.config", "eval.metrics", "optim.schedules",
    "data.parquet", "data.microworld", "world.chats", "world.documents", "world.facts", "world.problems",
    "world.questions", "world.write", "training.claim", "training.signals", "cli.arguments", "cli.chain",
    "cli.evaluate", "cli.main", "cli.sweep", "cli.sweep_table", "cli.train",
)  # fmt: skip
"""What a command line passes through, beside `config/`, before it is known to be right: no torch at their top."""

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imports(node: ast.AST, anywhere: bool) -> Iterator[str]:
    """List imported names with dots; `anywhere` = also inside functions and TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: write imports in full, not relative ones"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif anywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if not anywhere and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            yield from imports(child, anywhere)


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def test_every_part_has_a_row_in_the_table():
    parts = {module.partition(".")[0] for module in MODULES} - {"__init__"}
    assert parts == {row for row in MAY_IMPORT if "." not in row}
    assert all(row in MODULES for row in MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module: str):
    part = module.partition(".")[0]
    allowed = (part, *MAY_IMPORT.get(module, MAY_IMPORT.get(part, ())))
    ours = {name.removeprefix("nanochat_pl.") for name in imports(tree(module), True) if name.startswith("nanochat_pl")}
    wrong = sorted(name for name in ours if not within(name, allowed))
    assert not wrong, f"{module} imports {', '.join(wrong)}; the table allows only {', '.join(allowed)}"


def test_only_the_outer_ring_knows_the_frameworks():
    for module in MODULES:
        if not within(module, OUTER):
            wrong = sorted(name for name in imports(tree(module), True) if within(name, FRAMEWORKS))
            assert not wrong, f"{module} imports {', '.join(wrong)}; only {', '.join(OUTER)} may"


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_root_script_only_hands_over(script: str):
    names = set(imports(ast.parse((REPO / script).read_text(encoding="utf-8")), True))
    assert names == {"sys", "pathlib.Path", f"nanochat_pl.cli.{script.removesuffix('.py')}.main"}


@pytest.mark.parametrize("module", MODULES)
def test_what_loads_slowly_is_imported_where_it_is_used(module: str):
    wrong = sorted(name for name in imports(tree(module), False) if within(name, SLOW_TO_LOAD))
    assert not wrong, f"{module} imports {', '.join(wrong)} at its top; import it inside the function that needs it"


@pytest.mark.parametrize("module", [name for name in MODULES if name in LIGHT or within(name, ("config",))])
def test_what_runs_before_a_config_is_checked_loads_no_torch(module: str):
    wrong = sorted(
        name for name in imports(tree(module), False) if within(name, ("torch", "lightning", "torchmetrics"))
    )
    assert not wrong, f"{module} imports {', '.join(wrong)} at its top; a wrong command line would pay for it"


def test_modules_say_why_they_exist_and_names_say_what_they_hold():
    for module, path in MODULES.items():
        if path.stat().st_size:
            assert ast.get_docstring(tree(module)), f"{module} has no docstring"
        assert not {"utils", "helpers", "common", "misc"} & set(module.split(".")), (
            f"{module}: name it by what it holds"
        )


def test_the_computing_ring_does_not_print():
    for module in MODULES:
        if not within(module, OUTER):
            calls = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
            assert not calls, f"{module}, line {calls[0].lineno}: log through `logging`, or return what is to be said"
