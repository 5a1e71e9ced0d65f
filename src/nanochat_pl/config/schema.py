"""The schema of every config: one dataclass for each section, without torch.

YAML files only say what differs from these defaults. Hydra checks names and types against the classes while it
composes; `__post_init__` checks values; nothing here touches data or imports torch, so a wrong command dies in
a fraction of a second. Closed choices are enums; `null` switches a thing off; units stand in the key.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from nanochat_pl.config.evaluations import EvalConfig
from nanochat_pl.config.shorthand import task_specs
from nanochat_pl.config.stages import HORIZONS, STAGES, StageName
from nanochat_pl.config.values import check_seed, positive
from nanochat_pl.model.config import Architecture
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.rl.config import RLConfig


class DataSource(StrEnum):
    """Where text and tasks come from."""

    microworld = "microworld"
    local = "local"
    hub = "hub"


class Packing(StrEnum):
    """How documents become rows of pretraining tokens; see docs/data.md for what `bestfit` starves."""

    stream = "stream"
    bestfit = "bestfit"
    bestfit_split = "bestfit_split"


class LongConversations(StrEnum):
    """What becomes of a conversation that is longer than a row (stages that count conversations)."""

    cut = "cut"
    drop = "drop"


class Backend(StrEnum):
    """Which library trains the tokenizer; merges and ids are the same."""

    rustbpe = "rustbpe"
    huggingface = "huggingface"


class Accelerator(StrEnum):
    """Device kind; `auto` takes CUDA, else Apple's, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    mps = "mps"


class Strategy(StrEnum):
    """How several devices share the work."""

    auto = "auto"
    ddp = "ddp"


class ComputeDtype(StrEnum):
    """Number format of activations and matrix products; weights and losses stay float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True)
class StageConfig:
    """What is trained, on how much at a time, for how long, and how often it is measured and saved."""

    name: StageName = StageName.base
    sequence_len: int = 2048
    """Tokens in a row."""
    device_batch: int = 32
    """Rows of one micro-batch on one device: the dial for memory."""
    total_batch_tokens: Any = None
    """Tokens of one optimizer step over all devices (base and mid, which read one stream of tokens); auto = the power
    of two that suits the model's size (base; nanochat, 2026-02), which the run's config then holds."""
    total_batch_rows: int | None = None
    """Conversations of one optimizer step over all devices (stages that learn from the assistant's words alone)."""
    packed: bool = True
    """Conversations share rows, with attention kept inside each; false pads one conversation a row (parity)."""
    long_conversations: LongConversations = LongConversations.cut
    """Longer than a row: cut at its end, or dropped, another in its place (where the batch counts conversations)."""
    num_steps: int | None = None
    """Train for this many optimizer steps."""
    num_epochs: int | None = None
    """Train for this many passes over the conversations."""
    tokens_per_param: float | None = None
    """Train on this many tokens for each parameter of the model (base)."""
    target_flops: float | None = None
    """Train for this many floating-point operations (base)."""
    default_horizon: str | None = None
    """The horizon when none of the four above is set, as `num_steps=100`."""
    val_every_steps: int | None = 250
    """Validation at step 0, every this many steps and at the end; null = at the end only."""
    val_tokens: int | None = None
    """Tokens that each validation reads where the batch counts tokens; null = 20 optimizer steps' worth."""
    val_rows: int | None = None
    """Conversations of the fixed validation set where the batch counts conversations; null = the whole split."""
    eval_every_steps: int | None = None
    """Evaluate as eval= says every this many steps and at the end; null = never (a chain may, when all is trained)."""
    sample_every_steps: int | None = None
    """Let the model continue `sample_prompts` every this many steps and at the end; null = never."""
    sample_prompts: list[str] = field(default_factory=list)
    """What it continues: beginnings of texts (base), or what a user says (the stages after it)."""
    sample_tokens: int = 32
    """Most new tokens of a sample."""
    checkpoint_every_steps: int | None = None
    """Write step_NNNNNN.ckpt every this many steps; last.ckpt and best.ckpt are always kept."""
    keep_checkpoints: int = 2
    """How many step_NNNNNN.ckpt files to keep, newest first."""

    def __post_init__(self) -> None:
        positive(self, "stage", "sequence_len", "device_batch", "total_batch_rows")
        if isinstance(self.total_batch_tokens, str) and self.total_batch_tokens.isdecimal():  # of the environment
            self.total_batch_tokens = int(self.total_batch_tokens)
        if self.total_batch_tokens != "auto":
            if type(self.total_batch_tokens) not in (int, NoneType):
                raise ValueError(
                    f"stage.total_batch_tokens={self.total_batch_tokens} should be a whole number, auto or null"
                )
            positive(self, "stage", "total_batch_tokens")
        positive(self, "stage", *HORIZONS, "val_every_steps", "val_tokens", "val_rows", "checkpoint_every_steps")
        positive(self, "stage", "keep_checkpoints", "eval_every_steps", "sample_every_steps", "sample_tokens")
        chosen = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(f'stage.{name}={getattr(self, name)}' for name in chosen)} both set how long to train; "
                "give one and set the others to null"
            )
        if self.default_horizon is not None and self.default_horizon.partition("=")[0] not in HORIZONS:
            raise ValueError(
                f"stage.default_horizon='{self.default_horizon}' must be <one of {', '.join(HORIZONS)}>=<value>"
            )
        if self.sample_every_steps is not None and self.shows_samples and not self.sample_prompts:
            raise ValueError(
                f"stage.sample_every_steps={self.sample_every_steps} needs prompts, and stage.sample_prompts is empty; "
                "give some, as 'stage.sample_prompts=[Once upon a time]', or set stage.sample_every_steps=null"
            )

    @property
    def shows_samples(self) -> bool:
        """Whether it continues prompts while it trains; reinforcement learning shows its rollouts instead."""
        return self.name not in (StageName.tokenizer, StageName.rl)

    @property
    def reads_text(self) -> bool:
        """Whether its data are documents; the other stages read conversations or questions."""
        return self.name in (StageName.tokenizer, StageName.base)

    @property
    def counts_tokens(self) -> bool:
        """Whether its data are one stream of supervised tokens, so that the batch counts tokens, not conversations."""
        return STAGES[self.name].batch_unit == "tokens"

    @property
    def horizon(self) -> tuple[str, float]:
        """The name and the value of the horizon in force.

        Raises:
            ValueError: none is set.
        """
        for name in HORIZONS:
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        if not self.default_horizon:
            raise ValueError(f"how long to train is not set; give one of {', '.join(f'stage.{n}=' for n in HORIZONS)}")
        name, _, number = self.default_horizon.partition("=")
        return name, float(number)


@dataclass(kw_only=True)
class ModelConfig(Architecture):
    """Width and heads follow from `depth` unless they are set here."""

    aspect_ratio: int = 64
    """Channels per layer of depth, rounded up to a multiple of head_dim."""
    head_dim: int = 128
    """Channels of one attention head."""
    n_embd: int | None = None
    """Channels of the residual stream; null = from depth."""
    n_head: int | None = None
    """Query heads; null = from depth."""
    n_kv_head: int | None = None
    """Key/value heads, fewer = grouped-query attention; null = as many as n_head."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """Which tokenizer to use or how to train it."""

    path: str | None = None
    """Folder of the tokenizer; null = outputs/tokenizer/<run_name>, or the start checkpoint's own."""
    vocab_size: int = 65536
    """Tokens of the vocabulary, special ones included."""
    backend: Backend = Backend.rustbpe
    max_chars: int = 2_000_000_000
    """Characters of training text to read."""
    doc_cap_chars: int = 10_000
    """Characters kept of each document."""

    def __post_init__(self) -> None:
        positive(self, "tokenizer", "vocab_size", "max_chars", "doc_cap_chars")


@dataclass(kw_only=True)
class DataConfig:
    """Where text and tasks lie and how they are read."""

    source: DataSource = DataSource.microworld
    root: str | None = None
    """Folder with the data sets; null = made (microworld) or downloaded (hub) below outputs/data."""
    text: str = "text"
    """Folder of parquet shards with a `text` column, below root."""
    scienceqa: str = "scienceqa"
    """Folder with train/validation/test.parquet in ScienceQA's columns, below root."""
    hub_text: str = "karpathy/fineweb-edu-100b-shuffle"
    """Repository of text shards named shard_NNNNN.parquet (hub)."""
    column: str = "text"
    """Column, or key of a line, that holds the documents (local)."""
    hub_scienceqa: str | None = None
    """Repository of ScienceQA's parquet files (hub)."""
    fetch: bool = False
    """Fetch what is missing of the other tasks (mmlu, arc, gsm8k ...) from their public repositories."""
    text_shards: int = 8
    """How many training shards to fetch (hub)."""
    val_shard: str | None = None
    """File name of the validation shard, never trained on; null = the last by name (printed)."""
    packing: Packing = Packing.stream
    logical_shards: int | None = None
    """Fixed streams that ranks and workers share out; null = one a rank at the run's start."""
    num_workers: int = 1
    """Background threads that read and tokenise; 0 = in the training thread."""
    train_rows: int | None = None
    """Use only this many ScienceQA questions, the first of the training split; null = all."""
    val_rows: int | None = None
    """The same for the validation split."""
    test_rows: int | None = None
    """The same for the test split."""
    formatted_dir: str | None = None
    """Where formatted conversation splits are saved and read again."""
    seed: int = 0
    """Seed of the generated world (microworld)."""
    order_seed: int | None = None
    """Seed of the order of the training data alone; null = texts in the order of their files, the rest by `seed`."""
    text_frac: float = 1.0
    """Fraction of the training text that is read, epoch after epoch: the first documents of every row group (base)."""

    def __post_init__(self) -> None:
        check_seed("data.seed", self.seed)
        check_seed("data.order_seed", self.order_seed or 0)
        if not 0 < self.text_frac <= 1:
            raise ValueError(f"data.text_frac={self.text_frac} must be a fraction in (0, 1]; 1 = all of the text")
        positive(self, "data", "text_shards", "logical_shards", "train_rows", "val_rows", "test_rows")
        if self.text_shards > 100_000:
            raise ValueError(f"data.text_shards={self.text_shards} is more than names of five digits can number")
        if self.column != "text" and self.source != DataSource.local:
            raise ValueError(f"data.column={self.column} has no effect on data={self.source}; it is for data=local")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers={self.num_workers} must be 0 (no threads) or more")


@dataclass(kw_only=True)
class MixtureConfig:
    """The conversations of a fine-tuning stage: named tasks, each a `_target_` with its arguments; null = left out.

    The path of a .jsonl or .json file in the place of a task reads its conversations (`tasks.jsonl.JSONL`).
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    """What is trained on."""
    val_tasks: dict[str, Any] = field(default_factory=dict)
    """The fixed validation set."""
    drop_train_duplicates: bool = False
    """Leave out training conversations that ask what a validation conversation asks; counted and logged either way."""

    def __post_init__(self) -> None:
        self.tasks, self.val_tasks = task_specs(self.tasks, self.val_tasks)


@dataclass(kw_only=True)
class DeviceConfig:
    """Where and in which number format the model computes."""

    accelerator: Accelerator = Accelerator.auto
    compute_dtype: ComputeDtype = ComputeDtype.auto


@dataclass(kw_only=True)
class TrainerConfig(DeviceConfig):
    """Devices, precision, compilation and the rhythm of the log."""

    devices: int = 1
    """Processes on this machine, one a device."""
    num_nodes: int = 1
    """Machines that train together."""
    strategy: Strategy = Strategy.auto
    compile: Any = "auto"
    """auto = compile where a probe succeeds; true = compile or fail; false = eager."""
    fp8: bool = False
    """Multiply the large matrices of the blocks in 8-bit floats while training (Ada and Hopper GPUs)."""
    stop_after_steps: int | None = None
    """Leave after this many steps as a preempted run would, state saved; the horizon stays."""
    log_every_steps: int = 10
    """Steps between two rows of metrics.csv and lines of the log."""

    @property
    def world_size(self) -> int:
        """The number of processes, over all machines."""
        return self.devices * self.num_nodes

    def __post_init__(self) -> None:
        positive(self, "trainer", "devices", "num_nodes", "stop_after_steps", "log_every_steps")
        self.compile = str(self.compile).lower()  # YAML reads true and false as truth values
        if self.compile not in ("auto", "true", "false"):
            raise ValueError(f"trainer.compile={self.compile} is not one of auto, true, false")


@dataclass(kw_only=True)
class SweepConfig:
    """Several runs by one command: what they are called and how many go at a time (the runs: hydra.sweeper.params)."""

    variants: dict[str, list[str]] = field(default_factory=dict)
    """Named lists of overrides, of which `variant=` chooses; an entry without = is a variant to begin from."""
    variant: str | None = None
    """The name under which a sweep notes its run; choosing one is `variant=`."""
    jobs: int = 1
    """How many runs go side by side, each with its share of the cores, or with a GPU of its own."""

    def __post_init__(self) -> None:
        positive(self, "sweep", "jobs")


@dataclass(kw_only=True)
class PluginsConfig:
    """Which modules a `_target_` may name beside nanochat_pl. and lightning."""

    allow: list[str] = field(default_factory=list)
    """Packages of your own, by name."""


@dataclass(kw_only=True)
class EngineConfig:
    """How text is generated: in evaluation and in reinforcement learning."""

    dtype: ComputeDtype = ComputeDtype.auto
    """Number format of the engine's copy of the weights and of its cache; auto = bfloat16 where that is fast."""


@dataclass(kw_only=True)
class RunConfig:
    """What training and evaluation share."""

    seed: int = 42
    """Seed of new weights and of sampling; where data.order_seed is null, also of the order of conversations and
    questions, while texts keep the order of their files."""
    offline: bool = False
    """No code path may open a socket."""
    outputs: str = "outputs"
    """Folder that holds <stage>/<run_name>."""
    data: DataConfig = field(default_factory=DataConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """Everything `train.py` reads."""

    depth: int = 4
    """Blocks of the model; width, heads and the names of runs follow from it."""
    run_name: str = MISSING
    """Name of the run folder below <outputs>/<stage>; d<depth> when nothing sets it."""
    resume: str | None = None
    """A checkpoint or run folder to continue exactly, or `auto` for this run folder's last."""
    force: bool = False
    """Throw away what an earlier run left in the run folder."""
    init_from: str | None = None
    """Initial weights: a checkpoint or run folder; null = the previous stage's folder of the same run_name."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks, each a `_target_` with its arguments."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Loggers beside metrics.csv, each a `_target_` with its arguments."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    chain: list[str] = field(default_factory=list)
    """Stages to run one after another, each a config and a process of its own; `evaluate` may end it."""
    chain_overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of single stages of the chain: chain_overrides.<stage>.<key>."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "depth")
        for stage, overrides in self.chain_overrides.items():
            if not isinstance(overrides, dict):
                raise ValueError(
                    f"chain_overrides.{stage}={overrides}: give a setting, as chain_overrides.{stage}.depth=4"
                )

    @property
    def data_seed(self) -> int:
        """The seed in force of the order in which conversations and questions are trained on."""
        return self.seed if self.data.order_seed is None else self.data.order_seed


@dataclass(kw_only=True)
class EvaluateConfig(RunConfig):
    """Everything `evaluate.py` reads; the tokenizer is the checkpoint's own, its data too unless others are given."""

    ckpt: Any = None
    """A checkpoint file or run folder, or a list of them: 'ckpt=[a,b]'."""
    trainer: DeviceConfig = field(default_factory=DeviceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: str | None = None
    """Folder for results; null = eval/ beside each checkpoint's run."""


@cache
def register() -> None:
    """Make the schemas known to Hydra's config store (the files under configs/ name them first)."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
