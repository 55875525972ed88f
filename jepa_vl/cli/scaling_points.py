"""The points of a study: each one's configuration, cost and command line."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_vl.cli import configs
from jepa_vl.config import Config, ConfigError, config_hash
from jepa_vl.scaling import family, ledger, plan
from jepa_vl.scaling.ledger import Row
from jepa_vl.scaling.study import Study

FILE = "plan.json"
NOMINAL = 1000  # steps of the configuration that is costed: they change no step
GIB = 2**30


class Machines(NamedTuple):
    """A topology that points are compiled for."""

    where: Any
    devices: list[Any]


def machines(name: str | None) -> Machines | None:
    """The devices of a topology; None: none was asked about.

    Raises:
      ConfigError: no such topology, or no compiler for it.
    """
    if not name:
        return None
    from jepa_vl.training import topology

    where = topology.parse(name)
    topology.prepare(where)
    return Machines(where, topology.devices(where))


def make(study: Study, rows: Sequence[Row], on: Machines | None = None) -> dict[str, Any]:
    """The plan: each point, those that are refused too.

    Args:
      study: checked.
      rows: of the ledger so far; none at first.
      on: machines whose memory and time count.

    Raises:
      ConfigError: the base configuration cannot be loaded, or its data not opened.
    """
    points, best = [], {}
    for arm in study.arms:
        best[arm] = plan.optimum(study, rows, arm)
        unique = _unique(study, arm)
        costs = {name: _cost(study, arm, name, on) for name in study.sizes}
        sizes = {
            name: float(cost.parameters["encoder"])
            for name, cost in costs.items()
            if isinstance(cost, plan.Cost)
        }
        refused = {name: cost for name, cost in costs.items() if isinstance(cost, str)}
        for budget in study.budgets:
            points += [_refused(study, arm, name, budget, why) for name, why in refused.items()]
            chosen = plan.around(study, sizes, budget, best[arm])
            if not chosen:
                centre = best[arm].at(budget)
                why = f"no size within a factor of {study.factor:g} of {centre:.3g} parameters"
                points.append(_refused(study, arm, "-", budget, why))
            for name in chosen:
                cost = costs[name]
                assert isinstance(cost, plan.Cost)
                points += _points(study, arm, name, budget, cost, unique)
    return {
        "study": study.name, "study_hash": study.hash(), "config": study.config,
        "topology": on.where.name if on else None,
        "optimum": {arm: law._asdict() for arm, law in best.items()}, "points": points,
    }  # fmt: skip


def words(values: Mapping[str, Any]) -> list[str]:
    """``--config.KEY=VALUE`` of each."""
    return [f"--config.{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def config_of(study: Study, values: Mapping[str, Any]) -> Config:
    """The configuration that a point's command line means.

    Raises:
      ConfigError: values that do not fit.
    """
    return configs.load(study.config, [configs.Override(k, _text(v)) for k, v in values.items()])


def meant(study: Study, words: Sequence[str]) -> str:
    """Hash of the configuration that the words of a planned point mean today."""
    return config_hash(configs.load(study.config, configs.take_overrides(words)[1]))


def _unique(study: Study, arm: str) -> int:
    from jepa_vl.data import sources

    values = study.values | study.arms[arm]
    return len(sources.open_sources(config_of(study, values))[0])


def _cost(study: Study, arm: str, name: str, on: Machines | None) -> plan.Cost | str:
    """Of a step; or why there can be none."""
    from jepa_vl import objectives
    from jepa_vl.training import flops
    from jepa_vl.training import state as train_state

    values = study.values_of(arm, family.size(name), NOMINAL, study.seeds[0])
    try:
        config = config_of(study, values)
        objective, batch = objectives.build(config), train_state.batch_spec(config)
        state = train_state.shapes(config, objective, batch)
        cost = plan.Cost(
            _parameters(state.params, objective.frozen_spec()),
            flops.count(config, state).by_component(),
        )
        return cost if on is None else _on_machines(cost, config, on)
    except ConfigError as error:
        return str(error)


def _parameters(params: Any, frozen: Any) -> dict[str, int]:
    from jepa_vl import tree

    found: Counter[str] = Counter()
    for path, leaf in tree.flatten(params).items():
        part = "conditioner" if "conditioner" in path else path.split("/")[0]
        found[part] += leaf.size
    stays = sum(leaf.size for leaf in tree.flatten(frozen).values()) if frozen else 0
    return dict(found) | ({"frozen": stays} if stays else {})


def _on_machines(cost: plan.Cost, config: Config, on: Machines) -> plan.Cost:
    from jepa_vl.training import aot

    found = aot.compile_step(config, on.where, on.devices)
    room = f"{found.total / GIB:.2f} GiB of {found.hbm / GIB:.2f}" if found.hbm else ""
    seconds = found.bound["step_seconds"] * found.devices if found.bound else None
    return cost._replace(fits=found.fits, memory=f"{room} a device", chip_seconds=seconds)


def _points(
    study: Study, arm: str, name: str, budget: float, cost: plan.Cost, unique: int
) -> list[dict[str, Any]]:
    """A size at a budget, once a seed."""
    size, steps = family.size(name), plan.steps_of(budget, cost)
    told = plan.numbers(study, steps, unique, cost)
    out = []
    for seed in study.seeds:
        values = study.values_of(arm, size, steps, seed)
        point = _named(study, arm, name, budget, seed)
        if not told["refused"]:
            try:
                config = config_of(study, values)
                point["config_hash"], point["objective"] = config_hash(config), config.objective
            except ConfigError as error:
                told = told | {"refused": str(error)}
        point |= {"width": size.width, "depth": size.depth, "lr": values["optim.lr"]}
        point |= {"ema": values["optim.ema"], **told, "words": words(values)}
        out.append(point | {"id": ledger.point_id(point)})
    return out


def _named(study: Study, arm: str, name: str, budget: float, seed: int) -> dict[str, Any]:
    named = {"study": study.name, "arm": arm, "size": name, "budget": budget, "seed": seed}
    return named | {"config_hash": ""}


def _refused(study: Study, arm: str, name: str, budget: float, why: str) -> dict[str, Any]:
    """A size that no configuration of this arm can have."""
    return _named(study, arm, name, budget, study.seeds[0]) | {"refused": why}


def workdir(out: Path, point: Mapping[str, Any]) -> Path:
    """Where a point trains."""
    names = (point["arm"], point["size"], f"{point['budget']:.4g}", str(point["seed"]))
    return out / "runs" / "_".join([*names, point["id"]])
