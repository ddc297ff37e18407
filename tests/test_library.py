"""docs/library.md: its examples run as they stand, and the library gives what the commands give."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from synthetic import SMALL_SPEC
from torch import Tensor, nn

from fmnist_transfer import (
    CNN2Spec,
    Half,
    Recipe,
    Result,
    Streams,
    examples_of,
    fit_and_score,
    fraction,
    fresh,
    fresh_network,
    half_of,
    load_half,
    train_on_half,
    weights_digest,
)
from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.store.model_format import TrainedModel, pack_weights
from fmnist_transfer.store.registry import register, set_best
from fmnist_transfer.store.roles import TUNING
from fmnist_transfer.store.runs import Store
from sweeps.grid import INITS, Cell, Init
from sweeps.training.cells import CellPlan, CellResult, train_cells
from sweeps.training.inits import train_arm

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


class SmallCIFAR10:
    """In place of CIFAR-10: 120 training and 20 test images of 12 x 12 a class, a colour pattern in noise."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        rng = np.random.default_rng(0)
        patterns = rng.integers(0, 256, (10, 12, 12, 3))
        self.labels = np.random.default_rng(int(train)).permutation(np.repeat(np.arange(10), 120 if train else 20))
        noise = rng.integers(0, 256, (len(self.labels), 12, 12, 3))
        self.images = (0.5 * patterns[self.labels] + 0.5 * noise).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torchvision.transforms.functional.to_pil_image(self.images[index]), int(self.labels[index])


def test_the_page_has_its_examples() -> None:
    assert len(BLOCKS) == 3
    ten_lines = [line for line in BLOCKS[0].splitlines() if line and not re.match(r"from|import", line)]
    assert len(ten_lines) <= 10


def test_ten_lines_give_what_the_sweep_gives(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMNIST_DATA_DIR", str(data_dir))
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    printed = capsys.readouterr().out.splitlines()

    source, target = load_half(data_dir, (0, 1, 2, 3, 4)), load_half(data_dir, (5, 6, 7, 8, 9))
    registered = train_on_half(CNN2Spec(), source, Recipe(), Streams(0), "cpu").final_state
    plan = CellPlan(target, CNN2Spec(), Recipe(), {0: pack_weights(registered)}, "epochs", 0, "cpu")
    for init, line in zip(("pretrained", "random"), printed, strict=True):
        (cell,) = train_cells(plan, (Cell(10, init, 0),), lambda epoch: None, lambda: False)
        assert isinstance(cell, CellResult)
        loss, accuracy = map(float, re.findall(r"\d\.\d+", line))
        assert line.startswith(init)
        assert (loss, accuracy) == pytest.approx((cell.result.test.loss, cell.result.test.accuracy), rel=1e-6)
    assert weights_digest(names["network"].state_dict()) == cell.weights_digest


def test_another_data_set_and_another_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", SmallCIFAR10)
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == list(INITS)
    assert len({row[1] for row in rows}) == len(INITS)
    assert [len(part) for part in (names["target"].train, names["target"].val, names["target"].test)] == [500, 100, 100]

    exec(BLOCKS[2], names)
    assert names["d"].shape == (6, 3)
    assert names["found"].low.shape == (3,)
    assert bool((names["found"].low < names["found"].high).all())
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(" %")[0].strip() for line in printed[:3]] == ["5", "25", "100"]
    again = names["arm"]("random", 25, 3)
    assert again.val.loss == names["random"][3, 1]


class DigitsNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 3)
        self.hidden = nn.Linear(24 * 36, 48)
        self.norm = nn.BatchNorm1d(48)
        self.out = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.hidden(torch.relu(self.conv(images)).flatten(1)))))


@pytest.fixture(scope="module")
def digits() -> tuple[Half, Half]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8, 174 to 183 of each: 0-4 and 5-9."""
    found = load_digits()
    pairs = list(zip(found.images, found.target, strict=True))
    train, test = examples_of(pairs[300:], pairs[:300])
    return half_of(train, test, range(5)), half_of(train, test, range(5, 10))


def test_digits_0_to_4_are_transferred_to_5_to_9(digits: tuple[Half, Half]) -> None:
    source, target = digits
    draw, recipe = partial(fresh, DigitsNet, classifier="out"), Recipe(batch_size=16)
    streams = Streams(0, stage="target")
    whole = fraction(source.train, 100, Streams(0))
    pretrained = fit_and_score(draw(Streams(0)), whole, source, recipe, Streams(0))
    assert pretrained.test.accuracy > 0.95

    def arm(init: Init, percent: int) -> Result:
        train = fraction(target.train, percent, streams)
        return train_arm(
            draw, train, target, recipe, streams, init=init, source=pretrained.final_state, classifier="out"
        )

    per_class = torch.bincount(target.train.labels)
    assert len(per_class.unique()) > 1  # unbalanced
    assert torch.bincount(fraction(target.train, 10, streams).labels).tolist() == (per_class * 10 // 100).tolist()
    for init in (*INITS, "pretrained@1"):
        everything, tenth = arm(init, 100), arm(init, 10)
        assert everything.test.accuracy > (0.9 if init == "frozen" else 0.95), init
        assert tenth.test.accuracy > (0.8 if init == "frozen" else 0.9), init
    assert weights_digest(arm("pretrained@1", 10).final_state) == weights_digest(tenth.final_state)


@pytest.fixture
def notebook() -> list[str]:
    """The code of docs/transfer.ipynb, cell by cell."""
    cells = json.loads((PAGE.parent / "transfer.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs(
    notebook: list[str], data_dir: Path, store: Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fresh_network(SMALL_SPEC, Streams(0))
    model = TrainedModel(SMALL_SPEC, Recipe(epochs=2), DEFAULT_SPLIT, dict(network.state_dict()), {})
    run_id = store.start(TUNING, "cnn2")
    set_best(store, register(store, run_id, "cnn2", model, tags={}, description="small"))
    monkeypatch.setenv("FMNIST_DATA_DIR", str(data_dir))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store_path))
    monkeypatch.chdir(PAGE.parent)
    monkeypatch.setattr(plt, "show", plt.close)
    names: dict[str, Any] = {}
    for code in notebook:
        exec(code, names)
    assert names["results"].keys() == {"pretrained", "random"}
    assert len(names["frame"]) == 120
    assert {verdict.verdict for verdict in names["verdicts"].values()} == {"holds"}
