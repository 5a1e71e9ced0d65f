"""The installed command: `nanochat-pl train …`, `nanochat-pl evaluate …` and the rest work from any folder."""

import keyword
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "train": ("train a stage, a sweep or a chain", "stage=base depth=4"),
    "explain": ("what a setting or config group means", "stage.num_steps"),
    "doctor": ("is this machine fit to train on", "--json doctor.json"),
    "sbatch": ("a batch file of Slurm for a run", "stage=base depth=12 --time 8:00:00"),
    "evaluate": ("measure checkpoints", "ckpt=outputs/base/d4"),
    "compare": ("checkpoints beside each other, and who won", "outputs/base/d4 outputs/sft/d4"),
    "power": ("how many questions or seeds are enough", "outputs/base/seed* --effect 0.005"),
    "failures": ("wrong answers sorted, and what to try", "outputs/sft/d4"),
    "workspace": ("a layout of panels for W&B", "--out workspace.yaml"),
    "chat": ("talk to a model, or to several at once", "outputs/sft/d4"),
    "serve": ("web page and OpenAI's API over models", "outputs/sft/d4 --port 8000"),
    "import": ("models of other programs and of the hub", "hf://owner/repo outputs/imported/d20"),
    "export": ("a model for other programs, or as an archive", "outputs/sft/d4 --format huggingface"),
    "report": ("a run, with all stages before it, as a page", "outputs/sft/d4"),
}
USAGE = "\n".join(
    [
        "usage: nanochat-pl <command> [arguments]",
        "",
        *(f"  {name:<10} {what:<46} nanochat-pl {name} {example}" for name, (what, example) in COMMANDS.items()),
        "",
        "nanochat-pl <command> --help shows what each takes.",
    ]
)


def module_of(command: str) -> str:
    """Return the module whose `main` runs a command; `import` cannot be a module's name."""
    return f"nanochat_pl.cli.{command}" + "_" * keyword.iskeyword(command)


def main() -> int:
    """Dispatch to a command; return its exit code."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"nanochat_pl {version('nanochat_pl')}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: nanochat-pl has no command {name}; {hint}", file=sys.stderr)
        return 2
    try:
        module = import_module(module_of(name))
        # Lightning starts further processes by running the file that argv names.
        sys.argv = [str(module.__file__), *arguments]
        return module.main(arguments)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
