"""Short forms that a config may use, written out."""

from collections.abc import Mapping
from typing import Any

__all__ = ["task_specs"]


def task_specs(tasks: Mapping[str, Any], val_tasks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a path in the place of a task as the task that reads conversations from it.

    A file that both mixtures name is divided between them; one that is only trained on is trained on whole.

    Raises:
        ValueError: a task is neither a mapping nor the path of a .jsonl or .json file.
    """
    shared = _paths(tasks) & _paths(val_tasks)
    written: list[dict[str, Any]] = []
    for group, specs in (("tasks", tasks), ("val_tasks", val_tasks)):
        found: dict[str, Any] = {}
        for name, spec in specs.items():
            if isinstance(spec, str) and spec.endswith((".jsonl", ".ndjson", ".json")):
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
