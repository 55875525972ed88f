"""Where the words of a sentence look on your own photograph: a picture, and numbers.

Command:  python examples/grounding_photo.py --photo PHOTO.jpg --caption "a red boat on the sea" \\
              --out words.png
          --model is a run's folder, a folder of `jepa-vl export --part whole`, or zoo:NAME; without
          it the TC-JEPA that the package ships, which knows drawn scenes and no photographs.

For each word the similarity O of TC-JEPA (arXiv 2605.03245) at every patch, averaged over the
predictor's layers and over random masks that together cover the image. Prints one line of JSON:
each word, and the row and column of its brightest patch.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from jepa_vl import objectives, sharding
from jepa_vl.data import captions, masking, transforms
from jepa_vl.evaluators import wordmaps
from jepa_vl.models import intake
from jepa_vl.report import figures
from jepa_vl.schema import MeshConfig
from jepa_vl.training import whole


def main() -> None:
    """Writes the picture and prints the line."""
    parser = argparse.ArgumentParser(description="Words of a sentence on a photograph.")
    parser.add_argument("--photo", required=True, type=Path)
    parser.add_argument("--caption", required=True)
    parser.add_argument("--out", required=True, type=Path, help="PNG to write")
    parser.add_argument(
        "--model",
        default="zoo:tcjepa-shapes",
        help="a run, an export of --part whole, or zoo:NAME (default: zoo:tcjepa-shapes, which "
        "knows drawn scenes and no photographs)",
    )
    parser.add_argument("--draws", type=int, default=16, help="random masks (default: 16)")
    args = parser.parse_args()
    if not args.photo.is_file():
        parser.error(f"--photo = {str(args.photo)!r}: a picture that is there")

    model = whole.load(intake.open_source(args.model, "--model"), "a word map")
    config = model.config
    objective = objectives.build(config)
    if not getattr(objective, "maps_words", False):
        parser.error(f"--model = {args.model!r}: a TC-JEPA whose conditioner reads single words")

    # The centre square, as evaluation has it: uint8 [S, S, 3].
    size, photo = config.encoder.image_size, args.photo.read_bytes()
    image = transforms.centre_crop(photo, size, args.photo.name, config.data.max_pixels)
    reader = captions.build(config.text)
    batch = {name: array[None] for name, array in reader.encode_all([args.caption]).items()}
    if not batch["caption_mask"].any():
        parser.error(f"--caption = {args.caption!r}: a sentence with a word in it")

    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    maps = wordmaps.word_maps(
        objective,
        *sharding.place((model.params, model.target), mesh),
        frozen=sharding.place(objective.load_frozen(), mesh),
        batch={"image": image[None], **batch},
        plan=masking.plan_masks(config),
        draws=args.draws,
    )
    words, heat = wordmaps.by_word(reader, args.caption, maps.both[0, 0])
    args.out.write_bytes(figures.to_png(figures.word_maps(image, words, heat, args.caption)))
    places = [np.unravel_index(int(one.argmax()), one.shape) for one in heat]
    found = [
        {"word": word, "row": int(row), "column": int(column)}
        for word, (row, column) in zip(words, places, strict=True)
    ]
    print(json.dumps({"picture": str(args.out), "grid": heat.shape[-1], "words": found}))


if __name__ == "__main__":
    main()
