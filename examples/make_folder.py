"""A folder of pictures and captions to try the trainer on: scenes of the built-in world as JPEG.

Command:  python examples/make_folder.py photos --images 400

Writes photos/NNNNN.jpg and photos/captions.jsonl, a line an image:
{"image": "00000.jpg", "captions": [...], "label": ...}. Your own data has the same form.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from jepa_vl.config import defaults, resolve
from jepa_vl.data import sources


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    args = parser.parse_args()
    c = defaults()
    c.data.train_size = args.images
    c.encoder.update(image_size=args.size, patch_size=8, width=32, depth=1, heads=1)
    train, _ = sources.open_sources(resolve(c))
    args.folder.mkdir(parents=True)
    with (args.folder / "captions.jsonl").open("w") as lines:
        for index in range(len(train)):
            record = train[index]
            name = f"{index:05d}.jpg"
            Image.fromarray(record["image"]).save(args.folder / name, quality=90)
            row = {"image": name, "captions": list(record["captions"])}
            lines.write(json.dumps({**row, "label": train.classes[record["label"]]}) + "\n")
    print(f"{len(train)} pictures and captions.jsonl in {args.folder}")


if __name__ == "__main__":
    main()
