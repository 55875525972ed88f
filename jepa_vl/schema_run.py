"""The part of the configuration schema that says how a run goes: optimizer, steps, mesh, files."""

from dataclasses import dataclass

from jepa_vl.schema_key import key


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedules, and the momentum of the target."""

    lr: float = key(1e-3, "peak learning rate of AdamW")
    start_lr: float = key(1e-4, "learning rate at the start of the warm-up")
    final_lr: float = key(1e-6, "learning rate at the end of the cosine")
    warmup_steps: int = key(0, "linear warm-up; 0: a tenth of the steps")
    weight_decay: float = key(0.04, "at the start of its cosine")
    final_weight_decay: float = key(0.4, "at the end of its cosine")
    b1: float = key(0.9, "Adam's first decay")
    b2: float = key(0.999, "Adam's second decay")
    eps: float = key(1e-8, "Adam's epsilon")
    ema: float = key(0.996, "momentum of the target at the start")
    final_ema: float = key(1.0, "momentum of the target at the end (linear)")
    schedule_scale: float = key(1.0, "schedules are laid out over steps x this; I-JEPA's ipe_scale")


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run and the shape of a step."""

    steps: int = key(1000, "optimizer steps of the run")
    batch_size: int = key(64, "B, images a step over all hosts")
    micro_batches: int = key(1, "parts that a step's batch is computed in; gradients are averaged")
    init: str = key("normal", "of kernels: normal (N(0, 0.02), I-JEPA) or fan_in (std fan_in^-1/2)")
    dtype: str = key(
        "float32", "compute dtype of matrix products: float32 or bfloat16; state stays float32"
    )
    scan_layers: bool = key(
        False, "compile equal layers once and loop over them: minutes less for deep models on a pod"
    )
    remat: str = key(
        "none",
        "of a layer's activations the backward pass keeps: none: all of them; dots: results of "
        "matrix products; full: none, the layer is computed again",
    )
    gather: str = key(
        "layer",
        "when the devices of mesh.fsdp put parameters together: layer: a layer's for each product; "
        "step: all of them once, which takes their memory and fewer bytes of network",
    )
    spike_z: float = key(
        0.0,
        "skip a step whose loss is so many robust deviations above the median of the 64 before "
        "it; 0: none is skipped for that",
    )
    max_bad_steps: int = key(
        20, "rewind after this many skipped steps in a row: not finite, or spikes"
    )
    max_rewinds: int = key(
        3,
        "how often a run returns to its last good checkpoint, to go on with the images that follow "
        "those it failed at; then it stops (exit 4)",
    )
    watchdog_minutes: float = key(
        60.0,
        "no step, nor progress of an evaluation, for so long: print where all threads are and die, "
        "to be relaunched; 0: never",
    )
    compile_cache: str = key("", "persistent XLA cache; empty: a user cache folder, 'off': none")


@dataclass(frozen=True)
class MupConfig:
    """muP: hyperparameters that were tuned on a narrow model hold for a wide one."""

    base_width: int = key(
        0,
        "encoder.width that optim.lr and train.init are meant for; at another width start and "
        "learning rates follow from it (muP, arXiv 2203.03466); 0: no such rule",
    )
    base_predictor_width: int = key(
        0, "the same of predictor.width; 0: it is equal at all widths, as in I-JEPA"
    )
    base_text_width: int = key(0, "the same of text.width (kind hashed); 0: it is equal")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh."""

    data: int = key(-1, "devices along the data axis; -1: all that remain")
    fsdp: int = key(
        0, "devices that parameters are sharded over; 0: what suits the chip, at most one slice"
    )
    tensor: int = key(1, "devices that heads and hidden widths are sharded over")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every: int = key(200, "steps between checkpoints; one more is written at the end")
    every_minutes: float = key(
        0.0, "minutes after which one is written at the latest; 0: steps alone count"
    )
    keep_last: int = key(2, "newest checkpoints to keep")
    keep_every: int = key(0, "also keep each checkpoint whose step is a multiple of this; 0: none")
    keep_best: int = key(
        1, "also keep so many whose target encoder the online kNN found best; 0: none"
    )
    patience_minutes: float = key(
        30.0, "how long a save that fails is tried again before the run stops (exit 5)"
    )


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    every: int = key(10, "steps between lines in metrics.jsonl")
    diagnostics_every: int = key(100, "steps between text gain, RankMe and the other diagnostics")
    diagnostics_images: int = key(256, "held-out images that diagnostics are computed on")
    progress: str = key(
        "auto",
        "auto (bar on a terminal, lines elsewhere), lines, json (rows of metrics.jsonl alone on "
        "stdout) or off (how it ended, on stderr)",
    )
    proof_every: int = key(
        50, "with --proof: steps between the hashes of parameters and target in proof.jsonl"
    )
    tensorboard: bool = key(True, "write TensorBoard events")
    wandb: str = key(
        "", "project of Weights & Biases that rows go to as well ([wandb] extra); empty: none"
    )


@dataclass(frozen=True)
class EvalConfig:
    """The images of evaluation, the online kNN, and how long probes are trained."""

    every: int = key(0, "steps between online evaluations; 0: a quarter of the run")
    tasks: tuple = key((), "evaluators of `jepa-vl eval` that run beside the online kNN")
    path: str = key(
        "",
        "held-out source, same kind (mixture: of the first one's); empty: val beside a folder "
        "named train, else data.holdout (mixture: of each source)",
    )
    split: str = key("", "held-out split, where data.split knows splits; empty: as for path")
    train_images: int = key(2000, "labelled training images that kNN searches")
    val_images: int = key(1000, "labelled held-out images that kNN classifies")
    k: int = key(20, "neighbours")
    temperature: float = key(0.07, "of the vote")
    batch_size: int = key(0, "images a forward pass; 0: the training batch")
    crops: int = key(
        4,
        "random crops, half of them mirrored, of a training image that trained probes see; 0: its "
        "centre alone",
    )
    probe_steps: int = key(0, "at most so many steps of a trained probe; 0: its protocol's epochs")
    probe_batch: int = key(0, "images a step of a trained probe; 0: its protocol's, or all images")
    decoder_steps: int = key(2000, "steps of the decoder of captioning and vqa")
    decoder_batch: int = key(64, "captions or questions a step of it")
    decoder_layers: int = key(2, "its blocks; published: 12")
    beam: int = key(4, "captions kept while one is written; 1: greedy")
    shots: int = key(
        0, "finetune_low: training images a class; 0: 1 % of all, at least one a class"
    )
    reference: str = key(
        "", "reference: the encoder to foretell, a path, zoo:NAME, hub:OWNER/MODEL, package:NAME"
    )
    reduce_zero_label: bool = key(
        False, "segmentation: number 0 is no class and the others count from it, as in ADE20K"
    )
