"""Facts that many places need stand in one table each; a second list would one day be wrong unnoticed."""

import ast

import pytest
from tests.architecture.test_imports import MODULES, REPO, tree

from nanochat_pl.config.evaluations import EVALUATIONS, EvalName
from nanochat_pl.config.stages import MODEL_STAGES, STAGES, StageName
from nanochat_pl.eval.metrics import METRICS
from nanochat_pl.optim.config import ROLES

STAGE_TABLE = "config.stages"
FOREIGN = {"checkpoint.nanochat": "names of folders that nanochat gives its stages"}
"""Modules that may list stages, since they tell of other programs."""


def listed_stages(node: ast.AST) -> set[str]:
    """Give the stages that stand as elements, keys or values of one literal."""
    if isinstance(node, ast.Dict):
        parts = [part for part in (*node.keys, *node.values) if part is not None]
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        parts = list(node.elts)
    else:
        return set()
    names = {part.value for part in parts if isinstance(part, ast.Constant)}
    names |= {part.attr for part in parts if isinstance(part, ast.Attribute) and ast.unparse(part).startswith("Stage")}
    return {name for name in names if isinstance(name, str)} & set(STAGES)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in (STAGE_TABLE, *FOREIGN)])
def test_no_list_of_stages_stands_outside_its_table(module: str):
    # Two are a choice, such as "text is read by tokenizer and base"; three are a list that a new stage must enter.
    found = [f"line {node.lineno}" for node in ast.walk(tree(module)) if len(listed_stages(node)) > 2]
    assert not found, f"{module} lists stages in {', '.join(found)}; ask nanochat_pl.config.stages"


METRIC_TABLE = "eval.metrics"
METRIC_NAMES = {name for name in METRICS if name.replace("/", "").replace("@", "").isidentifier()}
PICTURES = {
    "cli.workspace": "charts of a dashboard, each with its curves",
    "report.closing": "rows of the closing table, each of one evaluation",
    "cli.sweep_table": "columns of the table of a sweep",
    "report.charts": "charts of a run, each with its curves",
}
"""Modules that choose what to draw of what there is: what they do not name is left out, not misjudged."""


@pytest.mark.parametrize("module", [name for name in MODULES if name not in (METRIC_TABLE, *PICTURES)])
def test_no_list_of_metrics_stands_outside_its_table(module: str):
    found = []
    for node in ast.walk(tree(module)):
        parts = [*(node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", []))]
        names = {part.value for part in parts if isinstance(part, ast.Constant)} & METRIC_NAMES
        found += [f"line {node.lineno}"] if len(names) > 2 else []
    assert not found, f"{module} lists metrics in {', '.join(found)}; ask nanochat_pl.eval.metrics"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "optim.config"])
def test_no_list_of_roles_stands_outside_its_table(module: str):
    # A model says which parameters play a role, and the accounting how many: each as a dict from role to its own fact.
    found = [
        f"line {node.lineno}"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Tuple | ast.List | ast.Set)
        and len({part.value for part in node.elts if isinstance(part, ast.Constant)} & set(ROLES)) > 1
    ]
    assert not found, f"{module} lists roles in {', '.join(found)}; ask optim.config.ROLES"


def test_the_search_for_lists_of_stages_finds_the_table_itself():
    assert any(len(listed_stages(node)) > 2 for node in ast.walk(tree(STAGE_TABLE)))


def test_every_stage_has_its_row_and_starts_from_stages_before_it():
    assert set(STAGES) == set(StageName)
    order = list(STAGES)
    for name, stage in STAGES.items():
        assert all(order.index(start) < order.index(name) for start in stage.starts_from)
        assert (stage.default_eval is None) == (name not in MODEL_STAGES)


def test_every_evaluation_has_its_row_its_function_and_its_choice():
    from nanochat_pl.eval.evaluations import EVAL_TASKS

    assert set(EVALUATIONS) == set(EvalName) == {path.stem for path in (REPO / "configs" / "eval").glob("*.yaml")}
    assert set(EVAL_TASKS) == set(EvalName) - {EvalName.auto}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("config.evaluations", "eval.evaluations")])
def test_no_list_of_evaluations_stands_outside_its_tables(module: str):
    found = []
    for node in ast.walk(tree(module)):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = {ast.unparse(part) for part in parts if part is not None}
        found += [f"line {node.lineno}"] if len(names & {f"EvalName.{name}" for name in EvalName}) > 2 else []
    assert not found, f"{module} lists evaluations in {', '.join(found)}; ask nanochat_pl.config.evaluations"


def test_no_class_name_stands_for_two_things():
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    twice = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not twice, f"{twice}; a reader who looks for one of them finds the other"
