"""The flags that commands share: their order, what is refused, and the workers that they give."""

import dataclasses
import multiprocessing
from typing import Any

import pytest

from fmnist_transfer.benchmark.__main__ import BenchmarkFlags, BenchmarkSettings
from fmnist_transfer.errors import UsageError
from fmnist_transfer.flags import TrainingFlags, count_workers, device_of_tasks, machine_for
from fmnist_transfer.workers.run import available_cores
from fmnist_transfer.workers.stop import StopSignal
from sweeps.settings import TransferFlags, TransferSettings
from tuning.settings import SearchFlags, SearchSettings


def names(flags: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(flags)]


@pytest.mark.parametrize(
    ("settings", "own", "shared"),
    [
        (SearchSettings, SearchFlags, TrainingFlags),
        (TransferSettings, TransferFlags, TrainingFlags),
        (BenchmarkSettings, BenchmarkFlags, None),
    ],
)
def test_a_command_s_own_flags_come_first_and_debug_last(settings: Any, own: Any, shared: Any) -> None:
    """As `--help` lists them: own, training, machine, store, output, debug."""
    expected = names(own) + (names(shared) if shared else [])
    expected += ["data_dir", "workers", "device", "tracking_uri", "store_timeout", "mend_copy", "json", "debug"]
    assert names(settings) == expected


@pytest.mark.parametrize("settings", [SearchSettings, BenchmarkSettings])
@pytest.mark.parametrize(
    ("flag", "value"),
    [("store_timeout", -1.0), ("store_timeout", float("nan")), ("workers", "0"), ("workers", "10001")],
)
def test_each_group_checks_its_own_flags_in_every_command(settings: Any, flag: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')} {value}"):
        settings(**{flag: value})


def test_the_ends_of_what_is_allowed() -> None:
    settings = SearchSettings(store_timeout=0.0, workers="10000", seed=0)
    assert (settings.store_timeout, settings.workers, settings.seed) == (0.0, "10000", 0)
    with pytest.raises(UsageError, match="--seed -1"):
        SearchSettings(seed=-1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_bad_number_of_workers(text: str) -> None:
    with pytest.raises(UsageError, match=f"--workers {text}"):
        SearchSettings(workers=text)


def test_workers_are_as_many_as_cores_and_tasks_allow() -> None:
    assert count_workers("auto", "cpu", 1_000) == available_cores()
    assert count_workers("auto", "cuda", 1_000) == 1
    assert count_workers("3", "cuda", 1_000) == 3
    assert count_workers("3", "cpu", 2) == 2
    assert count_workers("auto", "cpu", 0) == 1


@pytest.mark.parametrize("device", ["cuda:1", "gpu", "mps"])
def test_ray_assigns_gpus_itself(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if Ray were installed
    with pytest.raises(UsageError, match=f"--device {device} --engine ray"):
        device_of_tasks(SearchSettings(engine="ray", gpus_per_task=1.0, device=device))
    assert device_of_tasks(SearchSettings(engine="ray", gpus_per_task=1.0)) == "cuda"


def test_a_dry_run_starts_no_process() -> None:
    with StopSignal() as stop, machine_for(SearchSettings(dry_run=True, workers="3"), 9, stop) as machine:
        assert (machine.workers.n, multiprocessing.active_children()) == (1, [])
