"""Curve runs say what the cells and the comparison say, and are replaced only where that has changed."""

import dataclasses
import json

import numpy as np
import pytest
from constructed import PERCENTS, rows, sweep

from fmnist_transfer.store.roles import TRANSFER, VIEW_TAG
from fmnist_transfer.store.runs import Store
from sweeps.grid import INITS
from sweeps.results.curve_runs import DIFFERENCE, IMAGES, INTERVAL, MOST_RUNS, curve_runs, log_curves
from sweeps.results.read import LoggedSweep

GAINS = {"heldout/loss": (0.1, 0.05, -0.05, -0.05, -0.05)}
LIMITS = {f"{DIFFERENCE} {limit}" for limit in ("low", "mean", "high")}


def of_parent(store: Store, n_replicates: int, **changes: object) -> LoggedSweep:
    """A sweep whose parent run exists, always the same one."""
    found = store.find(TRANSFER, role="sweep")
    run_id = found[0].info.run_id if found else store.start(TRANSFER, "sweep", tags={"role": "sweep"})
    return dataclasses.replace(sweep(rows(n_replicates, GAINS), run_id=run_id), **changes)


def ids(store: Store) -> dict[str, str]:
    """Name -> id of the active curve runs, of which no two have the same name."""
    runs = store.find(TRANSFER, role="curve")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run.info.run_id for run in runs}


def test_a_run_per_replicate_and_the_interval() -> None:
    of = sweep(rows(6, GAINS))
    runs = curve_runs(of)
    assert set(runs) == LIMITS | {f"{init} r{i}" for init in ("pretrained", "random") for i in range(6)}
    params, metrics = runs["random r3"]
    assert params == {"curve": "random", "init": "random", "replicate": 3}
    own = {row.cell.percent: row for row in of.rows if (row.cell.init, row.cell.replicate) == ("random", 3)}
    assert metrics[-3:] == [(key, value, 0) for key, value, _ in metrics[:3]]  # for MLflow's log axes
    assert metrics[:-3] == [
        row
        for percent in PERCENTS
        for row in (
            ("training loss", own[percent].scores["final/train_loss"], percent),
            ("held-out loss", own[percent].scores["heldout/loss"], percent),
            ("held-out accuracy", own[percent].scores["heldout/accuracy"], percent),
            (IMAGES, 250 * percent, percent),
        )
    ]
    expected = of.pair.intervals(of.pair.loss)
    assert expected is not None
    for limit, values in expected._asdict().items():
        params, metrics = runs[f"{DIFFERENCE} {limit}"]
        assert params == {"curve": INTERVAL, "limit": limit}
        *shown, hidden = [(value, step) for _, value, step in metrics]
        assert shown == list(zip(values, PERCENTS, strict=True))
        assert hidden == (values[0], 0)
    low, mean, high = expected.low, expected.mean, expected.high
    assert (low + mean + high) / 3 == pytest.approx(mean)  # so MLflow's average of the three is the mean


def test_without_a_complete_plan_there_is_no_interval() -> None:
    complete = sweep(rows(6, GAINS))
    incomplete = dataclasses.replace(complete, is_complete=False)
    assert set(curve_runs(complete)) - set(curve_runs(incomplete)) == LIMITS
    assert not LIMITS & set(curve_runs(sweep(rows(1, GAINS))))  # one replicate has none
    assert curve_runs(sweep([])) == {}


def test_a_fraction_without_an_interval_is_left_out() -> None:
    same = [row for row in rows(3, {}, noise=0.0) if row.cell.percent == 100]  # no variance between replicates
    found = curve_runs(sweep([*same, *(row for row in rows(3, GAINS) if row.cell.percent < 100)]))
    for limit in LIMITS:
        _, metrics = found[limit]
        assert all(np.isfinite(value) for _, value, _ in metrics)
        assert 100 not in {step for _, _, step in metrics}


def test_a_sweep_without_variance_has_no_interval() -> None:
    assert not LIMITS & set(curve_runs(sweep(rows(3, {}, noise=0.0))))


def test_a_tuned_sweep_shows_test_images() -> None:
    tuned = sweep(rows(2, {}), recipe_mode="tuned")
    keys = {key for _, metrics in curve_runs(tuned).values() for key, _, _ in metrics}
    assert keys == {"training loss", "test loss", "test accuracy", IMAGES, f"{DIFFERENCE}: log test loss"}


def test_a_page_holds_all_curves() -> None:
    """MLflow averages what it has loaded, so inits that do not fit in a page are left out whole."""
    runs = curve_runs(sweep(rows(20, GAINS, inits=INITS)))
    assert len(runs) <= MOST_RUNS
    inits = [params["init"] for params, _ in runs.values() if "init" in params]
    assert {"pretrained", "random"} <= set(inits)
    assert {inits.count(init) for init in inits} == {20}
    assert set(runs) >= LIMITS


def test_only_what_changed_is_logged_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of = of_parent(store, 3)
    log_curves(store, of)
    first = ids(store)
    assert set(first) == set(curve_runs(of))
    calls: list[str] = []
    monkeypatch.setattr(type(store.once), "log_batch", lambda *_, **__: calls.append("log_batch"))
    log_curves(store, of)
    assert (ids(store), calls) == (first, [])
    monkeypatch.undo()
    log_curves(store, of_parent(store, 4))
    second = ids(store)
    assert set(second) - set(first) == {"pretrained r3", "random r3"}
    assert {name for name in first if first[name] != second[name]} == LIMITS
    log_curves(store, of_parent(store, 4, is_complete=False))
    assert ids(store) == {name: run_id for name, run_id in second.items() if name not in LIMITS}


def test_a_run_that_was_not_finished_is_replaced(store: Store) -> None:
    of = of_parent(store, 1)
    tags = {"role": "curve", "parent": of.run_id}
    half_made = store.start(TRANSFER, "random r0", parent=of.run_id, tags=tags)
    log_curves(store, of)
    assert half_made not in ids(store).values()
    assert set(ids(store)) == {"pretrained r0", "random r0"}


def test_a_view_of_its_own_that_a_user_may_change(store: Store) -> None:
    of = of_parent(store, 2)
    log_curves(store, of)
    experiment_id, key = store.experiment(TRANSFER), f"{VIEW_TAG}{of.run_id}"
    view = store.client.get_experiment(experiment_id).tags[key]
    assert len(view) < 20_000  # MLflow's limit
    state = json.loads(json.loads(view)["state"])
    (title,) = {key for _, metrics in curve_runs(of).values() for key, _, _ in metrics if DIFFERENCE in key}
    names = ["training loss", "held-out loss", "held-out accuracy", title, "held-out loss"]
    assert [chart["selectedMetricKeys"] for chart in state["compareRunCharts"]] == [[name] for name in names]
    assert [chart.get("range") for chart in state["compareRunCharts"]].count(None) == 4  # of accuracy alone
    store.client.set_experiment_tag(experiment_id, key, "mine")
    log_curves(store, of)
    assert store.client.get_experiment(experiment_id).tags[key] == "mine"
