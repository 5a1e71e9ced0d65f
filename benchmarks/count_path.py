"""Count the functions and files of this project that one training step and one HTTP chat pass through.

They say how much a reader has to hold in the head, not how fast it is. A training step is the way from the first of
three optimizer steps to the last, batches and checkpoints included; a chat is a whole answer of four tokens.

    python benchmarks/count_path.py
    python benchmarks/count_path.py --list step
"""

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import torch
import uvicorn

import nanochat_pl
from nanochat_pl.checkpoint import LoadedModel
from nanochat_pl.cli.train import main as train
from nanochat_pl.engine import Engine
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.serve.app import create_app
from nanochat_pl.serve.choices import TokenTexts
from nanochat_pl.serve.server import ServedModel
from nanochat_pl.serve.worker import Worker
from nanochat_pl.tokenizer import Tokenizer

SOURCE = f"{Path(nanochat_pl.__file__).parent}{os.sep}"
STEP = (
    "stage=base depth=1 run_name=count stage.num_steps=3 stage.checkpoint_every_steps=1 stage.sequence_len=64 "
    "stage.device_batch=2 stage.total_batch_tokens=256 stage.val_tokens=512 tokenizer.vocab_size=300 "
    "trainer.log_every_steps=1 trainer.compile=false trainer.accelerator=cpu"
)


class Count:
    """The functions that were called while `counts` was set, in all threads that began after `install`."""

    def __init__(self) -> None:
        self.counts = False
        self.functions: set[tuple[str, str]] = set()
        self.steps = 0

    def install(self) -> None:
        sys.setprofile(self._called)
        threading.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(SOURCE):
            return
        if code.co_name == "training_step":
            self.steps += event == "call"
            self.counts = event == "call" or self.steps < 3
        if event == "call" and self.counts and not code.co_name.startswith("<"):
            self.functions.add((code.co_filename.removeprefix(SOURCE), code.co_qualname))


def step(count: Count) -> None:
    """Train for three steps in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        count.install()
        train(STEP.split())


def chat(count: Count) -> None:
    """Answer one question over HTTP after another that warmed up."""
    tokenizer = Tokenizer.train(["the river runs to the sea and the rain comes back to the hills. " * 20], 300)
    model = GPT(
        GPTConfig(sequence_len=256, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    )
    model.init_weights(torch.Generator().manual_seed(1))
    count.install()
    engine = Engine(model.eval(), tokenizer.stop_ids, tokenizer, "float32")
    loaded = LoadedModel(model, tokenizer, Path("tiny.ckpt"), "sft", 7, {})
    app = create_app([ServedModel("tiny", loaded, Worker(engine, 4, 8, None, "tiny"), TokenTexts(tokenizer))])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
    for counts in (False, True):
        count.counts = counts
        httpx.post(address, json=body, trust_env=False).raise_for_status()
    count.counts = False
    server.should_exit = True
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways: dict[str, Callable[[Count], None]] = {"step": step, "chat": chat}
    parser.add_argument("--list", choices=list(ways), help="name the functions of one of them")
    chosen = parser.parse_args().list
    for name in [chosen] if chosen else ways:
        count = Count()
        ways[name](count)
        sys.setprofile(None)
        threading.setprofile(None)
        for file, function in sorted(count.functions) if chosen else ():
            print(f"  {file}: {function}")
        print(f"{name}: {len(count.functions)} functions in {len({file for file, _ in count.functions})} files")


if __name__ == "__main__":
    main()
