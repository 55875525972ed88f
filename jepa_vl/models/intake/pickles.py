"""State dicts of torch. They are pickles, which may hold code: none of it is ever run."""

import re
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

# What a checkpoint of facebookresearch/ijepa calls the branches; its optimizer is not looked at.
BRANCHES = {"target": "target_encoder", "context": "encoder"}
PREDICTOR = "predictor"
INSIDE = ("state_dict", "model", "model_state_dict")  # where others put the one state dict
WRAPPERS = r"^(?:module\.|_orig_mod\.)+"  # of distributed and of compiled modules

Named = dict[str, Callable[[], Array]]


def read(file: Path, where: tuple[str, str], branch: str) -> tuple[Named, Named]:
    """Tensors of an encoder by name, and of the predictor beside it, {} if there is none.

    Args:
      file: that ``torch.save`` wrote.
      where: configuration key and path, for errors.
      branch: target or context; it counts where the file has both.

    Raises:
      ConfigError: torch is absent, the file is broken, or holds something else than tensors.
    """
    whole = _load(file, where)
    if not any(isinstance(whole.get(name), Mapping) for name in BRANCHES.values()):
        inside = next((whole[n] for n in INSIDE if isinstance(whole.get(n), Mapping)), whole)
        return _named(inside, where), {}
    found = whole.get(BRANCHES[branch])
    if not isinstance(found, Mapping):
        rule = f"holds no {BRANCHES[branch]}, which is the {branch} branch"
        raise ConfigError(*where, rule)
    predictor = whole.get(PREDICTOR)
    return _named(found, where), _named(predictor, where) if predictor else {}


def _load(file: Path, where: tuple[str, str]) -> Mapping[str, Any]:
    if find_spec("torch") is None:
        raise ConfigError(*where, "only torch reads this file (pip install torch); or convert it")
    import torch  # pyright: ignore[reportMissingImports]

    try:  # of plain values and tensors, which stay in the file until they are used
        found = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # of many kinds: pickle's, zip's, the system's
        raise ConfigError(*where, _reason(error)) from None
    if not isinstance(found, Mapping):
        raise ConfigError(*where, f"holds a {type(found).__name__}, not tensors by name")
    return found


def _reason(error: Exception) -> str:
    """Why torch refused, on one line."""
    text = str(error)
    code = re.search(r"Unsupported (?:global|class|operand)[^\n]*", text)
    if code or "Weights only load failed" in text:
        told = code[0].split(". Please")[0] if code else "of another kind"
        return f"holds more than tensors and plain values, which is never run: {told}"
    lines = text.strip().splitlines() or [""]
    return f"cannot be read: {type(error).__name__}: {lines[0][:200]}"


def _named(tensors: Any, where: tuple[str, str]) -> Named:
    """Readers of the tensors of a state dict, the wrappers' prefixes gone."""
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(tensors, Mapping):
        raise ConfigError(*where, f"holds a {type(tensors).__name__} in place of tensors by name")

    def reader(x: Any) -> Callable[[], Array]:
        return lambda: x.detach().to(torch.float32).contiguous().numpy()

    return {
        re.sub(WRAPPERS, "", str(name)): reader(x)
        for name, x in tensors.items()
        if isinstance(x, torch.Tensor)
    }
