"""What does each lever give on a pod? Parts of the step, compiled for one chip and never run.

    python benchmarks/levers.py --out benchmarks/results/pod_levers.json

The predictor with its losses, and the trained encoder, of TC-JEPA L/16 at 32 images a chip (global
batch 2048 on 64 chips), forward and backward, each a loop of a few layers: the body of the loop is
that of all layers, and a part compiles in minutes where the step takes a quarter of an hour. Cycles
are the compiler's static count: for comparing levers. Goes on where it stopped. Needs the [tpu]
extra. ``--report`` prints the table of what was found.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pods

from jepa_vl.cli import configs
from jepa_vl.training import topology

CHIP = "v5e-1"
LAYERS = {"predictor": 3, "encoder": 2}
L16 = {
    "encoder.variant": "", "encoder.width": "1024", "encoder.heads": "16",
    "encoder.mlp_width": "4096", "encoder.depth": str(LAYERS["encoder"]),
    "predictor.depth": str(LAYERS["predictor"]), "train.batch_size": "32", "data.path": "unread",
}  # fmt: skip


def heads_first() -> AbstractContextManager[Any]:
    """q, k and v go straight to [B, heads, T, D / heads], and back in one product."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from jepa_vl.models import layers
    from jepa_vl.sharding import whole

    class Heads(nn.Module):
        heads: int
        formula: str
        dtype: Any

        @nn.compact
        def __call__(self, x: Any) -> Any:
            back = self.name == "out"
            width = x.shape[1] * x.shape[3] if back else x.shape[-1]
            kernel = self.param("kernel", layers.NORMAL, (width, width)).astype(self.dtype)
            kernel = whole(kernel, "/".join((*self.path, "kernel")))
            shape = (self.heads, -1, width) if back else (width, self.heads, -1)
            y = jnp.einsum(self.formula, x.astype(self.dtype), kernel.reshape(shape))
            bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
            return y + (bias if back else bias.reshape(self.heads, 1, -1))

    @nn.compact
    def attend(self: Any, x: Any, key_valid: Any = None, first_query: int = 0) -> Any:
        def part(name: str, tokens: Any, formula: str = "btd,dhe->bhte") -> Any:
            return Heads(self.heads, formula, self.dtype, name=name)(tokens)

        q, k, v = part("q", x[:, first_query:]), part("k", x), part("v", x)
        logits = jnp.einsum("bhqe,bhke->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if key_valid is not None:
            logits = jnp.where(key_valid[:, None, None, :], logits, -1e9)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        return part("out", jnp.einsum("bhqk,bhke->bhqe", weights, v), "bhte,hed->btd")

    return mock.patch.object(layers.Attention, "__call__", attend)


def gelu_apart() -> AbstractContextManager[Any]:
    """The compiler may not fuse the MLP's GELU into the product that reads it."""
    import jax

    from jepa_vl.models import fast

    gelu = fast.gelu
    return mock.patch.object(fast, "gelu", lambda x: jax.lax.optimization_barrier(gelu(x)))


SECTION = """
## What levers give

Parts of TC-JEPA L/16 at 32 images a chip (a global batch of 2048 on 64), forward and backward, by
the compiler's static count of cycles on v5e; jax {jax}, libtpu {libtpu}. **An estimate for
comparing; nothing of it ran.** A part has a few layers in a loop; losses and what surrounds the
loop are shared among them. L/16 has 12 layers of predictor and 24 of encoder.

- What a layer reads of captions (O) is the largest thing that outlives it. It is held in the dtype
  of products, copies and tokens on one axis as the layer computes it: "as it is". In float32 with
  copies apart (commit 7a456ca5) the predictor took 13 % more.
- Attention of 16 heads of 24 channels over 72 tokens takes more of a layer than what conditions it.
  Six heads of 64 are a setting (`predictor.heads=6`) that departs from the paper.
- A lighter conditioner (`conditioner.mlp_ratio=1`) gives half of that, and departs too; what it
  does to quality is in RESULTS.md.
- q, k and v straight to heads before tokens, as an option, is slower or the same: they were three
  products already. So there is no such option.
- Of what the backward pass keeps these parts prefer `dots`, or do not care; a whole step, whose
  kept layers do not stay on the chip, prefers `full` (the search above).
- 8 images at a time halve the bytes that move and leave the cycles as they are.
- Tried and not kept: attention with a derivative of its own, out of its result (predictor +5 %,
  encoder -2 %), and with its weights kept as well (+8 %, -2 %); what a layer has read and of which
  caption, kept for the backward pass (-2 %: a percent of the step).
- All weights gathered once a step (`train.gather=step`) are a loss on v5e, and so are two
  micro-batches, by their network: see above.
- A gradient of a sharded kernel is summed and scattered in one go (`sharding.py`). Of L/16 with
  `dots` that took 1.5 % of the cycles and 7 of 36 ms of network.

The goal is an MFU of 0.30 for L/16 and 0.38 for H/14 on v5e-64 by the compiler's cycles, with
communication beside it. It is missed with 0.28 and 0.36; with six heads, which is not the paper's
predictor, 0.30 and 0.375. The predictor takes half of L/16's step and does 30 % of its products:
its layers are 384 wide, which leaves most of the time to LayerNorm, softmax and moves. No kernel
was written: the attention that conditions takes 20 of the 200 ms of L/16's best step, and one that
moved no more bytes than it must would save 8 % of the step.

    python benchmarks/levers.py --out benchmarks/results/pod_levers.json
"""


class Lever(NamedTuple):
    """A change of the parts it touches: settings, or code that stands in for ours."""

    parts: tuple[str, ...]
    settings: Mapping[str, str] = MappingProxyType({})
    code: Callable[[], AbstractContextManager[Any]] = nullcontext


AS_IT_IS = "as it is"
BOTH = ("predictor", "encoder")
LEVERS = {
    AS_IT_IS: Lever(BOTH),
    "remat none": Lever(BOTH, {"train.remat": "none"}),
    "remat full": Lever(BOTH, {"train.remat": "full"}),
    "8 images at a time (x 4)": Lever(("predictor",), {"train.batch_size": "8"}),
    "predictor.heads=6": Lever(("predictor",), {"predictor.heads": "6"}),
    "conditioner.mlp_ratio=1": Lever(("predictor",), {"conditioner.mlp_ratio": "1"}),
    "no conditioner": Lever(("predictor",), {"conditioner.kind": "none"}),
    "heads before tokens": Lever(BOTH, code=heads_first),
    "GELU apart from its product": Lever(BOTH, code=gelu_apart),
}


def lowered(part: str, settings: Mapping[str, str], devices: list[Any]) -> Any:
    """The gradient of a part, ready to be compiled."""
    import jax
    import jax.numpy as jnp

    from jepa_vl import sharding
    from jepa_vl.objectives import losses
    from jepa_vl.training import plan

    with tempfile.TemporaryDirectory() as folder:
        texts = pods.text_folders(Path(folder))
        values = L16 | texts["cached"] | dict(settings)
        pairs = [configs.Override(key, value) for key, value in values.items()]
        config = configs.load(f"{pods.RECIPE}:size=L", pairs, reads_data=False)
        mesh = sharding.make_mesh(config.mesh, devices)
        planned = plan.make(config, mesh)
    rows = sharding.batch_sharding(mesh)
    objective: Any = planned.objective

    def like(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    batch = {k: like(x.shape, x.dtype) for k, x in planned.batch.items()}
    width, tgt = config.encoder.width, batch["tgt_idx"].shape
    context, targets = like((*batch["ctx_idx"].shape, width)), like((*tgt, width))

    def predict(params: Any, context: Any, targets: Any, batch: Any) -> Any:
        def loss(params: Any, context: Any) -> Any:
            words = objective.captions.words({}, {}, batch)
            prediction, reading = objective.predictor.apply(
                {"params": params}, context, batch["ctx_idx"], batch["tgt_idx"], words
            )
            total = jnp.mean(losses.DISTANCES[config.loss.distance](prediction, targets))
            if reading is None:
                return total
            return total + objective.regularise(reading, words, None)[0]

        return jax.grad(loss, argnums=(0, 1))(params, context)

    def encode(params: Any, batch: Any, grad: Any) -> Any:
        def loss(params: Any) -> Any:
            images, index = batch["image"], batch["ctx_idx"]
            return jnp.sum(grad * objective.encoder.apply({"params": params}, images, index))

        return jax.grad(loss)(params)

    params = planned.state.params[part]
    with jax.set_mesh(mesh):
        if part == "encoder":
            return jax.jit(encode).lower(params, batch, context)
        return jax.jit(predict).lower(params, context, targets, batch)


def record(text: str, temporaries: int, seconds: float, where: topology.Topology) -> dict[str, Any]:
    """What is kept of a compiled part."""
    from jepa_vl.training import hlo

    program = hlo.Program(text)
    scopes: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (cycles, moved) in program.costs.items():
        own = scopes[scope(name)]
        own[0] += 1e3 * cycles / where.chip.clock
        own[1] += moved / 1e9
    return {
        "cycles": program.cycles(),
        "milliseconds": 1e3 * program.cycles() / where.chip.clock,
        "milliseconds_at_peak": 1e3 * program.flops() / where.chip.flops,
        "bytes_moved": program.bytes_moved(),
        "temporaries": temporaries,
        "compile_seconds": seconds,
        "scopes": {k: {"milliseconds": ms, "gigabytes": gb} for k, (ms, gb) in scopes.items()},
    }


REST, UNNAMED = "losses and the rest", "moves that have no name"
SCOPES = {
    "dynamic_": "what loops keep and fetch",
    "conditioner/mlp": "conditioner, MLP",
    "conditioner/norm": "conditioner, LayerNorm",
    "conditioner": "conditioner, attention",
    "/mlp": "block, MLP",
    "/norm": "block, LayerNorm",
    "/attn": "block, attention",
}


def scope(name: str) -> str:
    """Where an operation belongs, from the name that tracing gave it."""
    if not name:
        return f"{UNNAMED}: forward"
    place = next((told for mark, told in SCOPES.items() if mark in name), REST)
    if "rematted" in name:
        return f"{place}: recomputed"
    return f"{place}: {'backward' if 'transpose(' in name else 'forward'}"


def cases() -> list[tuple[str, str]]:
    """Lever and part."""
    return [(name, part) for name, lever in LEVERS.items() for part in lever.parts]


def compiled(lever: Lever, part: str, where: topology.Topology) -> dict[str, Any]:
    """Compiles a part under a lever."""
    with lever.code():
        like = lowered(part, lever.settings, topology.devices(where))
        began = time.monotonic()
        done = like.compile(compiler_options=where.chip.flags)
    sizes = done.memory_analysis()
    seconds = time.monotonic() - began
    return record(done.as_text(), sizes.temp_size_in_bytes, seconds, where)


def section(found: dict[str, Any]) -> str:
    """Of the report on pods: the table, and what it says."""
    return SECTION.format(**found["versions"]) + "\n" + table(found)


def table(found: dict[str, Any]) -> str:
    """Levers, and where the milliseconds of the parts as they are lie; Markdown."""
    head = ("lever", "part", "ms a layer", "beside", "HBM GB a layer", "temporaries GiB")
    rows, places = [], []
    for case, one in found["cases"].items():
        name, part = case.split(" | ")
        times = 4 if name.startswith("8 images") else 1
        own = times * one["milliseconds"] / LAYERS[part]
        beside = found["cases"][f"{AS_IT_IS} | {part}"]
        share = own / (beside["milliseconds"] / LAYERS[part]) - 1
        moved = times * one["bytes_moved"] / LAYERS[part] / 1e9
        temporaries = f"{one['temporaries'] / pods.GIB:.2f}"
        rows.append((name, part, f"{own:.2f}", f"{share:+.0%}", f"{moved:.2f}", temporaries))
    for part, layers in LAYERS.items():
        case = f"{AS_IT_IS} | {part}"
        scopes = found["cases"][case]["scopes"] if case in found["cases"] else {}
        for place in (*SCOPES.values(), REST, UNNAMED):
            times = [
                scopes.get(f"{place}: {way}", {"milliseconds": 0.0})["milliseconds"] / layers
                for way in ("forward", "recomputed", "backward")
            ]
            if sum(times):
                places.append((place, part, ", ".join(f"{t:.2f}" for t in times)))
    where = ("where", "part", "forward, recomputed, backward: ms a layer")
    return "\n".join([*pods.markdown(head, rows), "", *pods.markdown(where, places), ""])


def main() -> None:
    """Compiles what is not in the file yet, or prints the table."""
    parser = argparse.ArgumentParser(description="levers on paper")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, read and written")
    parser.add_argument("--lever", action="append", choices=LEVERS, help="these alone; default all")
    parser.add_argument("--report", action="store_true", help="print the table, compile nothing")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    found = {"versions": versions, "chip": CHIP, "layers": LAYERS, "cases": {}, **found}
    if args.report:
        print(table(found), end="")
        return
    where = topology.parse(CHIP)
    topology.prepare(where)
    for name, part in cases():
        case = f"{name} | {part}"
        if case in found["cases"] or name not in (args.lever or LEVERS):
            continue
        found["cases"][case] = compiled(LEVERS[name], part, where)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(case, "done", flush=True)


if __name__ == "__main__":
    main()
