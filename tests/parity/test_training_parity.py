"""Training runs of the original, replayed by the whole system from the same seed: data, model, optimizers, Trainer."""

import json
from pathlib import Path

import pytest

from nanochat_pl.lit.module import LanguageModel
from tests.integration.conftest import Train, metrics, train, world  # noqa: F401  (fixtures)

pytestmark = pytest.mark.slow

EAGER = [
    "trainer.accelerator=cpu",
    "trainer.compile=false",
    "trainer.compute_dtype=float32",
    "trainer.log_every_steps=1",
]


def floats(folder: Path, name: str) -> dict[int, float]:
    return {step: float(value) for step, value in metrics(folder, name).items()}


def test_the_recorded_run_of_twenty_steps_is_repeated(
    train: Train,  # noqa: F811
    reference_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recorded = json.loads((reference_root / "base_train_run.json").read_text())
    last_micro_batch: list[float] = []  # the original reports the loss of that one alone
    losses = LanguageModel.losses

    def noting(self, batch):
        for loss in losses(self, batch):
            yield loss
        last_micro_batch.append(float(loss.detach()) * len(batch.inputs))

    monkeypatch.setattr(LanguageModel, "losses", noting)
    train(
        "stage=base", "data=local", "run_name=run_d1", "depth=1", "model.n_embd=64", "stage.sequence_len=32",
        "stage.device_batch=2", "stage.total_batch_tokens=128", "stage.num_steps=20", "stage.val_every_steps=10",
        "stage.val_tokens=256", "data.text=base_data", f"data.root={reference_root / 'base'}",
        f"tokenizer.path={reference_root / 'base' / 'tokenizer'}", "tokenizer.vocab_size=384",
        "optim.ns_dtype=bfloat16", *EAGER,
    )  # fmt: skip
    folder = tmp_path / "base" / "run_d1"
    assert last_micro_batch[:8] == pytest.approx(recorded["losses"][:8], abs=2e-3)
    assert last_micro_batch == pytest.approx(recorded["losses"], abs=2e-2)
    norms = floats(folder, "train/grad_norm")
    assert [norms[step] for step in range(8)] == pytest.approx(recorded["grad_norms"][:8], abs=5e-3)
    bpb = floats(folder, "val/bpb")
    assert [bpb[step] for step, _ in recorded["val_bpb"]] == pytest.approx(
        [v for _, v in recorded["val_bpb"]], abs=5e-3
    )
    multipliers = floats(folder, "train/lrm")
    assert list(multipliers.values()) == pytest.approx(recorded["lr_multiplier"][:20])


@pytest.fixture
def curve(reference_root: Path, data_root: Path, train: Train):  # noqa: F811
    recorded = json.loads((reference_root / "curve_d4.json").read_text())

    def start(*overrides: str) -> None:
        train(
            "stage=base", "data=local", "run_name=curve", "depth=4", "stage.sequence_len=512", "stage.device_batch=4",
            "stage.total_batch_tokens=2048", "stage.num_steps=200", "stage.val_every_steps=50",
            "stage.val_tokens=65536", f"data.root={data_root}", "trainer.accelerator=cpu",
            f"tokenizer.path={reference_root / 'curve_d4_tokenizer.pkl'}", "tokenizer.vocab_size=8192",
            "trainer.log_every_steps=1", *overrides,
        )  # fmt: skip

    return recorded, start


def test_the_recorded_curve_of_a_real_size_is_followed(curve, tmp_path: Path):
    recorded, start = curve
    start("optim.ns_dtype=bfloat16", "trainer.compile=false", "trainer.compute_dtype=float32")
    loss = floats(tmp_path / "base" / "curve", "train/loss")
    apart = [abs(loss[step] - value) for step, value in enumerate(recorded["losses"])]
    assert max(apart[:10]) <= 0.002
    assert max(apart[:50]) <= 0.02
    assert max(apart[:150]) <= 0.06
    bpb = floats(tmp_path / "base" / "curve", "val/bpb")
    assert bpb[200] == pytest.approx(dict(recorded["val_bpb"])[200], abs=0.01)


def test_other_initial_tensors_and_the_fastest_settings_end_as_well(curve, tmp_path: Path):
    recorded, start = curve
    start("seed=7", "stage.val_every_steps=200")
    bpb = floats(tmp_path / "base" / "curve", "val/bpb")
    assert bpb[200] == pytest.approx(dict(recorded["val_bpb"])[200], abs=0.03)
