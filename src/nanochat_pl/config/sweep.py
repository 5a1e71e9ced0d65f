"""The runs of a sweep: the product of all values and of the variants in its table, each a list of plain overrides.

Values come from the command line (`seed=1,2`) and from `hydra.sweeper.params` of the sweep's file, which may hold
single values, too. A variant is a name for several overrides (`sweep.variants`), for comparisons that are no product,
such as a recipe without one of its parts. A run is started with neither the table nor the sweep's file, so that its
command can be repeated without them.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from nanochat_pl.config.refusals import did_you_mean

__all__ = ["VARIANT", "Sweep", "SweptRun", "expand_variant", "first_values", "key_of", "plan_sweep", "swept_runs"]

VARIANT = "variant"
"""The key of the command line that chooses from the table."""
MAX_NAME = 120
"""The longest name of a run's folder; a longer one ends with a hash."""


@dataclass(frozen=True)
class Sweep:
    """Where the runs of a sweep lie, and how many go at a time."""

    folder: Path
    jobs: int
    is_fixed: bool
    """Whether the same command finds the same folder again: by default it is named by date and time."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    name: str
    """Its folder below that of the sweep: what is not the same for all runs."""
    values: Mapping[str, str]
    """The swept keys, without the variant."""
    overrides: list[str]
    variant: str | None


def key_of(override: str) -> str:
    """Return the key of an override without what tells that it adds or removes something."""
    return override.partition("=")[0].lstrip("+~")


def is_of_sweep(override: Override) -> bool:
    """Return whether an override tells of the sweep, not of its runs."""
    return override.key_or_group in (VARIANT, "sweep") or override.key_or_group.startswith("sweep.")


def values_of(override: Override) -> list[str]:
    """Return one override for each value of an override with several, else the override itself."""
    if override.is_sweep_override():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [override.input_line or ""]


def first_values(overrides: Sequence[Override]) -> list[str]:
    """Return overrides with their first values, without the choice of a variant: what a sweep is looked up with."""
    return [values_of(override)[0] for override in overrides if override.key_or_group != VARIANT]


def plan_sweep(
    first: DictConfig, typed: Sequence[Override], file: Path | None, read: Callable[[str, bool], Override]
) -> tuple[Sweep, list[SweptRun]]:
    """Return where the runs of a sweep lie, and the runs.

    Args:
        first: its config with the first value of each key.
        typed: the overrides of the command line, without Hydra's own.
        file: the file of `sweep=`, where there is one.
        read: parses and checks an override, which may have several values or not.

    Raises:
        ValueError: there is something that no sweep can do.
    """
    for group in ("launcher", "sweeper"):
        if first.hydra.runtime.choices.get(f"hydra/{group}") != "basic":
            raise ValueError(f"hydra/{group}: train.py starts the runs of a sweep itself; leave it out (sweep.jobs=2)")
    if file is not None:
        check_sweep_file(file)
    written: Any = first.hydra.sweeper.get("params") or {}
    params = [read(f"{key}={value}", True) for key, value in written.items()]
    section: Any = OmegaConf.to_object(first.sweep) if "sweep" in first else None
    variants = {} if section is None else section.variants
    for variant in variants:
        for line in expand_variant(variant, variants):
            read(line, False)
    unresolved = OmegaConf.to_container(first.hydra.sweep, resolve=False)
    assert isinstance(unresolved, dict)
    folder = Path(str(first.hydra.sweep.dir))
    sweep = Sweep(folder, 1 if section is None else section.jobs, "${now" not in str(unresolved["dir"]))
    return sweep, swept_runs(typed, params, variants)


def check_sweep_file(file: Path) -> None:
    """Check that the file of a sweep holds nothing that the command of one of its runs would not repeat.

    Raises:
        ValueError: it sets something beside `hydra` and `sweep`.
    """
    content = OmegaConf.load(file)
    is_global = "@package _global_" in file.read_text(encoding="utf-8")
    for key in map(str, content if is_global and isinstance(content, DictConfig) else ()):
        if key not in ("hydra", "sweep"):
            raise ValueError(
                f"{file} sets {key}, which the command of a run alone would lack; write it below hydra.sweeper.params, "
                "as depth: 2"
            )


def swept_runs(
    typed: Sequence[Override], params: Sequence[Override], variants: Mapping[str, Sequence[str]]
) -> list[SweptRun]:
    """Return the runs of a sweep in their order: the last key changes first.

    Args:
        typed: overrides of the command line, without Hydra's own.
        params: overrides of the sweep's file; one that is typed, too, counts as typed.
        variants: the table.

    Raises:
        ValueError: there is no such variant, it sets what is set beside it, or two runs would be the same.
    """
    own = [o for o in typed if not is_of_sweep(o) or o.key_or_group == VARIANT]
    several = {o.key_or_group for o in (*params, *own) if o.is_sweep_override() or o.key_or_group == VARIANT}
    instead = {o.key_or_group: o for o in own if o.key_or_group in {p.key_or_group for p in params}}
    given = [o for o in own if o not in instead.values()]  # what is typed once for all comes first
    given += [instead.get(o.key_or_group, o) for o in params]
    choices = [_chosen(o, variants) if o.key_or_group == VARIANT else values_of(o) for o in given]
    keys = [o.key_or_group for o in given]
    leaves = [key.rpartition(".")[2] for key in several]
    runs = []
    for values in itertools.product(*choices):
        chosen = dict(zip(keys, values))
        variant = chosen.pop(VARIANT, None)
        overrides = [*chosen.values()]
        if variant is not None:
            parts = expand_variant(variant, variants)
            if both := sorted({*map(key_of, parts)} & {*map(key_of, overrides)}):
                line = next(line for line in overrides if key_of(line) == both[0])
                raise ValueError(f"{line}: the variant {variant} sets {both[0]} itself; leave one of them out")
            overrides = [*parts, *overrides, f"sweep.variant={variant}"]
        swept = {key: value.partition("=")[2].strip("'\"") for key, value in chosen.items() if key in several}
        named = [variant] if variant is not None else []
        for key, value in swept.items():
            leaf = key.rpartition(".")[2]
            is_plain = leaves.count(leaf) == 1 and key != "data.seed"  # `seed=` in a name is always that of the run
            named.append(f"{leaf if is_plain else key}={value}")
        runs.append(SweptRun(_folder_name(named), swept, overrides, variant))
    for run, others in itertools.groupby(sorted(runs, key=lambda run: run.name), key=lambda run: run.name):
        if len([*others]) > 1:
            raise ValueError(f"the run {run} occurs twice in this sweep; name each value once")
    return runs


def _folder_name(parts: Sequence[str]) -> str:
    """Return a name for a folder that says what is special about a run."""
    whole = "-".join(parts) or "run"
    name = re.sub(r"[^\w.+=-]+", "_", whole)
    if name == whole and len(name) <= MAX_NAME and name.strip("."):
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _chosen(override: Override, variants: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of the variants that `variant=a,b_*` chooses, in the order of the table.

    Raises:
        ValueError: one of them is not in the table.
    """
    typed = [line.partition("=")[2].strip("'\"") for line in values_of(override)]
    if not variants:
        raise ValueError(
            f"{override.input_line}: there is no table of variants; give sweep=<name> of a sweep with one, or yours: "
            "sweep.variants.mine=[model=modern]"
        )
    names: set[str] = set()
    for pattern in typed:
        found = [name for name in variants if fnmatchcase(name, pattern)]
        if not found:
            shown = ", ".join([*variants][:12]) + (f" and {len(variants) - 12} more" if len(variants) > 12 else "")
            raise ValueError(
                f"{VARIANT}={pattern}: there is no such variant; there are {shown}{did_you_mean(pattern, {*variants})}"
            )
        names.update(found)
    return [name for name in variants if name in names]


def expand_variant(name: str, variants: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the overrides of a variant; an entry without `=` is another variant whose overrides come first.

    Of two overrides of one key the later counts.

    Raises:
        ValueError: it begins from a variant that is not there, or from itself.
    """
    overrides: dict[str, str] = {}
    for line in _lines(name, variants, ()):
        overrides.pop(key_of(line), None)
        overrides[key_of(line)] = line
    return [*overrides.values()]


def _lines(name: str, variants: Mapping[str, Sequence[str]], above: tuple[str, ...]) -> Iterator[str]:
    if name in above:
        raise ValueError(f"sweep.variants.{name} begins from itself: {' -> '.join([*above, name])}")
    for entry in variants[name]:
        if "=" in entry or entry.startswith("~"):
            yield entry
        elif entry in variants:
            yield from _lines(entry, variants, (*above, name))
        else:
            raise ValueError(
                f"sweep.variants.{name} holds {entry}, which is neither an override, as key=value, nor another "
                f"variant{did_you_mean(entry, {*variants})}"
            )
