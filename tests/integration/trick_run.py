"""What a model with a new trick must go through, run in a copy of the project by `test_new_trick.py`.

python trick_run.py <work folder> <on|off>
"""

import sys
from pathlib import Path

import torch

from nanochat_pl.checkpoint import load_model, read_model
from nanochat_pl.checkpoint.huggingface import unsupported
from nanochat_pl.engine import Engine, Request
from nanochat_pl.training.tokenizers import make_tokenizer
from tests.integration.conftest import BASE, compose, train_below


def main(work: Path, trick: str) -> None:
    """Train, stop, resume, open, decode and export; every step is asserted."""
    world = work / "world"
    if not world.exists():
        make_tokenizer(compose([*BASE, f"data.root={world / 'data'}"])).save(world / "tokenizer")
    config = [*BASE, "stage.num_steps=6", f"model.toy_gains={'true' if trick == 'on' else 'false'}"]
    train_below(work, world, *config, f"run_name=straight_{trick}")
    train_below(work, world, *config, f"run_name=halves_{trick}", "trainer.stop_after_steps=3")
    train_below(work, world, *config, f"run_name=halves_{trick}", "resume=auto")
    saved = [
        torch.load(work / "base" / f"{name}_{trick}" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("straight", "halves")
    ]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0]), "resume differs from a straight run"
    added = {name for name in saved[0] if name.rpartition(".")[2].startswith("toy_")}
    places = {name.removeprefix("model.") for name in added}
    root_block_attention = {"toy_root", "transformer.h.0.toy_block", "transformer.h.0.attn.toy_heads"}
    assert places == (root_block_attention if trick == "on" else set()), places
    assert all(not torch.equal(saved[0][name], torch.ones_like(saved[0][name])) for name in added), "not trained"

    run = work / "base" / f"straight_{trick}"
    loaded = load_model(run)
    prompt = loaded.tokenizer.encode("The sun is", prepend=loaded.tokenizer.bos_id)
    row = list(prompt)
    for _ in range(8):
        row.append(int(loaded.model(torch.tensor([row]))[0, -1].argmax()))
    for dtype in ("float32", "bfloat16"):
        (completion,) = Engine(loaded.model, (), dtype=dtype).run([Request(prompt, max_new_tokens=8, temperature=0.0)])
        assert dtype != "float32" or completion.tokens == row[len(prompt) :], "the engine differs from a full forward"
        assert len(completion.tokens) == 8
    lost = unsupported(read_model(run))
    assert (lost == []) == (trick == "off"), lost
    assert all(any(name in said for said in lost) for name in places), "an export would drop weights unsaid"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
