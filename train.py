"""Train one stage, a sweep or a chain of stages: `python train.py stage=base depth=4`; `--help` shows the groups."""

import sys
from pathlib import Path

# A checkout runs its own code and configs, whatever copy of the package may be installed beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from nanochat_pl.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
