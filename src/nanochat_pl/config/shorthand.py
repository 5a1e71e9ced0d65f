"""Short forms that a config may use, written out."""

from collections.abc import Mapping
from typing import Any

__all__ = ["CONVERSATION_SUFFIXES", "task_specs"]

CONVERSATION_SUFFIXES = (".jsonl", ".ndjson", ".json")
"""Files of conversations, which may be named in place of a task."""


def task_specs(tasks: Mapping[str, Any], val_tasks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replace each path that stands in place of a task by the task that reads its conversations.

    A file that both mixtures name is divided between them; one that only training names is trained on whole.

    Raises:
        ValueError: a task is neither a mapping nor the path of a .jsonl or .json file.
    """
    shared = _paths(tasks) & _paths(val_tasks)
    written: list[dict[str, Any]] = []
    for group, specs in (("tasks", tasks), ("val_tasks", val_tasks)):
        found: dict[str, Any] = {}
        for name, spec in specs.items():
            if isinstance(spec, str) and spec.endswith(CONVERSATION_SUFFIXES):
                found[name] = {"_target_": "nanochat_pl.tasks.jsonl.JSONL", "path": spec}
                if group == "val_tasks":
                    found[name]["split"] = "validation"
                elif spec not in shared:
                    found[name]["val_fraction"] = 0
            elif spec is None or isinstance(spec, Mapping):
                found[name] = spec
            else:
                raise ValueError(
                    f"mixture.{group}.{name}={spec} is no task; give the path of a .jsonl or .json file of "
                    "conversations, a mapping with `_target_`, or null to leave it out"
                )
        written.append(found)
    return written[0], written[1]


def _paths(specs: Mapping[str, Any]) -> set[str]:
    return {spec for spec in specs.values() if isinstance(spec, str)}
