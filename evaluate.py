"""Measure a checkpoint: `python evaluate.py ckpt=outputs/base/d4`; several: `'ckpt=[a,b]'`."""

import sys
from pathlib import Path

# A checkout runs its own code and configs, whatever copy of the package may be installed beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from nanochat_pl.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
