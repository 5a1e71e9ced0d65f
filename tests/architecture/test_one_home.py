"""Facts that many places need stand in one table each; a second list would one day be wrong unnoticed."""

import ast

import pytest
from tests.architecture.test_imports import MODULES, tree

from nanochat_pl.stages import MODEL_STAGES, STAGES, StageName

STAGE_TABLE = "stages"
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
    assert not found, f"{module} lists stages in {', '.join(found)}; ask nanochat_pl.stages"


def test_the_search_for_lists_of_stages_finds_the_table_itself():
    assert any(len(listed_stages(node)) > 2 for node in ast.walk(tree(STAGE_TABLE)))


def test_every_stage_has_its_row_and_starts_from_stages_before_it():
    assert set(STAGES) == set(StageName)
    order = list(STAGES)
    for name, stage in STAGES.items():
        assert all(order.index(start) < order.index(name) for start in stage.starts_from)
        assert (stage.default_eval is None) == (name not in MODEL_STAGES)
