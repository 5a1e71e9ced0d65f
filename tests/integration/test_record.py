"""What a real run leaves about itself, when it is stopped and continued."""

import json
from pathlib import Path

from nanochat_pl.report.read import read_run
from tests.integration.conftest import BASE, Train


def test_a_resumed_run_took_as_long_as_all_its_sessions(train: Train, tmp_path: Path):
    first = train(*BASE, "trainer.stop_after_steps=10")
    second = train(*BASE, "resume=auto")
    folder = tmp_path / "base" / "tiny"
    assert (first["status"], second["status"]) == ("stopped", "finished")
    assert second["wall_s"] >= max(first["wall_s"], second["total_training_time"] - 0.1)
    assert second["wall_s"] > first["wall_s"] > 0
    run = json.loads((folder / "run.json").read_text())
    assert run["cpu_count"] >= 1
    assert read_run(folder).seconds == max(second["wall_s"], second["total_training_time"])
