"""Small random towers of transformers, saved as folders; tests that need torch import this."""

from pathlib import Path

import pytest

WORDS = ["a", "red", "blue", "green", "circle", "square", "large", "small", "above", "the", "left"]


def randomise(model, spread=0.2, seed=0):
    """Every parameter random, norms and biases too: constants would hide swaps."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            unit = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if unit else spread * noise)
    return model.eval()


def save_tokenizer(folder: Path, eos: bool):
    """T5's shape (pieces, ``</s>`` at the end) or BERT's ([CLS], words, [SEP])."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [(piece, -9.0) for piece in "abcdefghijklmnopqrstuvwxyz"]
    if eos:
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
        pieces += [(f"▁{word}", -2.0) for word in WORDS] + letters
        fast = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        fast.decoder = decoders.Metaspace()
        fast.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
        listed += [mark + piece for piece, _ in letters for mark in ("", "##")]
        vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(listed))}
        fast = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        fast.normalizer = normalizers.BertNormalizer()
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        fast.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
        names |= {"sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)


def t5(folder, feed_forward="relu", spread=0.2, **save):
    """A T5 encoder whose heads together are narrower than the model."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=3,
        feed_forward_proj=feed_forward,
    )  # fmt: skip
    model = randomise(transformers.T5EncoderModel(config), spread)
    model.save_pretrained(folder, **save)
    save_tokenizer(folder, eos=True)
    return model


def bert(folder, spread=0.2, **save):
    """A BERT of two layers, eps far from the usual one."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40, layer_norm_eps=1e-3,
    )  # fmt: skip
    model = randomise(transformers.BertModel(config), spread)
    model.save_pretrained(folder, **save)
    save_tokenizer(folder, eos=False)
    return model


IMAGE_SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8, "attn_implementation": "eager",
}  # fmt: skip


def ijepa():
    """An I-JEPA of two layers and 16 patches; its positions are random too."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.IJepaConfig(intermediate_size=96, layer_norm_eps=1e-6, **IMAGE_SIZES)
    return randomise(transformers.IJepaModel(config))


def vit():
    """A ViT with a class token and an eps of 1e-12."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.ViTConfig(intermediate_size=96, **IMAGE_SIZES)
    return randomise(transformers.ViTModel(config))


def dinov2():
    """A DINOv2 with a class token and LayerScale."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return randomise(
        transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, **IMAGE_SIZES))
    )


MAKERS = {"t5": t5, "bert": bert}
IMAGE_MAKERS = {"ijepa": ijepa, "vit": vit, "dinov2": dinov2}
