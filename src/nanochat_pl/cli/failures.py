"""`nanochat-pl failures RESULTS`: sort the wrong answers of an evaluation by what is wrong with them.

The command reads the `examples.jsonl` next to a `results.json`; no model is loaded and nothing is asked again.
`eval/failures.py` decides how answers are sorted; this module shows them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.eval.failures import KINDS, Failure, Kind, TaskFailures, sort_failures
from nanochat_pl.paths import write_atomically
from nanochat_pl.report.blocks import Block, Code, Heading, Text, TextTable, render_markdown
from nanochat_pl.report.evaluated import find_results, read_result
from nanochat_pl.report.read import EvaluationResult
from nanochat_pl.report.terminal import print_table

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class SortedFailures:
    """One evaluation with its failures."""

    result: EvaluationResult
    tasks: Sequence[TaskFailures]


def main(arguments: list[str]) -> int:
    """Sort failures; return 0, or 2 where there is nothing to sort."""
    parser = Arguments(prog="nanochat-pl failures", description="Sort the wrong answers of an evaluation by kind.")
    parser.add_argument("results", metavar="RESULTS", help="results.json, checkpoint file or run folder")
    parser.add_argument("--limit", type=int, default=3, help="examples shown of each kind (default 3)")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    try:
        options = parser.parse_args(arguments)
        if options.limit < 0:
            raise ValueError(f"--limit={options.limit} must be 0 or more")
        evaluations = _sort(options.results)
        if options.markdown is not None:
            write_atomically(options.markdown, _markdown(evaluations, options.limit))
        if options.json is not None:
            write_atomically(options.json, _json(evaluations))
    except (ValueError, OSError) as error:
        return refuse(error)
    for evaluation in evaluations:
        _print(evaluation, options.limit)
    for file in (options.markdown, options.json):
        if file is not None:
            print(f"wrote {file}")
    return 0


def _sort(path: str) -> list[SortedFailures]:
    results = [read_result(file) for file in find_results(path)]
    answered = [result for result in results if result.records]
    if not answered:
        names = ", ".join(str(result.file) for result in results)
        checkpoint = results[0].checkpoint.get("path", "…")
        raise FileNotFoundError(
            f"no answers to sort beside {names}: figures such as bpb have none, and for others examples.jsonl is "
            f"missing; ask questions with `python evaluate.py ckpt={checkpoint} eval=scienceqa`"
        )
    return [SortedFailures(result=result, tasks=sort_failures(result.records, _task(result))) for result in answered]


def _task(result: EvaluationResult) -> str:
    """Return the task of records that name none: the only one of the figures, else the evaluation."""
    tasks = {row.task for row in result.rows}
    return tasks.pop() if len(tasks) == 1 else result.name


def _summary(evaluation: SortedFailures) -> str:
    asked, wrong = sum(t.asked for t in evaluation.tasks), sum(len(t.failures) for t in evaluation.tasks)
    result = evaluation.result
    return f"{result.name} of {result.checkpoint.get('path', result.file)}: {wrong} of {asked} answers are wrong"


def _kinds(evaluation: SortedFailures, limit: int) -> Iterator[tuple[Kind, int, list[tuple[str, Failure]]]]:
    """Yield each kind that occurs, its number of failures, and the first of them with their tasks."""
    for kind in KINDS:
        found = [(task.task, f) for task in evaluation.tasks for f in task.failures if f.kind == kind.name]
        if found:
            yield kind, len(found), found[:limit]


def _print(evaluation: SortedFailures, limit: int) -> None:
    from rich.console import Console
    from rich.text import Text

    print(_summary(evaluation))
    console = Console()
    kinds = [kind.name for kind, _, _ in _kinds(evaluation, 0)]
    rows = []
    for task in evaluation.tasks:
        counts = [task.kinds.get(name, 0) for name in kinds]
        shares = [f"{n} ({n / len(task.failures):.0%})" if n else "" for n in counts]
        rows.append([task.task, f"{len(task.failures)} of {task.asked}", *shares])
    print_table(None, ["task", "wrong of asked", *kinds], rows, console)
    for kind, count, examples in _kinds(evaluation, limit):
        console.print(Text(f"\n{kind.name} ({count}): {kind.rule}", style="bold"))
        console.print(Text(f"try: {kind.remedy}"))
        for _, failure in examples:
            record = failure.record
            console.print(
                Text(f"  {record['id']}: expected {_short(record['expected'])}, got {_short(record['output'])}")
            )


def _short(text: object, limit: int = 100) -> str:
    line = json.dumps(str(text), ensure_ascii=False)
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


def _markdown(evaluations: Sequence[SortedFailures], limit: int) -> str:
    blocks: list[Block] = [Heading(1, "Failures")]
    for evaluation in evaluations:
        kinds = list(_kinds(evaluation, limit))
        header = ("task", "asked", "wrong", *(kind.name for kind, _, _ in kinds))
        counts = [
            (task.task, task.asked, len(task.failures), *(task.kinds.get(kind.name, 0) for kind, _, _ in kinds))
            for task in evaluation.tasks
        ]
        rows = tuple(tuple(map(str, row)) for row in counts)
        blocks += [Heading(2, _summary(evaluation)), TextTable(header, rows)]
        for kind, count, examples in kinds:
            blocks += [Heading(3, f"{kind.name}: {count}"), Text(f"Rule: {kind.rule}.")]
            blocks.append(Text(f"What to try: {kind.remedy}"))
            for name, failure in examples:
                record = {key: str(failure.record[key]) for key in ("id", "prompt", "expected", "output")}
                blocks += [Heading(4, f"{name} {record['id']}"), Code(record["prompt"])]
                blocks += [Code(record["expected"], "Expected:"), Code(record["output"], "Written:")]
    return render_markdown(blocks, escaped=False)


def _json(evaluations: Sequence[SortedFailures]) -> str:
    document = {
        "kinds": [{"name": kind.name, "rule": kind.rule, "remedy": kind.remedy} for kind in KINDS],
        "evaluations": [
            {
                "results": str(evaluation.result.file),
                "name": evaluation.result.name,
                "tasks": [
                    {"task": task.task, "asked": task.asked, "wrong": len(task.failures), "kinds": task.kinds}
                    for task in evaluation.tasks
                ],
                "failures": [
                    {"task": task.task, "kind": failure.kind}
                    | {key: failure.record[key] for key in ("id", "prompt", "expected", "output")}
                    for task in evaluation.tasks
                    for failure in task.failures
                ],
            }
            for evaluation in evaluations
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
