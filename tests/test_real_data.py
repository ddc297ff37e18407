"""The README's commands on the real Fashion-MNIST, made small by flags. Slow: needs the data set, or a source of it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from fmnist_transfer import CNN2Spec, Recipe, Streams, fraction, fresh_network, load_half, n_train
from fmnist_transfer.data import files
from fmnist_transfer.data.files import default_data_dir
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC
from fmnist_transfer.training.device import bf16_support
from fmnist_transfer.training.fit import fit_and_score
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE, REFERENCE_RECIPE, Precision

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*arguments: str, **environment: str) -> str:
    """Output of a command that succeeds."""
    command, env = [sys.executable, "-m", *arguments], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "mlflow.db"


@pytest.fixture(scope="module")
def searched(store: Path) -> dict[str, object]:
    result = store.parent / "search.json"
    flags = ["--trials", "2", "--epochs", "2", "--top", "1", "--retrain-seeds", "1", "--json", str(result)]
    run("tuning.search", "--tracking-uri", str(store), *flags)
    return json.loads(result.read_text())


def test_two_epochs_learn_the_source_half(searched: dict[str, float]) -> None:
    assert searched["retrained_mean"] > 0.88  # 0.92 after two epochs of the hand-made configuration, sd 0.01
    assert searched["test_accuracy"] > 0.88


@pytest.mark.usefixtures("searched")
def test_a_sweep_learns_from_a_twentieth_of_the_target(store: Path) -> None:
    result = store.parent / "sweep.json"
    flags = ["--fractions", "5", "10", "--epochs", "4", "--replicates", "1", "--json", str(result)]
    out = run("sweeps.transfer", "--model-uri", "models:/cnn2/best", "--tracking-uri", str(store), *flags)
    cells = json.loads(result.read_text())["cells"]
    assert [(cell["percent"], cell["init"], cell["n_train"]) for cell in cells] == [
        *((5, "pretrained", 1_250), (5, "random", 1_250)),
        *((10, "pretrained", 2_500), (10, "random", 2_500)),
    ]
    assert all(cell["final"]["val_accuracy"] > 0.7 for cell in cells)
    assert "cannot be told" in out


@pytest.mark.usefixtures("searched")
def test_six_replicates_make_a_verdict(store: Path) -> None:
    """What it is after one epoch of a thousand images or less is of no interest; that it is one, is."""
    swept, reported = store.parent / "swept.json", store.parent / "report.json"
    flags = ["--fractions", "2", "4", "--epochs", "1", "--replicates", "6", "--json", str(swept)]
    run("sweeps.transfer", "--model-uri", "models:/cnn2/best", "--tracking-uri", str(store), *flags)
    run("sweeps.report", "--tracking-uri", str(store), "--json", str(reported))
    found = json.loads(reported.read_text())
    assert found["claims"] == json.loads(swept.read_text())["claims"]
    for claim in found["claims"].values():
        assert claim["n_replicates"] == 6
        assert claim["interval"][0] < claim["effect"] < claim["interval"][1]


def test_the_quick_benchmark_measures_everything(store: Path) -> None:
    """Its parts and their arithmetic; how fast things are is for the benchmark to say, not for a test."""
    file = store.parent / "benchmark.json"
    run("fmnist_transfer.benchmark", "--quick", "--tracking-uri", str(store), "--json", str(file))
    result = json.loads(file.read_text())
    names: tuple[str, ...] = (
        "naive_images_per_s",
        "ours_images_per_s",
        "ratio_vs_naive",
        "fraction_of_limit",
        "worker_scaling",
    )
    names += ("default_images_per_s", "default_fraction_of_limit", "default_bf16_speedup", "reference_images_per_s")
    names += ("reference_fraction_of_limit", "time_to_reference_ratio")
    for name in names:
        assert 0 < result[name]["min"] <= result[name]["median"] <= result[name]["max"], name
    accuracies = {line["name"]: line["spread"]["median"] for line in result["lines"] if "accuracy" in line["name"]}
    assert len(accuracies) == 2
    assert min(accuracies.values()) > 0.8  # two epochs of a fifth of the images; of five classes
    assert result["device"].startswith(("cpu", "cuda", "mps"))


@pytest.mark.usefixtures("searched")
def test_mlflow_predicts_with_the_registered_model(store: Path, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text(json.dumps({"inputs": torch.zeros(3, 1, 28, 28).tolist()}))
    flags = ["-m", "models:/cnn2@best", "--env-manager", "local", "-i", str(tmp_path / "images.json"), "-t", "json"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags += ["-o", str(tmp_path / "logits.json")]
    run("mlflow", "models", "predict", *flags, MLFLOW_TRACKING_URI=f"sqlite:///{store}", PATH=path)
    logits = json.loads((tmp_path / "logits.json").read_text())["predictions"]
    assert len(logits) == 3
    assert len(logits[0]) == 5


def test_the_halves_have_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILES", synthetic.PUBLISHED)
    half = load_half(files.default_data_dir(), (0, 1, 2, 3, 4))
    assert (len(half.train), len(half.val), len(half.test)) == (25_000, 5_000, 5_000)
    assert torch.bincount(half.val.labels).tolist() == [1_000] * 5
    assert n_train(half.train, 5) == 1_250
    pixels = torch.cat([half.train.images, half.val.images]).float() / 255
    assert 0.2 < float(pixels.mean()) < 0.4


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        (HAND_MADE_SPEC, dataclasses.replace(HAND_MADE_RECIPE, epochs=4)),
        (REFERENCE_SPEC, dataclasses.replace(REFERENCE_RECIPE, epochs=8, learning_rate=1e-3)),
    ],
)
def test_bf16_and_float32_agree_within_the_noise_of_replicates(
    spec: CNN2Spec, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Final loss of four replicates on a tenth of the target: the difference is within three standard errors."""
    if not bf16_support("cpu")[0]:
        pytest.skip("this CPU computes bf16 slowly, so --precision auto never chooses it here")
    monkeypatch.setattr(files, "FILES", synthetic.PUBLISHED)
    half = load_half(default_data_dir(), (5, 6, 7, 8, 9))

    def losses(precision: Precision) -> np.ndarray:
        found = []
        for seed in range(4):
            network, streams = fresh_network(spec, Streams(seed)), Streams(seed)
            train = fraction(half.train, 10, streams)
            result = fit_and_score(network, train, half, recipe, streams, precision=precision)
            found.append(result.heldout.loss)
        return np.array(found)

    exact, rounded = losses("float32"), losses("bf16")
    assert not np.array_equal(exact, rounded)
    standard_error = np.sqrt((exact.var(ddof=1) + rounded.var(ddof=1)) / 4)
    assert abs(rounded.mean() - exact.mean()) < 3 * standard_error
