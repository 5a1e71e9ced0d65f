"""Hugging Face's folder, which transformers opens as `NanoChatForCausalLM` (safetensors, config.json, tokenizer.json).

The two libraries compute the same function with one exception: nanochat trains with rotary tables rounded to bfloat16,
and transformers computes its own in float32. `notes` tells the user, and tests bound the difference. A model with parts
that transformers' class does not have is refused with a list of them (`unsupported`); nothing is dropped silently.

Hugging Face's files have no fields for stage, step, run config and table rounding; these are in `nanochat_pl.json`,
which other programs ignore.
"""

import dataclasses
import json
import re
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat_pl.checkpoint.formats import read_json
from nanochat_pl.checkpoint.huggingface_tokenizer import (
    CHAT_TEMPLATE,
    check_agreement,
    from_tokenizer_json,
    to_tokenizer_json,
)
from nanochat_pl.checkpoint.state import (
    UNKNOWN_STAGE,
    ModelState,
    check_shape,
    check_tokenizer,
    check_weights,
    weight_shapes,
)
from nanochat_pl.model.config import Architecture, GPTConfig
from nanochat_pl.paths import reason
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["notes", "read", "unsupported", "write"]

NORM_EPS = 1.1920929e-07
"""The epsilon of float32, which our norms add; config.json must name it, because transformers' default is 1e-6."""

_OURS = "nanochat_pl.json"
_INDEX = "model.safetensors.index.json"
_FORMAT = "nanochat_pl.huggingface/1"

_SUPPORTED = ("rope_base", "softcap", "rope_table_dtype", "pad_vocab_to", "init")
"""Architecture fields that a folder can hold: in config.json, in nanochat_pl.json, or by leaving out unused rows."""

_LAYER_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_END_NAMES = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
_FIXED = {
    "hidden_act": "relu2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "quantization_config": None,
}
"""Keys of config.json with the only value that our model supports, which is also transformers' default."""


def unsupported(model: ModelState) -> list[str]:
    """List the parts of a model that a folder cannot hold; if there are none, `write` will not refuse it."""
    unknown = sorted(model.state.keys() - _names(model.config.n_layer).keys())
    lost = [f"the weight {name}" for name in unknown]
    classic = Architecture()
    for field in dataclasses.fields(Architecture):
        value = getattr(model.config, field.name)
        if field.name not in _SUPPORTED and value != getattr(classic, field.name):
            lost.append(f"model.{field.name}={value}")
    try:
        check_agreement(model.tokenizer, to_tokenizer_json(model.tokenizer))
    except ValueError as error:
        lost.append(f"the tokenizer: {error}")
    return lost


def notes(model: ModelState) -> tuple[str, ...]:
    """Return the differences between the exported model and the original, in sentences for the user."""
    sentences = []
    if model.config.rope_table_dtype == "bfloat16":
        sentences.append(
            "The model was trained with rotary tables rounded to bfloat16; transformers computes them in float32. Its "
            "logits therefore differ, by about 0.004 over 1,024 positions; with equal tables they agree to 1e-5."
        )
    unused = model.config.padded_vocab_size - model.config.vocab_size
    if unused:
        sentences.append(
            f"The embedding tables end with the last id of the tokenizer: {unused} rows of padding that no id uses "
            f"(pad_vocab_to={model.config.pad_vocab_to}) were left out."
        )
    sentences.append(
        "The tokenizer gives text and conversations the same ids. In conversations, control tokens that somebody "
        "spells out, such as <|user_end|>, stay plain text. In text that is no conversation they become control "
        "tokens: do not hand it such text from strangers without split_special_tokens=True."
    )
    return tuple(sentences)


def write(model: ModelState, folder: Path, card: str | None = None) -> tuple[str, ...]:
    """Write the files of a Hugging Face folder, in place of files of the same names, and return the `notes`.

    `card` is the text of README.md; None = a short one with the notes.

    Raises:
        ValueError: if the format cannot hold the model; the message lists everything that would be lost.
    """
    if lost := unsupported(model):
        raise ValueError(
            f"a Hugging Face NanoChat folder cannot hold this model; it would lose: {'; '.join(lost)}. Export it as "
            "--format zip, which holds everything"
        )
    check_weights(model.state, model.config, model.file)
    check_tokenizer(model.tokenizer, model.config, model.file)
    folder.mkdir(parents=True, exist_ok=True)
    rows = model.config.vocab_size
    weights = {
        theirs: (model.state[ours][:rows] if ours in _END_NAMES else model.state[ours]).float().contiguous()
        for ours, theirs in _names(model.config.n_layer).items()
    }
    file = folder / "model.safetensors"
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(weights, file, metadata={"format": "pt"})  # replaces it by a file that only the owner may read
    file.chmod(mode)
    metadata = {
        "format": _FORMAT,
        "stage": model.stage,
        "step": model.step,
        "rope_table_dtype": model.config.rope_table_dtype,
        "run_config": model.run_config,
    }
    sentences = notes(model)
    documents: dict[str, Any] = {
        "config.json": _config_json(model),
        "generation_config.json": _generation_json(model),
        "tokenizer.json": to_tokenizer_json(model.tokenizer),
        "tokenizer_config.json": _tokenizer_config_json(model),
        _OURS: metadata,
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    if card is None:
        card = "# A NanoChat model\n\n" + "\n".join(f"- {note}" for note in sentences) + "\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sentences


def read(path: str | Path) -> ModelState:
    """Read a Hugging Face folder, ours or another's; any file in it stands for the folder.

    Raises:
        FileNotFoundError: if a file of the folder is missing.
        ValueError: if it is another kind of model, or a NanoChat that computes something else than ours.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    document = read_json(folder / "config.json")
    metadata = read_json(folder / _OURS) if (folder / _OURS).is_file() else {}
    assumptions = []
    if not metadata:
        assumptions.append(
            "the folder does not say what its rotary tables were rounded to in training; taken is float32, as "
            "transformers computes them; nanochat trains with bfloat16 (nanochat-pl import --rope-tables bfloat16)"
        )
    try:
        stage, step = str(metadata.get("stage", UNKNOWN_STAGE)), int(metadata.get("step", 0))
        run_config = dict(metadata.get("run_config", {}))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{folder / _OURS} is damaged ({reason(error)}); remove it, or export the model again"
        ) from None
    config = _model_config(document, str(metadata.get("rope_table_dtype", "float32")), folder)
    weights, dtypes = _read_weights(folder)
    if dtypes != {"F32"}:
        assumptions.append(f"weights were stored as {', '.join(sorted(dtypes))}; here they are float32")
    names = {theirs: ours for ours, theirs in _names(config.n_layer).items()}
    state = {names.get(name, name): tensor for name, tensor in weights.items()}
    check_weights(state, config, folder)
    tokenizer, file = _read_tokenizer(folder)
    check_tokenizer(tokenizer, config, file)
    return ModelState(
        config=config,
        state={name: state[name] for name in weight_shapes(config)},
        tokenizer=tokenizer,
        stage=stage,
        step=step,
        run_config=run_config,
        file=folder / ("model.safetensors" if (folder / "model.safetensors").is_file() else _INDEX),
        format="huggingface",
        notes=tuple(assumptions),
    )


def _names(num_layers: int) -> dict[str, str]:
    """Map our names of all weights to theirs."""
    layers = {
        f"transformer.h.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(num_layers)
        for ours, theirs in _LAYER_NAMES.items()
    }
    return _END_NAMES | layers


def _config_json(model: ModelState) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": model.tokenizer.bos_id,
        "eos_token_id": model.tokenizer.special_id("<|assistant_end|>"),
        "pad_token_id": None,  # a number here would freeze that row of the embedding in fine-tuning
    }


def _generation_json(model: ModelState) -> dict[str, Any]:
    end, bos = model.tokenizer.stop_ids
    return {
        "bos_token_id": bos,
        "eos_token_id": [end, bos],  # a base model ends a document by beginning the next one
        "pad_token_id": end,
        "do_sample": False,
        "max_new_tokens": max(1, model.config.sequence_len // 4),
    }


def _tokenizer_config_json(model: ModelState) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "model_max_length": model.config.sequence_len,
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|assistant_end|>",
        "additional_special_tokens": [name for name in SPECIAL_TOKENS if name not in ("<|bos|>", "<|assistant_end|>")],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def _model_config(document: dict[str, Any], rope_table_dtype: str, folder: Path) -> GPTConfig:
    """Convert config.json to our config; a `ValueError` lists everything that ours cannot express."""
    kind = document.get("model_type")
    if kind != "nanochat":
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; of Hugging Face's models only 'nanochat' (NanoChatForCausalLM) "
            "computes what this project computes"
        )
    faults = [
        f"{key}={document[key]!r} (only {only!r} can be taken over)"
        for key, only in _FIXED.items()
        if document.get(key, only) != only
    ]
    softcap = document.get("final_logit_softcapping", 15.0)
    if softcap is None:
        faults.append("final_logit_softcapping=null (our logits are always capped)")
    eps = document.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, float | int) or abs(eps - NORM_EPS) > 1e-12:
        faults.append(
            f"rms_norm_eps={eps!r} (only {NORM_EPS!r} can be taken over; if nanochat trained it, that is the true "
            "value: correct config.json)"
        )
    try:
        rope = document.get("rope_parameters") or document.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            faults.append(f"rope_type={rope_type!r} (only 'default' can be taken over)")
        width, heads = document["hidden_size"], document["num_attention_heads"]
        if document["intermediate_size"] != 4 * width:
            faults.append(f"intermediate_size={document['intermediate_size']!r} (only 4 x hidden_size={4 * width})")
        if document.get("head_dim") not in (None, width // heads):
            faults.append(f"head_dim={document['head_dim']!r} (only hidden_size / num_attention_heads)")
        if faults:
            raise ValueError(f"the model in {folder} computes something else than this project's: {'; '.join(faults)}")
        config = GPTConfig(
            sequence_len=document.get("max_position_embeddings", 2048),
            vocab_size=document["vocab_size"],
            n_layer=document["num_hidden_layers"],
            n_head=heads,
            n_kv_head=document.get("num_key_value_heads") or heads,
            n_embd=width,
            rope_base=float(rope.get("rope_theta", document.get("rope_theta", 10000.0))),
            softcap=float(softcap),
            rope_table_dtype=rope_table_dtype,
        )
    except (AttributeError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'} is no config of a NanoChat model: {reason(error)}") from None
    check_shape(config, folder / "config.json")
    return config


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    """Return the tokenizer and its file: `tokenizer.json`, or nanochat's pickle in folders that have only that."""
    file = folder / "tokenizer.json"
    if not file.is_file() and (folder / "tokenizer.pkl").is_file():
        file = folder / "tokenizer.pkl"
        return Tokenizer.load(file), file
    try:
        return from_tokenizer_json(read_json(file)), file
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from None


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Return all tensors by Hugging Face's names, as float32, and the dtypes they were stored in."""
    files = ["model.safetensors"]
    if not (folder / files[0]).is_file() and (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(
            re.fullmatch(r"[\w.-]+\.safetensors", str(s)) for s in shards.values()
        ):
            raise ValueError(f"{folder / _INDEX} must map each weight to a .safetensors file of the same folder")
        files = sorted(set(shards.values()))
    weights: dict[str, Tensor] = {}
    dtypes: set[str] = set()
    for name in files:
        file = folder / name
        if not file.is_file():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
            raise FileNotFoundError(
                f"there is no {file} (there: {there or 'nothing'}); weights must be safetensors: pickled ones "
                "(pytorch_model.bin) are not read"
            )
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no mapping)
                    dtypes.add(tensors.get_slice(key).get_dtype())
                    tensor = tensors.get_tensor(key)
                    weights[key] = tensor.to(torch.float32) if tensor.dtype.is_floating_point else tensor
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or no safetensors file; fetch it again") from error
    return weights, dtypes
