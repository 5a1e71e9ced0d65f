"""What `load_model` opens, how a name is resolved, what is refused and how: models made here, of one layer."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from nanochat_pl.checkpoint import check_model, huggingface, load_model, nanochat, read_model, sciassist
from nanochat_pl.checkpoint.formats import SHAPE, Candidate, choose, find_model_files
from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.checkpoint.state import ModelState, weight_shapes
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import SPECIAL_TOKENS, Tokenizer

CONFIG = GPTConfig(sequence_len=32, vocab_size=265, n_layer=1, n_head=4, n_kv_head=2, n_embd=32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer([bytes([byte]) for byte in range(256)])


def stored_model(tokenizer: Tokenizer, config: GPTConfig = CONFIG, **changes) -> ModelState:
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(3))
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(4))
    return ModelState(
        **{
            "config": config,
            "state": model.state_dict(),
            "tokenizer": tokenizer,
            "stage": "sft",
            "step": 12,
            "run_config": {},
            "file": Path("made/here.ckpt"),
            "format": "lightning",
        }
        | changes
    )


@pytest.fixture
def stored(tokenizer: Tokenizer) -> ModelState:
    return stored_model(tokenizer)


def write_lightning(stored: ModelState, file: Path) -> Path:
    """Write the parts of this project's checkpoint that opening it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": tensor for name, tensor in stored.state.items()}
    ours = checkpoint_metadata(stored.stage, stored.config, {"depth": 1}, stored.tokenizer)
    torch.save({"state_dict": state, "global_step": stored.step, "nanochat_pl": ours}, file)
    return file


def spoil(folder: Path, change) -> Path:
    """Rewrite the weights of a nanochat folder as `change(state)` leaves them."""
    file = next(folder.glob("model_*.pt"))
    state = torch.load(file, weights_only=True)
    torch.save(change(state) or state, file)
    return file


# ---------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("module", [nanochat, sciassist])
def test_what_was_written_is_read_again_to_the_bit(stored: ModelState, tmp_path: Path, module):
    files = module.write(stored, tmp_path / "out", {"val_loss": 1.5})
    again = read_model(tmp_path / "out")
    assert all(torch.equal(again.state[name], tensor) for name, tensor in stored.state.items())
    assert list(again.state) == list(stored.state) == list(weight_shapes(stored.config))
    assert again.tokenizer.fingerprint() == stored.tokenizer.fingerprint()
    assert (again.config, again.step) == (stored.config, stored.step)
    assert again.file == files[-1] and again.format == module.__name__.rpartition(".")[2]
    meta = json.loads(next(f for f in files if f.suffix == ".json").read_text())
    assert meta["val_loss"] == 1.5
    assert meta["model_config"] == {name: getattr(CONFIG, name) for name in meta["model_config"]}
    second = module.write(again, tmp_path / "again", {"val_loss": 1.5})
    assert [a.read_bytes() for a in files] == [b.read_bytes() for b in second]


def test_every_format_computes_the_same_logits(stored: ModelState, tmp_path: Path):
    write_lightning(stored, tmp_path / "run" / "checkpoints" / "last.ckpt")
    nanochat.write(stored, tmp_path / "nanochat")
    sciassist.write(stored, tmp_path / "sciassist")
    loaded = [load_model(tmp_path / name, compute_dtype=torch.float32) for name in ("run", "nanochat", "sciassist")]
    assert [each.format for each in loaded] == ["lightning", "nanochat", "sciassist"]
    assert [each.stage for each in loaded] == ["sft", "sft", "sft_scienceqa"]
    assert [each.config for each in loaded] == [{"depth": 1}, {}, {}]
    ids = torch.tensor([stored.tokenizer.encode("Is gold a metal?", prepend="<|bos|>")])
    first, *others = (each.model(ids) for each in loaded)
    assert all(torch.equal(first, other) for other in others)
    assert not loaded[0].model.training


def test_a_run_folder_has_its_checkpoints_by_name(stored: ModelState, tmp_path: Path):
    run = tmp_path / "sft" / "d4"
    for step, name in enumerate(("last", "best", "step_000300")):
        write_lightning(replace(stored, step=step), run / "checkpoints" / f"{name}.ckpt")
    nanochat.write(stored, run / "export")  # what lies deeper in a run folder is not the run
    for path, step in (
        (run, 1),
        (run / "last", 0),
        (run / "best", 1),
        (run / "checkpoints", 1),
        (run / "step_000300", 2),
    ):
        assert read_model(path).step == step
    with pytest.raises(FileNotFoundError, match=r"holds best.ckpt, last.ckpt, step_000300.ckpt"):
        read_model(run / "checkpoints" / "first")


def test_the_prefix_of_compiled_models_is_removed_and_half_precision_becomes_float32(
    stored: ModelState, tmp_path: Path
):
    nanochat.write(stored, tmp_path)
    spoil(tmp_path, lambda state: {f"_orig_mod.{name}": tensor.bfloat16() for name, tensor in state.items()})
    again = read_model(tmp_path)
    assert {tensor.dtype for tensor in again.state.values()} == {torch.float32}
    assert all(torch.equal(again.state[name], stored.state[name].bfloat16().float()) for name in stored.state)
    assert "_orig_mod." in again.notes[0] and "bfloat16" in again.notes[1]
    # removeprefix, not lstrip: only the very prefix goes
    spoil(tmp_path, lambda state: {name.replace("_orig_mod.", "_orig_mod._orig_mod."): t for name, t in state.items()})
    with pytest.raises(ValueError, match=r"the weights of 0 layers"):
        read_model(tmp_path)


def test_an_embedding_that_was_bfloat16_is_written_so_and_no_other_is(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path / "full")
    stored.state["transformer.wte.weight"] = stored.state["transformer.wte.weight"].bfloat16().float()
    nanochat.write(stored, tmp_path / "half")
    kinds = [torch.load(tmp_path / name / "model_000012.pt", weights_only=True) for name in ("full", "half")]
    assert [kind["transformer.wte.weight"].dtype for kind in kinds] == [torch.float32, torch.bfloat16]
    assert {tensor.dtype for name, tensor in kinds[1].items() if "wte" not in name} == {torch.float32}


def test_a_padded_vocabulary_is_recognised_and_predicts_the_same(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    ids = torch.randint(265, (1, 8))
    before = load_model(tmp_path, compute_dtype=torch.float32).model(ids)

    def pad(state):
        for name in ("transformer.wte.weight", "lm_head.weight"):
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 320 - 265), value=7.0)

    spoil(tmp_path, pad)
    loaded = load_model(tmp_path, compute_dtype=torch.float32)
    assert loaded.model.config.pad_vocab_to == 64
    torch.testing.assert_close(loaded.model(ids), before)


@pytest.mark.parametrize("place", ["tokenizer.pkl", "tokenizer/tokenizer.pkl", "../../tokenizer/tokenizer.pkl"])
def test_the_tokenizer_is_found_where_nanochat_keeps_it(stored: ModelState, tmp_path: Path, place: str):
    folder = tmp_path / "mid_checkpoints" / "d4"
    nanochat.write(replace(stored, stage="unknown"), folder)
    file = folder / place
    file.resolve().parent.mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.pkl").rename(file)
    again = read_model(tmp_path / "mid_checkpoints")  # one tag, one step
    assert again.tokenizer.fingerprint() == stored.tokenizer.fingerprint()
    assert again.stage == "mid"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer for .*looked for .*mid_checkpoints/d4/tokenizer.pkl"):
        read_model(folder)


def test_a_stray_tokenizer_two_folders_up_is_not_taken(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path / "a" / "b")
    shutil.move(tmp_path / "a" / "b" / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        read_model(tmp_path / "a" / "b")


def test_metadata_without_a_step_or_a_stage_leave_them_open(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)  # as nanochat's reinforcement learning saves them: the model config alone
    meta = tmp_path / "meta_000012.json"
    meta.write_text(json.dumps({"model_config": json.loads(meta.read_text())["model_config"]}))
    again = read_model(tmp_path)
    assert (again.step, again.stage) == (12, "unknown")


# ---------------------------------------------------------------------------------------------------- ambiguity


def test_several_models_are_listed_and_none_is_taken(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    (tmp_path / "model_000013.pt").touch()
    with pytest.raises(ValueError, match=r"holds 2 models: model_000012.pt, model_000013.pt; name one"):
        load_model(tmp_path)
    assert read_model(tmp_path / "model_000012.pt").step == 12
    (tmp_path / "model_000013.pt").rename(tmp_path / "model_finetuned.pt")
    with pytest.raises(ValueError, match=r"2 models: model_000012.pt, model_finetuned.pt"):
        load_model(tmp_path)
    write_lightning(stored, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"3 models: .*best.ckpt or last.ckpt"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["README.md", "optim_000001.pt", "model.pt", "model_x.pt"], None),
        (["model_000650.pt", "meta_000650.json"], Candidate("nanochat", "model_000650.pt")),
        (["d20/model_000650.pt"], Candidate("nanochat", "d20/model_000650.pt")),
        (["model_000001.pt", "old/model_000002.pt"], Candidate("nanochat", "model_000001.pt")),
        (["config.json", "model.safetensors"], Candidate("huggingface", "model.safetensors")),
        (
            ["config.json", "model-1-of-1.safetensors", "model.safetensors.index.json"],
            Candidate("huggingface", "model.safetensors.index.json"),
        ),
        (["config.json", "pytorch_model.bin"], None),
        (["a/model_finetuned.pt"], Candidate("sciassist", "a/model_finetuned.pt")),
    ],
)
def test_the_one_model_among_file_names_is_chosen(names: list[str], expected: Candidate | None):
    assert choose(names, "here") == expected


def test_a_folder_without_a_model_says_what_it_holds_and_what_opens(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds notes.txt; expected one of: a .ckpt.*model_finetuned.pt"):
        check_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such path"):
        check_model(tmp_path / "nowhere")
    archive = tmp_path / "model.zip"
    archive.touch()
    with pytest.raises(ValueError, match="nanochat-pl export`; if it holds a model, unpack it"):
        check_model(archive)
    for name, words in (
        ("meta_000001.json", "no file of weights; give the model beside it"),
        ("tokenizer.pkl", "perhaps a tokenizer"),
        ("model-00001-of-00002.safetensors", "one of several"),
        ("pytorch_model.bin", "convert the model to safetensors"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=words):
            check_model(tmp_path / name)
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="half a Hugging Face folder"):
        check_model(tmp_path / "config.json")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"model_type='llama'; only nanochat opens"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nanochat"}))
    with pytest.raises(FileNotFoundError, match=r"needs its tokenizer beside it: there is no tokenizer\.json"):
        check_model(tmp_path)


# ---------------------------------------------------------------------------------------------------- refusal


BETWEEN = {
    "January 11 to 17, 2026": {"resid_lambdas": (1,), "x0_lambdas": (1,)},
    "January 18 to March 9, 2026": {"resid_lambdas": (1,), "transformer.h.0.attn.ve_gate.weight": (2, 32)},
    "March 9 to 14, 2026": {"x0_lambdas": (1,), "transformer.h.0.attn.ve_gate.weight": (2, 12)},
}


@pytest.mark.parametrize("when", BETWEEN)
def test_nanochats_between_classic_and_modern_are_refused_by_the_names_that_tell_them(
    stored: ModelState, tmp_path: Path, when: str
):
    nanochat.write(stored, tmp_path)
    spoil(tmp_path, lambda state: state | {name: torch.zeros(shape) for name, shape in BETWEEN[when].items()})
    with pytest.raises(
        ValueError,
        match=rf"nanochat of {when}, .*gave it away.*classic files, until January 10, and those since March 14",
    ) as error:
        load_model(tmp_path)
    assert any(name in str(error.value) for name in BETWEEN[when])


MODERN_CONFIG = replace(CONFIG, n_layer=2, sequence_len=600, **MODERN)


def test_a_modern_model_goes_to_nanochats_files_and_back(tokenizer: Tokenizer, tmp_path: Path):
    stored = stored_model(tokenizer, MODERN_CONFIG)
    nanochat.write(stored, tmp_path)
    meta = json.loads((tmp_path / "meta_000012.json").read_text())["model_config"]
    assert meta == {name: getattr(MODERN_CONFIG, name) for name in SHAPE} | {"window_pattern": "SSSL"}
    again = read_model(tmp_path)
    assert again.config == MODERN_CONFIG
    assert list(again.state) == list(stored.state)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in stored.state.items())
    assert any("assumed" in note and "rope_base=100000" in note and "qk_scale=1.2" in note for note in again.notes)


def test_windows_of_a_model_with_shorter_rows_are_those_it_was_trained_with(tokenizer: Tokenizer, tmp_path: Path):
    config = replace(MODERN_CONFIG, sequence_len=1200).with_sequence_len(600)
    nanochat.write(stored_model(tokenizer, config), tmp_path)
    assert json.loads((tmp_path / "meta_000012.json").read_text())["model_config"]["sequence_len"] == 1200
    again = read_model(tmp_path).config
    assert [again.window(layer) for layer in range(2)] == [config.window(layer) for layer in range(2)] == [384, 1200]


@pytest.mark.parametrize("change", [{"qk_scale": 1.0}, {"window_pattern": None}, {"rope_table_dtype": "float32"}])
def test_what_keeps_a_modern_model_out_of_nanochats_files_is_listed_alone(
    tokenizer: Tokenizer, tmp_path: Path, change: dict
):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"lost would be: model\.{name}={value} \(modern: {MODERN[name]}\)$"):
        nanochat.write(stored_model(tokenizer, replace(MODERN_CONFIG, **change)), tmp_path)


def test_a_modern_model_without_short_windows_has_long_ones(tokenizer: Tokenizer, tmp_path: Path):
    config = replace(MODERN_CONFIG, window_pattern="L")
    nanochat.write(stored_model(tokenizer, config), tmp_path)
    assert read_model(tmp_path).config == config


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"short_conv": 4}, "short_conv=4"),
        ({"qk_scale": 1.1}, "qk_scale=1.1"),
        ({"smear": False}, r"model\.smear=False \(modern: True\)"),
    ],
)
def test_a_model_that_neither_nanochat_computes_is_not_written(tokenizer: Tokenizer, tmp_path: Path, changes, lost):
    with pytest.raises(ValueError, match=rf"lost would be: .*{lost}"):
        nanochat.write(stored_model(tokenizer, replace(MODERN_CONFIG, **changes)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_modern_model_is_no_science_tutor_s_and_no_hugging_face_folder(tokenizer: Tokenizer, tmp_path: Path):
    stored = stored_model(tokenizer, MODERN_CONFIG)
    for module in (sciassist, huggingface):
        with pytest.raises(ValueError, match=r"smear=True.*backout=True"):
            module.write(stored, tmp_path)


def _without(state):
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}


def _reshaped(state):
    return state | {"lm_head.weight": torch.zeros(265, 16)}


def _whole_numbers(state):
    return state | {"lm_head.weight": torch.zeros(265, 32, dtype=torch.int64)}


def _twice(state):
    return state | {"_orig_mod.lm_head.weight": state["lm_head.weight"]}


def _with_a_value(value: float):
    def change(state):
        state["lm_head.weight"][7, 3] = value
        return state

    return change


def _deeper(state):
    return state | {name.replace("h.0", "h.1"): tensor for name, tensor in state.items() if "h.0" in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without, r"1 missing \(lm_head.weight\)"),
        (_reshaped, r"lm_head.weight is \(265, 16\), expected \(265, 32\)"),
        (_whole_numbers, r"lm_head.weight is torch.int64"),
        (_twice, "holds weights twice"),
        (_deeper, "the weights of 2 layers, its config says n_layer=1"),
        (lambda state: state | dict.fromkeys(list(state)[::6], torch.tensor(1.0)), r"is \(\), expected"),
        (lambda state: state | {"lm_head.weight": torch.zeros(265, 32, device="meta")}, r"holds 'lm_head.weight'"),
        (lambda state: {"state_dict": state}, r"should map names to tensors, but holds 'state_dict' \(a dict\)"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, r"1 unknown \(extra.weight\)"),
        (lambda state: [1, 2], "holds a list, expected a dict of tensors"),
        (_with_a_value(float("nan")), r"not finite \(lm_head.weight: 1 of 8,480\)"),
        (_with_a_value(float("-inf")), r"not finite \(lm_head.weight: 1 of 8,480\).*open an earlier checkpoint"),
    ],
)
def test_weights_that_are_not_of_this_model_are_refused_with_what_is_wrong(stored, tmp_path, change, words):
    nanochat.write(stored, tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layer": 1000}, "the weights of 1 layers, its config says n_layer=1000"),
        ({"n_layer": 10**9}, r"model\.n_layer=1000000000 must be at most 4,096"),
        ({"n_layer": "1"}, "n_layer='1', no whole number"),
        ({"n_layer": True}, "n_layer=True, no whole number"),
        ({"n_head": 3}, "impossible: .*not a multiple"),
        ({"window_pattern": "SSSL"}, "window_pattern='SSSL': sliding windows"),
        ({"mtp_heads": 2}, "the unknown mtp_heads=2"),
        ({"n_embd": None}, "n_embd=None, no whole number"),
        ({"vocab_size": 300}, "do not fit its config"),
    ],
)
def test_metadata_that_describe_another_model_are_refused(stored: ModelState, tmp_path: Path, change, words):
    nanochat.write(stored, tmp_path)
    meta = tmp_path / "meta_000012.json"
    content = json.loads(meta.read_text())
    content["model_config"] |= change
    meta.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


def test_metadata_that_are_missing_damaged_or_of_another_step_are_refused(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    meta = tmp_path / "meta_000012.json"
    content = json.loads(meta.read_text())
    for text, words in (
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ("{}", "has no model_config"),
        (json.dumps(content | {"step": 3}), "is of step 12, meta_000012.json of step 3"),
    ):
        meta.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_model(tmp_path)
    meta.unlink()
    with pytest.raises(FileNotFoundError, match=r"needs its metadata beside it: there is no meta_000012.json"):
        load_model(tmp_path)


def test_window_pattern_of_l_alone_is_the_classic_model(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    meta = tmp_path / "meta_000012.json"
    content = json.loads(meta.read_text())
    content["model_config"]["window_pattern"] = "L"
    meta.write_text(json.dumps(content))
    assert read_model(tmp_path).config == CONFIG


def test_a_tokenizer_of_another_size_is_refused(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    other = Tokenizer([*(bytes([byte]) for byte in range(256)), b"ab"])
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(nanochat.tokenizer_pickle(other))
    with pytest.raises(ValueError, match="has 266 ids, the model 265; they do not belong together"):
        load_model(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 100, -100])
def test_truncated_weights_are_refused_at_once(stored: ModelState, tmp_path: Path, cut: int):
    file = nanochat.write(stored, tmp_path)[-1]
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"truncated|damaged") as refused:
        load_model(tmp_path)
    assert len(str(refused.value).replace(str(tmp_path), "")) < 300, "torch's advice has no place in one line"


def test_a_damaged_nanochat_pl_entry_is_refused(stored: ModelState, tmp_path: Path):
    file = write_lightning(stored, tmp_path / "last.ckpt")
    content = torch.load(file, weights_only=True)
    for change, words in (
        ({"tokenizer": None}, "damaged: .*it holds something of another kind"),
        ({"tokenizer": torch.zeros(3, dtype=torch.uint8)}, r"last\.ckpt is damaged: .*it is no JSON, at character 0"),
        ({"tokenizer": torch.nn.Parameter(torch.zeros(3))}, "damaged: .*it holds something of another kind"),
        ({"model_config": asdict(CONFIG) | {"n_head": 0}}, r"last\.ckpt is damaged: .*model\.n_head=0"),
        ({"model_config": asdict(CONFIG) | {"n_layer": "four"}}, "model.n_layer='four' must be a number"),
        ({"model_config": asdict(CONFIG) | {"softcap": None}}, "model.softcap='None' must be a number"),
        ({"model_config": asdict(CONFIG) | {"sequence_len": 1e999}}, "sequence_len=inf, expected whole numbers"),
        ({"config": [1]}, "damaged: .*it holds something of another kind"),
        ({"model_config": {"heads": 2}}, "damaged: .*it has the unknown heads"),
        ({"model_config": asdict(CONFIG) | {"n_layer": 2}}, "the weights of 1 layers"),
        ({"format": 99}, "has format 99, this version reads up to 1"),
        ({"format": "x"}, "has format 'x'"),
    ):
        torch.save(content | {"nanochat_pl": content["nanochat_pl"] | change}, file)
        with pytest.raises(ValueError, match=words):
            load_model(file)
    weights = content["state_dict"]
    for change, words in (
        ({"global_step": "many"}, "damaged: .*it holds something of another kind"),
        ({"state_dict": weights | {"model.lm_head.weight": 3}}, r"holds 'model\.lm_head\.weight' \(a int\)"),
        ({"state_dict": None}, "holds nothing, expected a dict of tensors"),
    ):
        torch.save(content | change, file)
        with pytest.raises(ValueError, match=words):
            load_model(file)


# ---------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("module", [nanochat, sciassist])
def test_what_the_format_cannot_hold_is_listed_and_nothing_is_written(tokenizer: Tokenizer, tmp_path: Path, module):
    config = replace(CONFIG, softcap=20.0, rope_base=1e5, rope_table_dtype="float32", pad_vocab_to=64)
    stored = stored_model(tokenizer, config)
    assert len(module.unsupported(stored)) == 4
    with pytest.raises(ValueError, match=r"rope_base=100000.0 \(classic: 10000.0\); .*softcap=20.0 .*pad_vocab_to=64"):
        module.write(stored, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert module.unsupported(stored_model(tokenizer, replace(CONFIG, pad_vocab_to=5))) == []  # 265 rows as it is


def test_writing_over_an_existing_file_is_refused(stored: ModelState, tmp_path: Path):
    nanochat.write(stored, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match=r"tokenizer.pkl.*already"):
        nanochat.write(replace(stored, step=13), tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_tutors_metadata_say_what_it_was_trained_on(stored: ModelState, tmp_path: Path):
    run = {
        "data": {"train_rows": 12_000, "val_rows": None},
        "stage": {"total_batch_rows": 64, "num_epochs": 4, "val_rows": 200},
    }
    sciassist.write(replace(stored, run_config=run), tmp_path, {"best_val_loss": 0.67})
    meta = json.loads((tmp_path / "meta_finetuned.json").read_text())
    assert (meta["best_step"], meta["best_val_loss"], meta["config"]) == (12, 0.67, run)
    assert (meta["num_train_samples"], meta["num_val_samples"]) == (12_000, 200)
    assert (meta["num_epochs"], meta["effective_batch_size"]) == (4, 64)


def test_the_tokenizer_file_is_a_pickled_encoding_of_tiktoken(tokenizer: Tokenizer):
    import pickle

    import tiktoken

    encoding = pickle.loads(nanochat.tokenizer_pickle(tokenizer))
    assert type(encoding) is tiktoken.Encoding and encoding.name == "rustbpe"
    text = "Größe 東京 <|bos|> 12345\n\n  x"
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    assert encoding.encode_single_token("<|assistant_end|>") == tokenizer.special_id("<|assistant_end|>")
    assert encoding.n_vocab == tokenizer.vocab_size


def test_the_byte_lengths_are_those_nanochat_wrote(tokenizer: Tokenizer):
    lengths = nanochat.token_bytes(tokenizer)
    assert lengths.dtype == torch.int32
    assert lengths.tolist() == [1] * 128 + [3] * 128 + [0] * len(SPECIAL_TOKENS)


def test_finding_model_files_loads_no_torch(stored: ModelState, tmp_path: Path):
    import subprocess
    import sys

    nanochat.write(stored, tmp_path)
    code = "import sys; from nanochat_pl.checkpoint import check_model as check; "
    code += "print(check(sys.argv[1]).format, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["nanochat", "False"], done.stderr
    assert find_model_files(tmp_path).others == (
        tmp_path / "meta_000012.json",
        tmp_path / "tokenizer" / "tokenizer.pkl",
    )
