"""The inits of CNN2 and of any module with a named classifier, on RGB images and unbalanced classes, too."""

import dataclasses
from functools import partial

import pytest
import torch
import torchvision
from synthetic import SMALL_SPEC
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half, fraction, half_of
from fmnist_transfer.errors import ModelError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.evaluation import features, predict, re_estimate_batch_norm
from fmnist_transfer.training.fit import fit, fit_and_score
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, Result
from sweeps.grid import INITS, Init
from sweeps.training.inits import copied_tensors, starting_network, train_arm, trunk_of

RECIPE = Recipe(learning_rate=1e-2, epochs=5, batch_size=16, flip=True, shift=1)
TARGET = Streams(0, 1, stage="target")


class Net(nn.Module):
    """Batch norm of both kinds, a parameter without a layer, and a layer after the last activation."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU())
        self.fc = nn.Sequential(nn.Linear(6 * 16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1))
        self.fc_last = nn.Linear(12, 8)
        self.fc_out = nn.Linear(8, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(self.conv(images * self.scale), 2).flatten(1)
        return self.fc_out(self.fc_last(self.fc(hidden)))


DRAW = partial(fresh, Net, classifier="fc_out")
CLASSIFIER = {"fc_out.weight", "fc_out.bias"}


@pytest.fixture(scope="module")
def half() -> Half:
    """RGB images of 8 x 8 of three classes of very different sizes, easily told apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 90 + [2] * 60)
    patterns = torch.randn(3, 3, 8, 8, generator=generator)
    images = patterns[labels] + 0.5 * torch.randn(180, 3, 8, 8, generator=generator)
    whole = Examples(images, labels)
    return half_of(whole, whole, range(3))


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    network = DRAW(Streams(99))
    network.train()(torch.randn(16, 3, 8, 8))
    return {name: tensor + 1 for name, tensor in network.state_dict().items()}  # no constant of a fresh network


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in one if torch.equal(one[name], other[name])}


def test_a_fresh_network_is_decided_by_its_streams_and_moves_no_global_state() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = weights_digest(DRAW(Streams(1)).state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert weights_digest(DRAW(Streams(1)).state_dict()) == one
    assert weights_digest(DRAW(Streams(2)).state_dict()) != one


def test_trunk_and_classifier_have_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one = DRAW(Streams(1)).state_dict()
    seed = Streams.seed
    monkeypatch.setattr(Streams, "seed", lambda streams, purpose: seed(streams, purpose) + (purpose == "classifier"))
    other = DRAW(Streams(1)).state_dict()
    assert set(one) - equal(one, other) == CLASSIFIER


def test_an_initialisation_of_its_own_is_kept() -> None:
    build = partial(torchvision.models.VisionTransformer, 8, 4, 1, 2, 8, 16, num_classes=3)
    network = fresh(build, Streams(0), "heads")
    assert not bool(network.heads.head.weight.any())  # so torchvision begins
    assert bool(network.conv_proj.weight.any())


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("network", ["Net", "CNN2"])
def test_every_init_draws_the_same_classifier_and_nothing_else_alike(
    init: Init, network: str, source: dict[str, Tensor], registered: dict[str, Tensor]
) -> None:
    draw, classifier = DRAW, "fc_out"
    if network == "CNN2":
        draw, source, classifier = partial(fresh_network, SMALL_SPEC), registered, "fc3"
    state = starting_network(init, draw, source, TARGET, classifier).state_dict()
    own = draw(TARGET).state_dict()
    in_classifier = {name for name in own if name.startswith(f"{classifier}.")}
    is_random = init in ("random", "random-twice")
    assert equal(state, own) == (set(own) if is_random else in_classifier)
    copied = equal(state, source)
    trunk = set(state) - in_classifier
    buffers = {name for name in trunk if "running" in name or "tracked" in name}
    if init in ("pretrained", "frozen", "lp-ft", "selffer"):
        assert copied == trunk
    elif not is_random:
        assert buffers <= copied
    if init == "shrink-perturb":
        for name in trunk - buffers:
            assert torch.equal(state[name], 0.4 * source[name] + 0.1 * own[name])
    if init == "matched":
        for name in trunk - buffers:
            assert float(state[name].mean()) == pytest.approx(float(source[name].mean()), abs=1e-5)
            deviations = [float(tensor[name].std(correction=0)) for tensor in (state, source)]
            assert deviations[0] == pytest.approx(deviations[1], abs=1e-5)
            if deviations[1] > 0.01 and state[name].numel() > 16:
                both = torch.stack([state[name].flatten(), source[name].flatten()])
                assert abs(float(torch.corrcoef(both)[0, 1])) < 0.9


def test_a_source_that_does_not_fit_is_listed(source: dict[str, Tensor]) -> None:
    wrong = source | {"extra": torch.ones(2), "fc.0.weight": torch.ones(12, 90)}
    del wrong["scale"]
    with pytest.raises(ModelError) as caught:
        starting_network("pretrained", DRAW, wrong, TARGET, "fc_out")
    assert set(str(caught.value).splitlines()[1:]) == {
        "- scale (1,) torch.float32",
        "- fc.0.weight (12, 96) torch.float32",
        "+ fc.0.weight (12, 90) torch.float32",
        "+ extra (2,) torch.float32",
    }
    other_classes = source | {"fc_out.weight": torch.ones(9, 8)}
    assert equal(starting_network("pretrained", DRAW, other_classes, TARGET, "fc_out").state_dict(), source)


@pytest.mark.parametrize("name", ["fc3", "", "head.0"])
def test_an_unknown_classifier_is_named_beside_what_there_is(name: str, half: Half, source: dict[str, Tensor]) -> None:
    network = DRAW(Streams(0))
    message = f"'{name}'.*conv, fc, fc_last, fc_out"
    with pytest.raises(UsageError, match=message):
        fresh(Net, Streams(0), name)
    with pytest.raises(UsageError, match=message):
        starting_network("random", DRAW, {}, Streams(0), name)
    with pytest.raises(UsageError, match=message):
        features(network, half.val, name)


def test_features_are_what_the_classifier_sees(half: Half) -> None:
    network = DRAW(Streams(0))
    seen = features(network, half.val, "fc_out")
    assert seen.images.shape == (len(half.val), 8)
    with torch.inference_mode():
        logits = network.fc_out(seen.images)
    assert torch.allclose(logits, predict(network, half.val), atol=1e-6)
    assert not network.fc_out._forward_hooks


def arm(init: Init, half: Half, source: dict[str, Tensor], **options: object) -> Result:
    return train_arm(DRAW, half.train, half, RECIPE, TARGET, init=init, source=source, classifier="fc_out", **options)


@pytest.mark.parametrize("init", [*INITS, "pretrained@2"])
def test_what_moves_and_for_how_long(init: Init, half: Half, source: dict[str, Tensor]) -> None:
    seen: list[Epoch] = []
    result = arm(init, half, source, on_epoch=seen.append)
    assert result.epochs == tuple(seen)
    if init == "frozen":
        assert [epoch.epoch for epoch in seen] == [result.best_epoch] == [1]
    else:
        assert [epoch.step for epoch in seen] == [9 * i for i in range(1, 11 if init == "random-twice" else 6)]
    moved = {layer for layer, distance in result.distances.items() if distance}
    assert moved == ({"fc_out", "all"} if init == "frozen" else set(result.distances)), init


def test_lp_ft_trains_all_layers_from_the_frozen_networks_optimum(half: Half, source: dict[str, Tensor]) -> None:
    network = starting_network("frozen", DRAW, source, TARGET, "fc_out")
    network.load_state_dict(arm("frozen", half, source).final_state)
    fit(network, half.train, half.val, RECIPE, TARGET)
    assert weights_digest(network.state_dict()) == weights_digest(arm("lp-ft", half, source).final_state)


def test_the_first_layers_are_copied_with_their_norm(source: dict[str, Tensor]) -> None:
    own = DRAW(TARGET).state_dict()
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layers = [
        {"scale", "conv.0.weight", "conv.0.bias", *(f"conv.1.{name}" for name in norm)},
        {"fc.0.weight", "fc.0.bias", *(f"fc.1.{name}" for name in norm)},
        {"fc_last.weight", "fc_last.bias"},
    ]
    for k in (1, 2, 3):
        state = starting_network(f"pretrained@{k}", DRAW, source, TARGET, "fc_out").state_dict()
        assert equal(state, source) == set().union(*layers[:k])
        assert equal(state, own) == set(own) - set().union(*layers[:k])
    with pytest.raises(UsageError, match=r"pretrained@4.*\b3 layers"):
        starting_network("pretrained@4", DRAW, source, TARGET, "fc_out")


def test_layers_of_cnn2_are_its_convolutions_then_its_fully_connected_ones() -> None:
    trunk = trunk_of(fresh_network(CNN2Spec((2, 3), convs_per_block=2, fc1=4, fc2=3), Streams(0)).state_dict())
    last = []  # weight of the last layer
    for k in range(1, 7):
        last.append([name for name in copied_tensors(f"pretrained@{k}", trunk) if trunk[name].dim() > 1][-1])
    assert last == [
        *(f"blocks.{block}.{conv}.weight" for block in (0, 1) for conv in (0, 3)),
        "fc1.weight",
        "fc2.weight",
    ]
    assert copied_tensors("pretrained@6", trunk) == copied_tensors("pretrained", trunk) == list(trunk)


@pytest.mark.parametrize("init", ["pretrained@", "pretrained@0", "pretrained@-1", "pretrained@1.5", "random@1", "x"])
def test_an_unknown_init_is_refused(init: Init) -> None:
    with pytest.raises(UsageError, match=rf"{init}.*random.*pretrained@K"):
        starting_network(init, DRAW, {}, TARGET, "fc_out")


def test_every_init_learns_and_says_how_far_it_moved(half: Half) -> None:
    streams = Streams(0)
    pretraining = fraction(half.train, 100, streams)
    pretrained = fit_and_score(DRAW(streams), pretraining, half, RECIPE, streams).final_state
    train = fraction(half.train, 40, TARGET)
    assert torch.bincount(train.labels).tolist() == [10, 30, 20]
    digests = set()
    for init in INITS:
        result = train_arm(DRAW, train, half, RECIPE, TARGET, init=init, source=pretrained, classifier="fc_out")
        assert result.test.accuracy > 0.6, init
        assert set(result.distances) == {"scale", "conv.0", "conv.1", "fc.0", "fc.1", "fc_last", "fc_out", "all"}
        digests.add(weights_digest(result.final_state))
    assert len(digests) == len(INITS)


def test_batch_norm_of_every_kind_is_re_estimated_and_keeps_its_momentum(half: Half) -> None:
    network = DRAW(Streams(0))
    re_estimate_batch_norm(network, half.train)
    estimated = copy_state(network)
    network.conv.train()  # as when the statistics of what follows were taken
    with torch.no_grad():
        convolved = network.conv[0](half.train.images)
        hidden = network.fc[0](nn.functional.max_pool2d(network.conv(half.train.images), 2).flatten(1))
    assert torch.allclose(estimated["conv.1.running_mean"], convolved.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(estimated["fc.1.running_mean"], hidden.mean(dim=0), atol=1e-5)
    assert (network.conv[1].momentum, network.fc[1].momentum) == (0.3, 0.1)


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_networks_of_torchvision_are_accepted(name: str, classifier: str, half: Half) -> None:
    draw = partial(fresh, partial(torchvision.models.get_model, name, num_classes=3), classifier=classifier)
    recipe = Recipe(epochs=2, batch_size=16)
    few = half.train.take(torch.arange(0, 150, 9))
    small = dataclasses.replace(half, val=few, test=few)
    pretrained = draw(Streams(1)).state_dict()
    for init in ("pretrained", "frozen"):
        result = train_arm(draw, few, small, recipe, TARGET, init=init, source=pretrained, classifier=classifier)
        assert len(result.epochs) == (1 if init == "frozen" else 2)
        trunk = {layer: far for layer, far in result.distances.items() if not layer.startswith(classifier)}
        assert (sum(trunk.values()) - trunk["all"] > 0) == (init == "pretrained")
