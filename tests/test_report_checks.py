"""The proof table, the health of a run and its card, as sections of the report."""

import json

import pytest

from jepa_vl.report import card, checks, health
from jepa_vl.report.checks import FAILS, HOLDS, OPEN
from tests.tiny import tiny

CONFIG = tiny(**{"health.patience": 2, "train.steps": 40, "eval.val_images": 1000})
LEARNT = {
    "knn/target": 0.8, "text_gain": 0.2, "text_gain_noise": 0.03, "unexplained": 0.5,
    "rankme/target": 12.0, "rankme/context": 12.0, "dead_share": 0.1, "held_out_loss": 0.5,
}  # fmt: skip
START = LEARNT | {"knn/target": 0.4, "knn/pixels": 0.15, "unexplained": 1.1, "text_gain": 0.0}
DONE = {"status": "done", "compiles": 1, "best": {"images": 1000}}
START_OF_PROOF = {"start": 0, "skipped": 0, "processes": 1, "devices": 1}


def rows(**last):
    """A run of 40 steps that learns; ``last``: what its two last diagnostics have instead."""
    out = [{"step": 0, **START}, {"step": 10, "loss": 1.0, "bad_steps": 0, **LEARNT}]
    return out + [{"step": s, "loss": 0.5, "bad_steps": 0, **LEARNT, **last} for s in (30, 40)]


def verdicts(rows, result=None, config=CONFIG, proof=()):
    found = checks.of(config, rows, DONE if result is None else result, proof)
    return {check.claim: check.verdict for check in found}


def test_a_run_that_learns_proves_all_that_was_measured():
    found = verdicts(rows())
    assert found.pop("restarts repeat their steps to the bit") == OPEN  # no --proof
    assert set(found.values()) == {HOLDS} and len(found) == 10


@pytest.mark.parametrize(
    ("claim", "last", "verdict"),
    [
        ("every step is finite", {"bad_steps": 3}, FAILS),
        ("every step is finite", {"loss": None}, FAILS),
        ("features keep their dimensions", {"rankme/target": 1.9}, FAILS),
        ("the alarm is silent", {"rankme/target": 1.9}, FAILS),
        ("patches look at words", {"dead_share": 0.99}, FAILS),
        ("the predictor does better than the mean target", {"unexplained": 0.95}, FAILS),
        ("kNN beats the same network before its first step", {"knn/target": 0.39}, FAILS),
        (
            "kNN beats the same network before its first step",
            {"knn/target": 0.42},
            OPEN,
        ),  # may be chance
        ("kNN beats raw pixels", {"knn/target": 0.12}, FAILS),
        ("captions are read", {"text_gain": -0.1}, FAILS),
        ("captions are read", {"text_gain": 0.05}, OPEN),  # less than two standard errors
    ],
)
def test_a_claim_that_does_not_hold_is_told_so(claim, last, verdict):
    assert verdicts(rows(**last))[claim] == verdict


def test_of_a_run_that_goes_on_its_end_cannot_be_told_and_a_stopped_one_has_not_ended():
    assert verdicts(rows(), {})["the run has ended"] == OPEN
    assert "the step is compiled once" not in verdicts(rows(), {})
    stopped = verdicts(rows()[:-1], DONE | {"status": "preempted", "compiles": 2})
    assert stopped["the run has ended"] == stopped["the step is compiled once"] == FAILS
    assert set(verdicts([], {}).values()) == {OPEN}


def test_repeated_steps_are_judged_by_their_hashes():
    steps = [{"step": i, "sample_hash": str(i)} for i in (1, 2)]
    again = [START_OF_PROOF, *steps, START_OF_PROOF | {"start": 1}, {"step": 2}]
    claim = "restarts repeat their steps to the bit"
    for repeated, verdict in ((None, OPEN), ("2", HOLDS), ("3", FAILS)):
        again[-1] = {"step": 2} | ({} if repeated is None else {"sample_hash": repeated})
        assert verdicts(rows(), proof=again)[claim] == verdict


def test_a_control_is_named_beside_its_text_gain():
    control = tiny(**{"data.captions": "shuffled"})
    (told,) = [c for c in checks.of(control, rows(), DONE, []) if c.claim == "captions are read"]
    assert told.measured.endswith("; a control: data.captions=shuffled")


def test_health_counts_what_happened_and_events_stand_in_the_order_of_time(tmp_path):
    (quiet,) = health.sections(tmp_path, [{"step": 1, "bad_steps": 2, "goodput": 0.5}], {})
    assert quiet.table is not None
    told = dict(quiet.table[1])
    assert told["steps skipped, because a gradient was not finite"] == 2
    assert (told["alarms"], told["restarts by a supervisor"], told["goodput"]) == (0, 0, 0.5)
    assert "samples that could not be used" not in told
    event = {"time": "2026-01-02T00:00:09+00:00", "step": 7, "event": "alarm", "message": "rank: x"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + '\n{"torn')
    death = {"time": "2026-01-01T00:00:00+00:00", "host": "h", "process": 3, "cause": "SIGKILL",
             "step": 5, "restart": 1}  # fmt: skip
    (tmp_path / "restarts.jsonl").write_text(json.dumps(death) + "\n")
    loud, events = health.sections(tmp_path, [], {})
    assert loud.table is not None and events.table is not None
    assert dict(loud.table[1])["restarts by a supervisor"] == 1
    assert list(events.table[1]) == [
        ("2026-01-01 00:00:00", 5, "death", "process 3 on h: SIGKILL; restart 1"),
        ("2026-01-02 00:00:09", 7, "alarm", "rank: x"),
    ]


def test_the_newest_card_is_shown_and_the_others_are_named(tmp_path):
    assert card.newest(tmp_path) == ([], [])
    protocol = {"seed": 0, "held_out": {"images": 9, "name": "photos"}}
    result = {"task": "knn", "features": "encoder", "metrics": {"accuracy": 0.5}, "ci": {},
              "baselines": {"pixels": {"accuracy": 0.25}}, "protocol": protocol}  # fmt: skip
    for step, branch in ((20, "target"), (100, "context"), (100, "target")):
        page = {"step": step, "branch": branch, "layers": 1, "results": [result]}
        (tmp_path / f"eval_{step}_{branch}.json").write_text(json.dumps(page))
    (tmp_path / "eval_999_torn.json").write_text("{")
    (shown,), names = card.newest(tmp_path)
    assert names == ["eval_100_target.json", "eval_100_context.json", "eval_20_target.json"]
    assert shown.title == "Card: knn: photos" and shown.table is not None
    assert shown.table[1] == [["knn", "accuracy", "0.5", "", "0.25"]]
