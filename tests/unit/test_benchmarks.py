"""Scripts of benchmarks/ start, and what they compare computes the same."""

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import REPO, load_benchmark

SCRIPTS = sorted(path.name for path in (REPO / "benchmarks").glob("*.py") if "main()" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_its_options(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / "benchmarks" / script), run_name="__main__")
    assert ended.value.code == 0 and "usage" in capsys.readouterr().out


def test_the_textbook_model_computes_our_loss_and_gradients():
    bench_loss = load_benchmark("bench_loss")
    config = bench_loss.make_config(SimpleNamespace(sequence_len=16, depth=2), vocab_size=96)
    batch = bench_loss.make_batch(config, rows=2)
    plain, ours = (bench_loss.make_side(f"{kind} eager fp32", config) for kind in ("plain", "ours"))
    losses = [side(*batch) for side in (plain, ours)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    for loss in losses:
        loss.backward()
    expected = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=2e-5, rtol=1e-3, msg=name)
