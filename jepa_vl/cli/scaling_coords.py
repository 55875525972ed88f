"""``jepa-vl scaling coords``: does each layer move as far whatever the width?"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from jepa_vl.cli import configs, outputs
from jepa_vl.cli.columns import columns
from jepa_vl.cli.numbers import whole
from jepa_vl.cli.train import writable
from jepa_vl.config import Config, ConfigError, one_of

KINDS = ("standard", "mup")
STEPS = 5


def run(args: argparse.Namespace, overrides: Sequence[configs.Override]) -> int:
    """Prints the slopes; writes coords.json and coords.png where --out says.

    Raises:
      ConfigError: a bad configuration, widths that give no whole numbers, or a folder.
    """
    config = configs.load(args.config, overrides)
    steps = whole("--steps", args.steps or str(STEPS), 1)
    out = writable("--out", args.out) if args.out else None
    page = found(config, _widths(args.widths, config), steps)
    print("\n".join(told(page)))
    if out is not None:
        from jepa_vl.report import coords
        from jepa_vl.report.figures import to_png

        outputs.write(out / "coords.json", page)
        (out / "coords.png").write_bytes(to_png(coords.figure(page)))
        print(out / "coords.png")
    return 0


def _widths(text: str | None, config: Config) -> list[int]:
    if not text:
        return [config.encoder.width * factor for factor in (1, 2, 4)]
    widths = [whole("--widths", word.strip(), 1) for word in text.split(",")]
    if len(set(widths)) < 2 or widths != sorted(set(widths)):
        raise ConfigError("--widths", text, "two or more, growing: 64,128,256")
    return widths


def found(config: Config, widths: Sequence[int], steps: int) -> dict[str, Any]:
    """Sizes, changes and slopes of all layers in both parametrisations, fit for JSON."""
    from jepa_vl.training import coords

    one_of("objective", config.objective, coords.WATCHED)
    models = [coords.at_width(config, width) for width in widths]
    base = models[0]
    layers: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        sizes = [
            coords.measure(
                coords.with_mup(model, base) if kind == "mup" else coords.standard(model), steps
            )
            for model in models
        ]
        for name in sizes[0].size:
            rows = {
                "size": [one.size[name].tolist() for one in sizes],
                "change": [one.change[name].tolist() for one in sizes],
            }
            last = {what: [row[-1] for row in of] for what, of in rows.items()}
            slopes = {what: list(coords.slope(widths, of)) for what, of in last.items()}
            layers.setdefault(name, {})[kind] = rows | {"slope": slopes}
    return {
        "widths": list(widths),
        "predictor_widths": [model.predictor.width for model in models],
        "base": {"encoder": base.encoder.width, "predictor": base.predictor.width},
        "objective": config.objective,
        "lr": config.optim.lr,
        "steps": steps,
        "layers": layers,
    }


def told(page: Mapping[str, Any]) -> list[str]:
    """The slopes of the change, for people."""
    rows: list[tuple[str, ...]] = [("layer", "standard", "", "muP", "")]
    for name, kinds in page["layers"].items():
        cells = [name]
        for kind in KINDS:
            slope, error = kinds[kind]["slope"]["change"]
            cells += [f"{slope:+.2f}", f"+- {error:.2f}"]
        rows.append(tuple(cells))
    widths = ", ".join(map(str, page["widths"]))
    lines = [
        f"slope of log mean |x - x at step 0| over log width, widths {widths}, after "
        f"{page['steps']} steps at lr {page['lr']:g}; muP from width {page['widths'][0]} on",
        *columns(rows, (1, 2, 3, 4)),
    ]
    for kind, name in (("standard", "standard"), ("mup", "muP")):
        steep = sorted(abs(of[kind]["slope"]["change"][0]) for of in page["layers"].values())
        middle = steep[len(steep) // 2]
        lines.append(f"{name}: |slope| {middle:.2f} in the median, {steep[-1]:.2f} at most")
    return lines
