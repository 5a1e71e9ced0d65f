"""Training runs of the original, replayed by the whole system from the same seed: data, model, optimizers, Trainer."""

import json
from pathlib import Path

import pytest

from nanochat_pl.training.module import LanguageModel
from tests.integration.conftest import Train, metrics, train, world  # noqa: F401  (fixtures)
from tests.parity.reference import command_line

pytestmark = pytest.mark.slow

EAGER = [
    "trainer.accelerator=cpu",
    "trainer.compile=false",
    "trainer.compute_dtype=float32",
    "trainer.log_every_steps=1",
]


KEYS = {
    "depth": "depth",
    "max_seq_len": "stage.sequence_len",
    "device_batch_size": "stage.device_batch",
    "total_batch_size": "stage.total_batch_tokens",
    "num_iterations": "stage.num_steps",
    "eval_every": "stage.val_every_steps",
    "eval_tokens": "stage.val_tokens",
}
"""What the original's arguments are called here."""


def as_recorded(arguments: list[str], shape: dict[str, int]) -> list[str]:
    """Turn the arguments of a recorded run, and the shape of its model, into overrides."""
    given = command_line(arguments)
    return [
        "stage=base",
        "data=local",
        f"model.n_embd={shape['n_embd']}",  # whose odd depths have other widths than ours
        f"tokenizer.vocab_size={shape['vocab_size']}",
        *(f"{KEYS[name]}={value}" for name, value in given.items() if name in KEYS),
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
        *as_recorded(recorded["args"], recorded["meta"]["model_config"]),
        "run_name=recorded",
        "data.text=base_data",
        f"data.root={reference_root / 'base'}",
        f"tokenizer.path={reference_root / 'base' / 'tokenizer'}",
        "optim.ns_dtype=bfloat16",
        *EAGER,
    )
    folder = tmp_path / "base" / "recorded"
    assert last_micro_batch[:8] == pytest.approx(recorded["losses"][:8], abs=2e-3)
    assert last_micro_batch == pytest.approx(recorded["losses"], abs=2e-2)
    norms = floats(folder, "train/grad_norm")
    assert [norms[step] for step in range(8)] == pytest.approx(recorded["grad_norms"][:8], abs=5e-3)
    bpb = floats(folder, "val/bpb")
    assert [bpb[step] for step, _ in recorded["val_bpb"]] == pytest.approx(
        [v for _, v in recorded["val_bpb"]], abs=5e-3
    )
    multipliers = floats(folder, "train/lrm")
    assert list(multipliers.values()) == pytest.approx(recorded["lr_multiplier"][: len(multipliers)])
    assert len(multipliers) == len(recorded["losses"])


@pytest.fixture
def curve(reference_root: Path, data_root: Path, train: Train):  # noqa: F811
    recorded = json.loads((reference_root / "curve_d4.json").read_text())

    def start(*overrides: str) -> None:
        train(
            *as_recorded(recorded["args"], recorded["model_config"]),
            "run_name=curve",
            f"data.root={data_root}",
            "trainer.accelerator=cpu",
            f"tokenizer.path={reference_root / recorded['tokenizer']}",
            "trainer.log_every_steps=1",
            *overrides,
        )

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
    last, expected = recorded["val_bpb"][-1]
    assert bpb[last] == pytest.approx(expected, abs=0.01)


def test_other_initial_tensors_and_the_fastest_settings_end_as_well(curve, tmp_path: Path):
    recorded, start = curve
    last, expected = recorded["val_bpb"][-1]
    start("seed=7", f"stage.val_every_steps={last}")
    bpb = floats(tmp_path / "base" / "curve", "val/bpb")
    assert bpb[last] == pytest.approx(expected, abs=0.03)
