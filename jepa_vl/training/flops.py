"""FLOPs of a training step by component, counted in the operations that are traced.

Matrix products alone, 2 m n k each: what the field calls model FLOPs, and what the peak of an
accelerator is quoted for. The count is of the traced program, so it is exact for any objective,
mask and number of captions, and knows that a loop runs its body many times (the compiler's own
count does not). The rule "6 N D" would be wrong here: the target only runs forward, the context
encoder on the visible patches, the predictor once a target block.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval

from jepa_vl import objectives
from jepa_vl.config import Config
from jepa_vl.training.state import TrainState, batch_spec, shapes
from jepa_vl.training.step import gradients

# The first that is found in an operation's scope names its component.
COMPONENTS = {
    "text": r"\btext\b",
    "image_tower": r"\bimage_tower\b",
    "target": r"\btarget\b",
    "conditioner": r"\bconditioner",
    "predictor": r"Predictor\b",
    "encoder": r"",  # whatever is left
}


class Flops(NamedTuple):
    """Of one step, on the global batch.

    Attributes:
      forward: by component.
      backward: by component, 0 for what is not trained.
    """

    forward: dict[str, int]
    backward: dict[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.forward.values()) + sum(self.backward.values())

    def by_component(self) -> dict[str, int]:
        """Both directions together: ``target_forward``, ``encoder_forward``, and so on."""
        parts = {"forward": self.forward, "backward": self.backward}
        return {f"{c}_{way}": part[c] for way, part in parts.items() for c in part if part[c]}


def count(config: Config, state: TrainState | None = None) -> Flops:
    """FLOPs of the gradient of a step; those of optimizer and EMA are element-wise, hence 0.

    Args:
      config: resolved. Recomputed activations are not counted: they are not the model's. Equal
        layers are traced once, whatever it says: their count is the same.
      state: its shapes, where they are known already.

    Raises:
      ConfigError: a tower or a cache of embeddings that it names is absent.
    """
    config = replace(config, train=replace(config.train, remat="none", scan_layers=True))
    objective, batch = objectives.build(config), batch_spec(config)
    frozen = objective.frozen_spec()
    state = shapes(config, objective, batch) if state is None else state
    traced = jax.make_jaxpr(lambda s, f, b: gradients(config, objective, s, f, b)[0])
    whole = traced(state, frozen, batch).jaxpr
    # Without what nobody reads, such as the gradient of the pixels.
    needed, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))
    found = matmuls(needed)
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    for scope, flops in found.items():
        (backward if "transpose(" in scope else forward)[_component(scope)] += flops
    return Flops(dict(forward), dict(backward))


def _component(scope: str) -> str:
    return next(name for name, pattern in COMPONENTS.items() if re.search(pattern, scope))


def matmuls(program: Any, times: int = 1) -> Counter[str]:
    """FLOPs of all matrix products of a jaxpr, by the scope that they stand in.

    Raises:
      ValueError: a product stands in a loop whose length is not known.
    """
    found: Counter[str] = Counter()
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            found[str(equation.source_info.name_stack)] += times * _product(equation)
        inner = times * params["length"] if name == "scan" else times
        # Of a choice the first: the other branch is for what does not fit.
        chosen = {"branches": params["branches"][:1]} if name == "cond" else params
        for part in _programs(chosen):
            below = matmuls(part, inner)
            if name == "while" and below:
                raise ValueError("a matrix product in a loop of unknown length")
            outer = str(equation.source_info.name_stack)
            found.update({f"{outer}/{scope}": flops for scope, flops in below.items()})
    return found


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _programs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an operation."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
