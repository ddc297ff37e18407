"""The benchmark of the engines, on small work: every engine gives every figure."""

import pytest

from fmnist_transfer.data import Half
from fmnist_transfer.engines import engines, measure_engines
from fmnist_transfer.findings import Findings
from fmnist_transfer.model import CNN2Spec
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.speed import Workload

pytestmark = pytest.mark.cluster


def test_every_engine_gives_every_figure(half: Half) -> None:
    findings = Findings()
    spec = CNN2Spec(channels=(4, 8), fc1=16, fc2=16)
    work = Workload(spec, Recipe(batch_size=32, epochs=2), half.train, half.val, "cpu")
    measure_engines(work, 2, findings, n_rounds=1)
    names = [line.name for line in findings.lines]
    for engine in engines():
        assert f"start-up, {engine.name}" in names
        assert f"overhead of a task, {engine.name}" in names
    assert "ray to worker processes, 2 workers" in names
    assert all(line.spread.min > 0 for line in findings.lines)
