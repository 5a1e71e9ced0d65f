"""Continue a text with a model, one full forward pass a token: the engine's computation without its cache.

Run `python examples/generate.py CHECKPOINT "The sun is"`; a test checks that its tokens equal the engine's.
"""

import sys

import torch

from nanochat_pl import GPT, load_model


@torch.no_grad()
def generate(model: GPT, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Append the likeliest token again and again. The engine reads each token once and keeps keys and values."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([ids], device=model.device))  # (1, T, vocab_size)
        ids.append(int(logits[0, -1].argmax()))  # only the last position predicts the next token
    return ids[len(prompt) :]


if __name__ == "__main__":
    loaded = load_model(sys.argv[1])
    prompt = loaded.tokenizer.encode(sys.argv[2], prepend=loaded.tokenizer.bos_id)
    print(sys.argv[2] + loaded.tokenizer.decode(generate(loaded.model, prompt, max_new_tokens=24)))
