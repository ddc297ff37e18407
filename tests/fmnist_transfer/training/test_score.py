"""Scores of a finished training, and of each of its images."""

import numpy as np
import pytest
import torch

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import use_precision
from fmnist_transfer.training.evaluation import evaluate
from fmnist_transfer.training.fit import fit_and_score
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Result, pack_image_scores, unpack_image_scores

SPEC = CNN2Spec((4, 8), fc1=16, fc2=8)


@pytest.fixture(scope="module")
def result(half: Half) -> Result:
    """A training whose best epoch is not its last."""
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.1, schedule="constant")
    result = fit_and_score(fresh_network(SPEC, Streams(0)), half.train, half, recipe, Streams(0))
    assert result.best_epoch < 8
    return result


def test_the_means_of_the_images_are_the_logged_scores(result: Result, half: Half) -> None:
    images = {key: array.astype(float) for key, array in unpack_image_scores(pack_image_scores(result)).items()}
    logged = result.to_dict()
    means = {
        "val_final_loss": logged["final"]["val_loss"],
        "val_best_loss": logged["best"]["val_loss"],
        "val_scaled_loss": logged["final"]["val_scaled_loss"],
        "test_final_loss": logged["test"]["loss"],
        "test_best_loss": logged["test"]["best_loss"],
        "test_scaled_loss": logged["test"]["scaled_loss"],
    }
    assert set(means) | {"val_class", "test_class", "val_label", "test_label"} == set(images)
    for key, mean in means.items():
        assert images[key].mean() == pytest.approx(mean, rel=1e-3), key
    val, test = images["val_class"] == half.val.labels.numpy(), images["test_class"] == half.test.labels.numpy()
    assert val.mean() == logged["final"]["val_accuracy"]
    assert test.mean() == logged["test"]["accuracy"]
    assert np.concatenate([val, test]).mean() == pytest.approx(logged["heldout"]["accuracy"])
    losses = np.concatenate([images["val_final_loss"], images["test_final_loss"]])
    assert losses.mean() == pytest.approx(logged["heldout"]["loss"], rel=1e-3)


def test_scores_of_images_are_in_the_order_of_the_half(result: Result, half: Half) -> None:
    network = fresh_network(SPEC, Streams(0))
    network.load_state_dict(result.final_state)
    for i in range(3):
        image = Examples(half.test.images[i : i + 1], half.test.labels[i : i + 1])
        loss = evaluate(network, image).loss
        assert float(result.image_scores["test_final_loss"][i]) == pytest.approx(loss, rel=1e-3, abs=1e-6)


def test_the_file_of_a_whole_half_is_small(result: Result) -> None:
    packed = pack_image_scores(result)
    assert packed == pack_image_scores(result)
    types = {key: array.dtype for key, array in unpack_image_scores(packed).items()}
    assert set(types.values()) == {np.dtype(np.float16), np.dtype(np.uint8)}
    assert 5_000 * sum(kind.itemsize for kind in types.values()) == 80_000  # before compression


def test_a_damaged_file_of_scores_is_refused(result: Result) -> None:
    packed = pack_image_scores(result)
    for damaged in (b"", b"junk", packed[:-40], packed[:200] + bytes(50) + packed[250:]):
        with pytest.raises(ModelError):
            unpack_image_scores(damaged)


def test_scores_are_computed_in_float32_whatever_the_training_used(half: Half) -> None:
    network = fresh_network(SPEC, Streams(0))
    recipe = Recipe(epochs=1, batch_size=32)
    result = fit_and_score(network, half.train, half, recipe, Streams(0), precision="tf32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    use_precision("float32")
    assert result.test.loss == pytest.approx(evaluate(network, half.test).loss, rel=1e-6)
    rounded = fit_and_score(fresh_network(SPEC, Streams(0)), half.train, half, recipe, Streams(0), precision="bf16")
    network.load_state_dict(rounded.final_state)
    assert rounded.test.loss == pytest.approx(evaluate(network, half.test).loss, rel=1e-6)
