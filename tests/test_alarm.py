"""Promises of the alarm: it fires when it must, once, and judges alike after a restart."""

import dataclasses
import json

import pytest

from jepa_vl.config import ConfigError, resolve
from jepa_vl.schema_health import RULES as NAMES
from jepa_vl.schema_health import HealthConfig
from jepa_vl.training.alarm import BRANCHES, RULES, Alarm, replay
from tests.tiny import tiny_config

WIDE = {"std": 0.5, "cosine": 0.6, "rankme": 18.0, "effective_rank": 20.0}
WELL = {
    "held_out_loss": 3.0, "unexplained": 0.6, "text_gain": 0.3, "text_gain_noise": 0.03,
    "std/predictor": 0.3, "dead_share": 0.1, "ema_drift": 0.02, "data/spread": 0.1,
    "data/pairing": 10.0, "regulariser_gradient_ratio": 2.0,
    **{f"{name}/{branch}": value for branch in BRANCHES for name, value in WIDE.items()},
}  # fmt: skip
# What makes each rule fire, and what the message must hold beside the numbers.
BAD = {
    "images": ({"data/spread": 1e-3}, "jepa-vl data show"),
    "pairs": ({"data/pairing": 0.5}, "jepa-vl data show"),
    "target": ({"ema_drift": 1e-14}, "optim.ema"),
    "runaway": ({"ema_drift": 0.4}, "optim.lr"),
    "regularisers": ({"regulariser_gradient_ratio": 50.0}, "loss.sparse"),
    "exploding": ({"unexplained": 4.0}, "optim.lr"),
    "std": ({"std/context": 0.05}, "optim.ema"),
    "cosine": ({"cosine/target": 0.999}, "optim.ema"),
    "targets": ({"held_out_loss": 0.9}, "optim.ema"),
    "rank": ({"rankme/context": 2.0}, "anticollapse"),
    "dimensions": ({"effective_rank/target": 3.0}, "anticollapse"),
    "predictor": ({"std/predictor": 1e-4}, "optim.warmup_steps"),
    "prediction": ({"unexplained": 1.01}, "optim.lr"),
    "held out": ({"unexplained": 1.7}, "jepa-vl data show"),
    "captions": ({"text_gain": 0.01}, "jepa-vl data show"),
    "dead words": ({"dead_share": 0.99}, "loss.regulariser"),
}
CONFIG = HealthConfig(patience=2, lull=400)


def rows(*changes, every=100):
    """Rows of diagnostics that are well but for the changes, one dict a row."""
    return [{"step": every * i, **WELL, **change} for i, change in enumerate(changes)]


def only(name):
    """Other rules may see the same: a predictor that explodes is beyond the mean target too."""
    return dataclasses.replace(CONFIG, mute=tuple(set(NAMES) - {name}))


def fired(found):
    return [(trouble.step, trouble.name) for trouble in found]


def test_the_rules_are_those_that_the_schema_names():
    assert tuple(RULES) == NAMES == tuple(BAD)


def test_a_run_that_is_well_raises_no_alarm():
    assert replay(rows(*[{}] * 20), CONFIG) == []


@pytest.mark.parametrize("name", RULES)
def test_each_rule_fires_once_it_has_been_bad_for_its_time_and_says_what_helps(name):
    change, advice = BAD[name]
    found = replay(rows({}, *[change] * 9), only(name))
    lasting = int(RULES[name].lasts * CONFIG.lull)
    assert fired(found) == [(max(200, 100 + lasting), name)]
    (trouble,) = found
    ((metric, value),) = change.items()
    assert trouble.numbers[metric] == value and f"{metric} {value:.4g}" in trouble.message
    assert advice in trouble.message and "since step 100" in trouble.message
    assert "\n" not in trouble.message and trouble.message.startswith(name)


@pytest.mark.parametrize("name", RULES)
def test_a_muted_rule_is_silent(name):
    change, _ = BAD[name]
    muted = dataclasses.replace(CONFIG, mute=(name,))
    assert name not in {trouble.name for trouble in replay(rows({}, *[change] * 9), muted)}


def test_data_and_weights_are_judged_from_the_start_and_a_copy_once_it_should_have_moved():
    for name in ("images", "pairs", "regularisers"):
        assert fired(replay(rows(*[BAD[name][0]] * 3), CONFIG)) == [(100, name)]
    for name in ("target", "runaway"):
        assert fired(replay(rows({"ema_drift": 0.0}, *[BAD[name][0]] * 3), CONFIG)) == [(200, name)]
    assert replay(rows({"ema_drift": 0.0}, {}), CONFIG) == []


def test_one_bad_row_is_no_alarm_and_patience_counts_rows_in_a_row():
    bad = BAD["std"][0]
    assert replay(rows({}, bad, {}, bad, {}, bad), CONFIG) == []
    three = HealthConfig(patience=3, lull=400)
    assert fired(replay(rows({}, bad, bad, {}, bad, bad, bad), three)) == [(600, "std")]


def test_it_is_silent_again_only_when_well_back():
    bad, between, well = ({"std/target": 0.5 / times} for times in (9.0, 6.0, 2.0))
    hovering = rows({}, bad, bad, between, bad, bad, between, bad, bad)
    assert fired(replay(hovering, CONFIG)) == [(200, "std")]
    back = rows({}, bad, bad, between, well, bad, bad)
    assert fired(replay(back, CONFIG)) == [(200, "std"), (600, "std")]
    alarm = Alarm(CONFIG)
    seen = [(alarm.judge(row), sorted(alarm.firing))[1] for row in back]
    assert seen == [[], [], ["std"], ["std"], [], [], ["std"]]


def test_what_has_grown_narrow_is_measured_against_its_best_not_its_start():
    start, best = {"rankme/target": 6.0}, {"rankme/target": 40.0}
    assert fired(replay(rows(start, best, start, start), CONFIG)) == [(300, "rank")]
    assert replay(rows(start, start, start, start), CONFIG) == []


def test_the_first_error_of_an_untrained_predictor_is_no_explosion():
    assert replay(rows(*({"unexplained": x} for x in (8.0, 2.0, 0.9, 0.8))), CONFIG) == []
    risen = rows(*({"unexplained": x} for x in (8.0, 0.8, 5.0, 5.0)))
    assert fired(replay(risen, only("exploding"))) == [(300, "exploding")]
    slow = rows(*({"unexplained": x} for x in (8.0, 7.5, 2.0, 0.9)), every=40)
    assert replay(slow, CONFIG) == []


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_explosion(loss):
    broken = dict.fromkeys(WELL, None) | {"held_out_loss": loss}
    found = replay(rows({}, broken, broken), CONFIG)
    assert fired(found) == [(200, "exploding")]
    assert "not finite" in found[0].message and found[0].numbers == {}


def test_captions_are_not_judged_before_the_predictor_predicts_nor_where_there_are_none():
    early = {"unexplained": 0.95, "text_gain": 0.0}
    assert replay(rows(*[early] * 9), CONFIG) == []
    without = {key: value for key, value in WELL.items() if not key.startswith("text_gain")}
    assert replay([{"step": 100 * i, **without} for i in range(9)], CONFIG) == []


def test_each_modality_that_is_predicted_is_judged():
    values = (0.9, 4.0, 4.0)
    found = replay(rows(*({"unexplained/text": value} for value in values)), only("exploding"))
    assert fired(found) == [(200, "exploding")] and "unexplained/text 4" in found[0].message


def test_rows_without_diagnostics_change_nothing():
    bad = BAD["rank"][0]
    mixed = rows({}, bad, bad)
    mixed.insert(2, {"step": 150, "loss": 1.0, "rankme/context": 18.0})
    alarm = Alarm(CONFIG)
    assert fired([t for row in mixed for t in alarm.judge(row)]) == [(200, "rank")]


STORY = rows(
    {}, *[BAD["std"][0]] * 3, {}, BAD["captions"][0], *[BAD["captions"][0] | BAD["rank"][0]] * 3, {}
)


@pytest.mark.parametrize("cut", range(len(STORY)))
def test_a_resumed_run_judges_as_the_unbroken_one(cut):
    whole = Alarm(CONFIG)
    expected = [whole.judge(row) for row in STORY]
    assert replay(STORY, CONFIG) == [trouble for found in expected for trouble in found] != []
    first = Alarm(CONFIG)
    found = [first.judge(row) for row in STORY[:cut]]
    second = Alarm(CONFIG, json.loads(json.dumps(first.to_dict())))
    assert second.firing == first.firing
    assert found + [second.judge(row) for row in STORY[cut:]] == expected
    assert second.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("health.action", "shout", "one of 'warn', 'keep', 'stop', 'rewind'"),
        ("health.patience", 0, "at least 1"),
        ("health.lull", -1, "at least 1"),
        ("health.mute", ("captoins",), "did you mean 'captions'"),
        ("health.rewind_lr", 1.0, "0 <= value < 1"),
        ("health.rewind_lr", 0.0, "above 0"),
    ],
)
def test_bad_keys_are_refused(key, value, rule):
    with pytest.raises(ConfigError, match=rule) as error:
        resolve(tiny_config(**{key: value}))
    assert error.value.key == key


def test_the_lull_is_half_of_the_run_unless_it_is_said():
    assert resolve(tiny_config(**{"train.steps": 5000})).health.lull == 2500
    assert resolve(tiny_config(**{"train.steps": 50})).health.lull == 1000
    assert resolve(tiny_config(**{"health.lull": 7})).health.lull == 7
