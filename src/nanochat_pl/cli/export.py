"""`nanochat-pl export CKPT --format …`: a trained model in the files of another program, or as one archive.

Any checkpoint that opens can be exported, whatever its format. A format that cannot hold a model refuses it and lists
what would be lost. The destination appears whole or not at all, and only an earlier export is ever replaced.
"""

import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.checkpoint.formats import is_model_archive
from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.paths import run_folder, writing

if TYPE_CHECKING:
    from nanochat_pl.checkpoint.state import ModelState
    from nanochat_pl.report.read import Run

__all__ = ["FORMATS", "check_destination", "export_model", "main", "new_folder"]

_DEFAULT_ROOT = Path("outputs/export")


def main(arguments: list[str]) -> int:
    """Export a model; return the exit code: 0, or 2 if it was refused, with the reason in one line."""
    parser = Arguments(
        prog="nanochat-pl export",
        description="Write a trained model in another program's files, or as one archive with its results.",
    )
    parser.add_argument("source", metavar="CKPT", help="run folder, checkpoint, or anything else that opens")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="what to write")
    parser.add_argument("--out", type=Path, metavar="DST", help=f"where to (default: a name in {_DEFAULT_ROOT})")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    try:
        options = parser.parse_args(arguments)
        out, said = export_model(options.source, options.format, options.out, force=options.force)
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except (ValueError, OSError) as error:
        return refuse(error)
    for note in said:
        print(f"note: {note}")
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    print(f"exported: {out} ({options.format}, {len(files)} file{'s' * (len(files) > 1)}, {megabytes:,.1f} MB)")
    return 0


def export_model(
    source: str | Path, form: str, out: Path | None = None, *, force: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """Write a model in another format, and print which file it is taken from.

    Args:
        source: any path that `load_model` opens.
        form: one of FORMATS.
        out: folder, or file for `zip`; None = named after the model, in `outputs/export`.
        force: replace an earlier export.

    Returns:
        Where it is, and in which respects it differs from the original.
    """
    given = str(out) if out is not None else None
    if form == "zip" and given is not None and not given.endswith(".zip"):
        raise ValueError(f"--out {out} must end in .zip, as --format zip writes one file")
    if out is not None:
        check_destination(out, FORMATS[form].files, force)  # before a large model is read
    from nanochat_pl.checkpoint import read_model
    from nanochat_pl.checkpoint.state import float16_notes

    model = read_model(source)
    model = replace(model, notes=(*model.notes, *float16_notes(model)))
    print(f"exporting: {model.file}, step {model.step:,}", flush=True)
    run = _run_of(model)
    name = _name(model, source)
    if out is None:
        out = _DEFAULT_ROOT / (f"{name}.zip" if form == "zip" else f"{name}-{form}")
        check_destination(out, FORMATS[form].files, force)
    written = FORMATS[form]
    if not written.files:
        return out, (*model.notes, *written.write(model, run, name, out))
    with new_folder(out, written.files, force) as folder:
        said = written.write(model, run, name, folder)
    return out, (*model.notes, *said)


def check_destination(out: Path, names: tuple[str, ...], force: bool) -> None:
    """Raise `FileExistsError` if writing to `out` would replace anything but an earlier export.

    Args:
        out: a file or folder that may exist.
        names: patterns of the files that an export writes into such a folder; () = the destination is a file.
        force: an earlier export may be replaced.
    """
    if out.is_dir() != bool(names) and out.exists():
        raise FileExistsError(f"{out} is a {'folder' if out.is_dir() else 'file'} already; give another name")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] * out.is_file()
    if not held:
        return
    if not force:
        raise FileExistsError(f"{out} exists already; give another name, or --force to replace it")
    if not names and not is_model_archive(out):
        raise FileExistsError(f"{out} is no earlier export, so --force does not replace it; give another name")
    foreign = [name for name in held if names and not any(fnmatch(name, pattern) for pattern in names)]
    if foreign:
        raise FileExistsError(
            f"{out} holds what this command never writes ({', '.join(foreign[:5])}), so --force does not replace it; "
            "give another name, or remove it yourself"
        )


@contextmanager
def new_folder(out: Path, names: tuple[str, ...], force: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` if the block ends well and vanishes if not; see `check_destination`."""
    check_destination(out, names, force)
    if out.is_symlink():  # the link stays, what it leads to is replaced
        out = out.resolve()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex[:8]
        temporary, old = out.with_name(f".{out.name}.{mark}.tmp"), out.with_name(f".{out.name}.{mark}.old")
        temporary.mkdir()
        try:
            yield temporary
            check_destination(out, names, force)
            if out.exists():
                out.rename(old)
            temporary.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def _run_of(model: "ModelState") -> "Run | None":
    """Read the run folder of one of our checkpoints, with the results of these weights only."""
    from nanochat_pl.report.card import results_of
    from nanochat_pl.report.read import read_run

    folder = run_folder(model.file)
    if model.format != "lightning" or folder == model.file.parent:
        return None
    try:
        run = read_run(folder)
    except FileNotFoundError:  # a checkpoints folder by itself
        return None
    return replace(run, results=results_of(run, model.file.stem, model.step))


def _name(model: "ModelState", source: str | Path) -> str:
    """Name a model by stage and run where it has them, else by its folder."""
    from nanochat_pl.checkpoint.state import UNKNOWN_STAGE

    file = model.file.resolve()
    if model.format == "lightning" and run_folder(file) != file.parent:
        run = run_folder(file).name
        return run if run.startswith(model.stage) or model.stage == UNKNOWN_STAGE else f"{model.stage}-{run}"
    path = Path(str(source))  # of the hub: its repository
    named = path.resolve().parent if path.suffix in (".pt", ".json", ".safetensors") else path.resolve()
    return named.name.removesuffix(".zip").removesuffix(".ckpt") or "model"


def _figures(model: "ModelState", run: "Run | None", names: Mapping[str, str]) -> dict[str, float]:
    """Return the validation figure that chose these weights, by its name in another program's metadata."""
    from nanochat_pl.report.read import validation_metric

    chosen = validation_metric(run.curves) if run is not None else None
    if run is None or chosen is None or chosen[0] not in names or run.summary.get("best_step") != model.step:
        return {}
    metric, best = chosen[0], run.summary.get("best")
    return {names[metric]: float(best)} if isinstance(best, int | float) else {}


def _card(
    model: "ModelState",
    run: "Run | None",
    name: str,
    notes: tuple[str, ...],
    opening: str,
    header: Mapping[str, Any] | None,
) -> str:
    from nanochat_pl.model.accounting import num_parameters
    from nanochat_pl.report.card import model_card

    return model_card(
        name=name,
        stage=model.stage,
        step=model.step,
        model=asdict(model.config),
        num_parameters=num_parameters(model.config),
        run_config=model.run_config,
        run=run,
        notes=(*model.notes, *notes),
        opening=opening,
        made_from=model.format,
        header=header,
    )


_HUGGING_FACE = """\
With transformers 5 or later, in this folder (`.`) or by its name on the hub:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
messages = [{"role": "user", "content": "What is gold?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

A text that is no conversation begins with `<|bos|>`, which the tokenizer puts there; a conversation has its own.
"""

_ARCHIVE = """\
| file | what it is |
|---|---|
| `model.safetensors` | the weights, float32 |
| `meta.json` | the model's shape, stage and step, and the whole config of the run |
| `tokenizer.json` | the vocabulary: bytes of every token in base64, split pattern, control tokens |
| `evaluation.json` | every figure of every evaluation |
| `SHA256SUMS` | checksums of these files, as `sha256sum --check` reads them |

With this project's command, the archive becomes a run folder, to chat with, to evaluate or to train further:

```bash
nanochat-pl import {name}.zip outputs/imported/{name}
```
"""


def _write_hugging_face(model: "ModelState", run: "Run | None", name: str, folder: Path) -> tuple[str, ...]:
    from nanochat_pl.checkpoint import huggingface

    notes = huggingface.notes(model)
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nanochat", f"stage-{model.stage}"],
    }
    huggingface.write(model, folder, _card(model, run, name, notes, _HUGGING_FACE, header))
    return notes


def _write_nanochat(model: "ModelState", run: "Run | None", name: str, folder: Path) -> tuple[str, ...]:
    from nanochat_pl.checkpoint import nanochat

    nanochat.write(model, folder, _figures(model, run, {"val/bpb": "val_bpb", "val/loss": "val_loss"}))
    return ()


def _write_sciassist(model: "ModelState", run: "Run | None", name: str, folder: Path) -> tuple[str, ...]:
    from nanochat_pl.checkpoint import sciassist

    sciassist.write(model, folder, _figures(model, run, {"val/loss": "best_val_loss"}))
    return ()


def _write_zip(model: "ModelState", run: "Run | None", name: str, file: Path) -> tuple[str, ...]:
    from nanochat_pl.checkpoint import archive
    from nanochat_pl.report.card import evaluation_document

    card = _card(model, run, name, (), _ARCHIVE.format(name=name), None)
    archive.write(model, file, card, evaluation_document(run.results if run is not None else ()))
    return ()


@dataclass(frozen=True)
class ExportFormat:
    """How a model is written for another program."""

    files: tuple[str, ...]
    """Patterns of the names of the files that it writes into its folder; () = it writes one file."""
    write: "Callable[[ModelState, Run | None, str, Path], tuple[str, ...]]"
    """Writes a model, with what its run folder says, under a name to a place; returns what the user should know."""


FORMATS = {
    "huggingface": ExportFormat(
        (
            *("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
            *("chat_template.jinja", "nanochat_pl.json", "model.safetensors"),
        ),
        _write_hugging_face,
    ),
    "nanochat": ExportFormat(("model_*.pt", "meta_*.json", "tokenizer"), _write_nanochat),
    "sciassist": ExportFormat(("model_finetuned.pt", "meta_finetuned.json", "tokenizer"), _write_sciassist),
    "zip": ExportFormat((), _write_zip),
}
"""Every format that `--format` offers."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
