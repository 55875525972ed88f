"""Photographs classified from an exported encoder by transformers and scikit-learn.

Command:  jepa-vl export --workdir RUN --format hf --out FOLDER
          python examples/probe_hf.py --model FOLDER --data DIR

Nothing of jepa_vl is imported: FOLDER is a model of transformers like any other. DIR holds
captions.jsonl, a line an image: {"image": "a/b.jpg", "label": "cat", "split": "train" or "test"};
where no line has a split, each fifth one is for testing. Rows without a label are left out.
Prints the accuracy of logistic regression on mean-pooled patches.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoImageProcessor, AutoModel

BATCH = 32


def read(folder: Path, limit: int) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Paths, labels and which images are for testing; ``limit`` of each split, evenly spread."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("label") is not None]
    if not any("split" in row for row in rows):
        rows = [{**row, "split": "train" if i % 5 else "test"} for i, row in enumerate(rows)]
    parts = [[row for row in rows if row.get("split") == split] for split in ("train", "test")]
    if limit:
        places = [
            np.linspace(0, len(part) - 1, min(limit, len(part))).astype(int) for part in parts
        ]
        parts = [[part[i] for i in place] for part, place in zip(parts, places, strict=True)]
    if not all(parts):
        raise SystemExit(f"{folder}/captions.jsonl: labelled images to train on, and some to test")
    chosen = [row for part in parts for row in part]
    test = np.array([row["split"] == "test" for row in chosen])
    labels = np.array([row["label"] for row in chosen])
    return [folder / row["image"] for row in chosen], labels, test


def embed(model_folder: str, paths: list[Path]) -> np.ndarray:
    """Mean-pooled patches of images, float32 [n, width]."""
    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder, add_pooling_layer=False).eval()
    found = []
    for start in range(0, len(paths), BATCH):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        with torch.no_grad():
            states = model(**processor(images, return_tensors="pt")).last_hidden_state
        found.append(states.mean(dim=1).numpy())
    return np.concatenate(found)


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description="Accuracy of logistic regression.")
    parser.add_argument("--model", required=True, help="folder of jepa-vl export --format hf")
    parser.add_argument("--data", required=True, help="folder with captions.jsonl")
    parser.add_argument("--C", type=float, default=1.0, help="inverse strength of the L2")
    parser.add_argument("--limit", type=int, default=0, help="images of each split; 0: all")
    parser.add_argument(
        "--features", help="NAME.npz to keep features in, and to read if it is there"
    )
    args = parser.parse_args()
    paths, labels, test = read(Path(args.data), args.limit)
    if args.features and Path(args.features).exists():
        features = np.load(args.features)["features"]
    else:
        features = embed(args.model, paths)
    if args.features:
        np.savez(args.features, features=features, labels=labels, test=test)
    scaler = StandardScaler().fit(features[~test].astype(np.float64))
    x = scaler.transform(features.astype(np.float64))
    probe = LogisticRegression(C=args.C, tol=1e-6, max_iter=1000).fit(x[~test], labels[~test])
    accuracy = float(np.mean(probe.predict(x[test]) == labels[test]))
    told = {"train": int(np.sum(~test)), "test": int(np.sum(test)), "C": args.C}
    print(json.dumps({"accuracy": accuracy, **told}))


if __name__ == "__main__":
    main()
