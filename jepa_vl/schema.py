"""The configuration schema: every key with its type, default and one line of documentation.

Here is what is trained, on what; how it is run stands in :mod:`jepa_vl.schema_run`. What the values
mean, and which are refused, stands in :mod:`jepa_vl.config`.
"""

import dataclasses
from dataclasses import dataclass

from jepa_vl.schema_health import HealthConfig
from jepa_vl.schema_key import key
from jepa_vl.schema_run import CheckpointConfig as CheckpointConfig
from jepa_vl.schema_run import EvalConfig, LogConfig, OptimConfig, TrainConfig
from jepa_vl.schema_run import MeshConfig as MeshConfig
from jepa_vl.schema_run import MupConfig as MupConfig

# Encoder: width, depth, heads, hidden width of the MLP (I-JEPA's public code; "g" has ratio 48/11).
VARIANTS: dict[str, tuple[int, int, int, int]] = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
}
PREDICTOR_DEPTHS = {"Ti": 6, "S": 6, "B": 6, "L": 12, "H": 12, "g": 16}

# depth, heads of TI-JEPA's crosser. Its authors' scripts run (4, 8) and (8, 12); which of them are
# the paper's Small, Medium and Large is not published. Their hint for the middle, (6, 10), divides
# none of their widths: 12 heads are our choice.
CROSSERS: dict[str, tuple[int, int]] = {"small": (4, 8), "medium": (6, 12), "large": (8, 12)}

LEARNED = "learned"
RANDOM = "random"  # in place of the path of a frozen tower: an untrained one


@dataclass(frozen=True)
class DataConfig:
    """Where images and captions come from, and how they are read."""

    kind: str = key(
        "shapes_world",
        "source: shapes_world (built in), tar (WebDataset), folder (captions.jsonl or .csv), "
        "class_folder (a subfolder a class), mask_folder (images and masks), parquet, tfds, "
        "array_record (written by `jepa-vl data convert`), mvsa (tweets with a sentiment), "
        "coco_captions and vqa (their json), or a mixture of them",
    )
    path: str = key(
        "", "folder of the source, or one file of it; tfds: its data_dir; unused by shapes_world"
    )
    mixture: tuple = key(
        (), "mixture: its sources, each KIND:PATH@WEIGHT; each batch holds a fixed count of each"
    )
    name: str = key("", "tfds: the dataset, as in coco_captions/2014:1.1.0; others: empty")
    split: str = key(
        "",
        "tfds: split, empty for train; folder: value of `split` in its list; class_folder: "
        "subfolder; mask_folder: subfolder of both, VOC's list, or as folder; parquet: files whose "
        "names begin with it; coco_captions, vqa: part of the json's name and folder of the "
        "images; empty: all",
    )
    train_size: int = key(20_000, "shapes_world: number of distinct training scenes")
    caption_keys: tuple = key(
        ("captions", "caption"),
        "JSON keys or columns of the captions, a list or a string; the first that is present "
        "counts; a dot leads inside, as in captions.text",
    )
    label_key: str = key(
        "label", "JSON key or column of the class name; it may be absent; dots as above"
    )
    image_keys: tuple = key(
        ("image", "jpg", "png", "webp", "image_path", "file_name", "filepath"),
        "folder, parquet, tfds: keys or columns of the image, the first that is present counts",
    )
    captions_file: str = key(
        "",
        'more captions for any kind: JSON lines {"key": ..., "captions": [...]}, joined by the key '
        "of the record",
    )
    caption_pool: str = key(
        "both", "with captions_file: raw (of the source), synthetic (of the file) or both"
    )
    split_sentences: bool = key(False, "take each sentence of a caption as a caption of its own")
    captions: str = key(
        "own",
        "that an image comes with: own or, for control runs, shuffled (always those of one other "
        "image), empty (none) or random (as many random tokens)",
    )
    require_captions: bool = key(
        True, "where text is read, an image without a caption is bad; False: it is taken without"
    )
    max_pixels: int = key(2**26, "an image of more pixels is bad; nothing of it is decoded")
    max_bad_share: float = key(
        0.01, "stop (exit 5) when more of the images are bad, of the last 10,000 (at least 1,000)"
    )
    crop_scale: tuple = key((0.3, 1.0), "area range of the random resized crop")
    crop_ratio: tuple = key((0.75, 4 / 3), "aspect-ratio range (width / height) of the crop")
    decoder: str = key(
        "pillow",
        "of training crops: pillow, or turbo (JPEGs faster, crops within 1 of 255; [turbo] extra)",
    )
    holdout: float = key(
        0.05, "share of the images held out for evaluation when eval.path is not given"
    )
    workers: int = key(1, "data worker processes; 0 loads in the training process")
    prefetch: int = key(4, "batches that each worker holds ready")
    threads: int = key(4, "reading threads when workers = 0")


@dataclass(frozen=True)
class TextConfig:
    """Captions as arrays, and the tower that embeds them."""

    kind: str = key(
        "hashed",
        "text tower: hashed (built in, trained with the model); t5, bert or gte (pretrained); "
        "cached (embeddings written by `jepa-vl data embed`)",
    )
    path: str = key(
        "",
        "pretrained tower: folder with config.json, safetensors and tokenizer, package:NAME of an "
        "installed Python package, or hub:OWNER/MODEL; cached: the folder of the embeddings",
    )
    frozen: str = key(
        "",
        "yes or no: is the tower left as it is? empty: all but hashed are, in tijepa hashed too, "
        "in crossmodal and contrastive cached alone",
    )
    weights_dtype: str = key(
        "float32", "float32 or bfloat16: how the matrices of a frozen tower are stored"
    )
    cache_dtype: str = key(
        "float16", "float16, bfloat16 or float32: how `jepa-vl data embed` stores embeddings"
    )
    captions: int = key(4, "N, captions drawn an image and step, without replacement")
    words: int = key(16, "S, tokens a caption; longer ones are cut")
    packed: int = key(
        0,
        "t5, bert, gte: words of an image that are computed in one row, without the padding of its "
        "captions; a batch in which one has more is computed padded; 0: always padded",
    )
    dropout: float = key(
        0.0, "tcjepa: share of images whose captions the predictor does not read at a step"
    )
    vocabulary: int = key(8192, "hashed: rows of the word-piece embedding")
    width: int = key(128, "hashed: E, width of a word embedding; other towers bring their own")
    depth: int = key(1, "hashed: transformer blocks over the words of a caption")
    heads: int = key(4, "hashed: attention heads of those blocks")


@dataclass(frozen=True)
class EncoderConfig:
    """The vision transformer that is trained and exported."""

    variant: str = key("", "Ti, S, B, L, H or g; empty: width, depth, heads and mlp_width as given")
    image_size: int = key(224, "side of the square input, pixels")
    patch_size: int = key(16, "side of a patch, pixels")
    width: int = key(0, "D; filled in from the variant")
    depth: int = key(0, "transformer blocks; filled in from the variant")
    heads: int = key(0, "attention heads; filled in from the variant")
    mlp_width: int = key(0, "hidden width of the MLP; 0: 4 x width, or the variant's")
    positions: str = key(
        "fixed",
        "of patches: fixed (I-JEPA's sin-cos table) or learned, from that table on",
    )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class PredictorConfig:
    """The narrow transformer that predicts the features of masked patches."""

    width: int = key(384, "P, width of the predictor")
    depth: int = key(0, "transformer blocks; 0: those of the variant (L, H: 12, g: 16), else 6")
    heads: int = key(0, "attention heads; 0: as many as the encoder's")


@dataclass(frozen=True)
class ConditionerConfig:
    """How the predictor reads captions."""

    kind: str = key(
        "word_attention",
        "how the predictor reads text: word_attention, caption_attention (to the mean word), "
        "adaln, feature (mean word at its input), sequence (words as tokens) or none (I-JEPA)",
    )
    layers: str = key("all", "layers that read: all, or one, the middle one")
    fusion: str = key("max", "of what is read in several captions: max, mean or attention")
    pool: str = key("before_mlp", "captions are fused before_mlp or, dearer, after_mlp")
    mlp_ratio: float = key(
        4.0, "hidden over outer width of the conditioner's MLP; 0: none, a LayerNorm alone"
    )
    scale_logits: bool = key(False, "divide the attention logits by sqrt(P); the paper does not")


@dataclass(frozen=True)
class FrozenConfig:
    """Towers that an objective reads and never updates (TI-JEPA)."""

    image: str = key(
        "",
        "image tower: workdir of ours (its target encoder); ViT, I-JEPA or DINOv2 as a folder of "
        "transformers or timm, package:NAME, hub:OWNER/MODEL or a file of weights; an export of "
        "ours; described by encoder; random: an untrained one, for tests and as a control",
    )
    text: str = key(
        RANDOM, "text.kind hashed: workdir whose text tower it is; random: an untrained one"
    )


@dataclass(frozen=True)
class TIJepaConfig:
    """TI-JEPA: the crosser, which lets image patches read the caption behind frozen towers."""

    variant: str = key("small", "small, medium or large; empty: depth and heads as given")
    width: int = key(
        0, "H, width of the crosser; published: that of the words; 0: text.width (kind hashed)"
    )
    depth: int = key(0, "blocks; filled in from the variant")
    heads: int = key(0, "attention heads; filled in from the variant")
    parity: bool = key(
        False, "the public code with its defects: leaking context, token-axis text norm, shared LN"
    )


@dataclass(frozen=True)
class CrossModalConfig:
    """Cross-modal TI-JEPA: each modality predicts the other's latents."""

    text_to_image: float = key(1.0, "w_TI, weight of predicting image latents from words")
    image_to_text: float = key(1.0, "w_IT, weight of predicting word latents from patches")
    context_fraction: float = key(
        0.0, "share of the target modality's own tokens that the predictor sees too, below 1"
    )
    targets: str = key("tokens", "what is predicted: tokens, or pooled (their mean)")
    energy_masks: int = key(4, "masks that an energy is averaged over where context_fraction > 0")


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive control on the same towers."""

    loss: str = key("clip", "clip (softmax over the batch) or siglip (a sigmoid for each pair)")
    width: int = key(512, "width of the space that images and captions share")


@dataclass(frozen=True)
class LossConfig:
    """The distance that is minimised, and the regularisers beside it."""

    distance: str = key(
        "",
        "l2 (mean norm, TC-JEPA Eq. 1), smooth_l1 (I-JEPA's code), mse (also crossmodal's) or none "
        "(contrastive); empty: the objective's",
    )
    target_norm: str = key("layer_norm", "of the features to predict: layer_norm or none")
    regulariser: str = key("off", "on word-to-patch similarities: off, paper, centred or entropy")
    sparse: float = key(0.1, "lambda, weight of L_sparse")
    consistency: float = key(0.5, "beta, weight of L_consistency")
    contrast: float = key(
        0.0, "weight of L_contrast, not in the paper: words find patches of their own image"
    )
    contrast_images: int = key(8, "images whose captions stand against an image's own there")
    ramp_steps: int = key(0, "steps over which these weights rise from 0; 0: the warm-up")


@dataclass(frozen=True)
class AntiCollapseConfig:
    """Weights of terms that keep an encoder's features apart; see ``objectives.anticollapse``.

    They compare the images of a micro-batch, over all devices.
    """

    variance: float = key(0.0, "of VICReg's hinge on the standard deviation of each channel")
    covariance: float = key(0.0, "of VICReg's squared covariances of different channels")
    rank: float = key(0.0, "of tr(C^2) / tr(C)^2, the inverse of an effective rank")
    sigreg: float = key(0.0, "of LeJEPA's distance to an isotropic Gaussian")


@dataclass(frozen=True)
class MasksConfig:
    """The multi-block masks of I-JEPA."""

    mode: str = key(
        "production",
        "production (static, unbiased) or reference (I-JEPA's collator, biases included)",
    )
    target_blocks: int = key(4, "M, target blocks an image")
    target_scale: tuple = key((0.15, 0.2), "area of a target block over the image's")
    target_aspect: tuple = key((0.75, 1.5), "height over width of a target block")
    context_scale: tuple = key((0.85, 1.0), "area of the (square) context block over the image's")
    min_keep: int = key(10, "reference mode: blocks and contexts have more tokens than this")
    context_tokens: int = key(
        0, "K, visible tokens an image; 0: 27 % of the grid, a multiple of 8 from 32 on"
    )
    target_tokens: int = key(0, "C, tokens of a target block; 0: the smallest block's area")


@dataclass(frozen=True)
class Config:
    """One run. Once resolved every value is final: checked, and filled in where it is derived."""

    seed: int = key(0, "of initialisation, data order, captions and masks")
    objective: str = key("tcjepa", "ijepa, tcjepa, tijepa, crossmodal or contrastive")
    init_from: str = key(
        "",
        "where parameters come from at step 0: an encoder of transformers, timm or "
        "facebookresearch/ijepa (folder, hub:OWNER/MODEL or file), an export or a workdir of ours; "
        "empty: chance",
    )
    init_branch: str = key(
        "target", "of init_from, where it holds both: target or context; encoder and target get it"
    )
    init_parts: tuple = key(
        ("encoder",),
        "what init_from gives: encoder; also predictor (facebookresearch/ijepa, ours), text (ours)",
    )
    init_allow: tuple = key(
        (),
        "names that may be missing from init_from, too many or misshapen there, and are left as "
        "they are; * stands for anything",
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    predictor: PredictorConfig = dataclasses.field(default_factory=PredictorConfig)
    conditioner: ConditionerConfig = dataclasses.field(default_factory=ConditionerConfig)
    frozen: FrozenConfig = dataclasses.field(default_factory=FrozenConfig)
    tijepa: TIJepaConfig = dataclasses.field(default_factory=TIJepaConfig)
    crossmodal: CrossModalConfig = dataclasses.field(default_factory=CrossModalConfig)
    contrastive: ContrastiveConfig = dataclasses.field(default_factory=ContrastiveConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    anticollapse: AntiCollapseConfig = dataclasses.field(default_factory=AntiCollapseConfig)
    masks: MasksConfig = dataclasses.field(default_factory=MasksConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mup: MupConfig = dataclasses.field(default_factory=MupConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    health: HealthConfig = dataclasses.field(default_factory=HealthConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
