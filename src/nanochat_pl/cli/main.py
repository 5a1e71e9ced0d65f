"""The installed command: `nanochat-pl train …` and `nanochat-pl evaluate …` work from any folder."""

import sys
from importlib import import_module

USAGE = """usage: nanochat-pl <command> [overrides]

  train      train a stage, a sweep or a chain      nanochat-pl train stage=base depth=4
  evaluate   measure checkpoints                    nanochat-pl evaluate ckpt=outputs/base/d4

nanochat-pl <command> --help shows the config groups."""


def main() -> int:
    """Dispatch to a command; return its exit code."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in ("train", "evaluate"):
        print(f"error: nanochat-pl has no command {name}\n\n{USAGE}", file=sys.stderr)
        return 2
    module = import_module(f"nanochat_pl.cli.{name}")
    # Lightning starts further processes by running the file that argv names.
    sys.argv = [str(module.__file__), *arguments]
    return module.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
