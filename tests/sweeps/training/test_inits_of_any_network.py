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
from fmnist_transfer.network.cnn2 import fresh, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.evaluation import evaluate, features, predict, re_estimate_batch_norm
from fmnist_transfer.training.fit import fit, fit_and_score, fit_classifier
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch
from sweeps.grid import INITS, Init
from sweeps.training.inits import fit_arm, probing_epochs, starting_network, train_arm

RECIPE = Recipe(learning_rate=1e-2, epochs=5, batch_size=16, flip=True, shift=1, erase=0.3)
TARGET = Streams(0, 1, stage="target")


class Net(nn.Module):
    """Batch norm of both kinds, a parameter without a layer, and a classifier of two layers."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU())
        self.fc = nn.Sequential(nn.Linear(6 * 16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1))
        self.fc_out = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, n_classes))

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(self.conv(images * self.scale), 2).flatten(1)
        return self.fc_out(self.fc(hidden))


DRAW = partial(fresh, Net, classifier="fc_out")
CLASSIFIER = {"fc_out.0.weight", "fc_out.0.bias", "fc_out.1.weight", "fc_out.1.bias"}


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
    assert equal(state, own) == (set(own) if init == "random" else in_classifier)
    copied = equal(state, source)
    trunk = set(state) - in_classifier
    buffers = {name for name in trunk if "running" in name or "tracked" in name}
    if init in ("pretrained", "frozen", "lp-ft", "selffer"):
        assert copied == trunk
    elif init != "random":
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
    other_classes = source | {"fc_out.1.weight": torch.ones(9, 8)}
    assert equal(starting_network("pretrained", DRAW, other_classes, TARGET, "fc_out").state_dict(), source)


@pytest.mark.parametrize("name", ["fc3", "", "head.0"])
def test_an_unknown_classifier_is_named_beside_what_there_is(name: str, half: Half, source: dict[str, Tensor]) -> None:
    network = DRAW(Streams(0))
    message = f"'{name}'.*conv, fc, fc_out"
    with pytest.raises(UsageError, match=message):
        fresh(Net, Streams(0), name)
    with pytest.raises(UsageError, match=message):
        starting_network("random", DRAW, {}, Streams(0), name)
    with pytest.raises(UsageError, match=message):
        features(network, half.val, name)
    slow = dataclasses.replace(RECIPE, trunk_factor=0.5)
    with pytest.raises(UsageError, match=message):
        fit(network, half.train, half.val, slow, Streams(0), classifier=name)


def test_what_is_not_last_is_no_classifier(half: Half) -> None:
    with pytest.raises(UsageError, match="'fc'"):
        fit_classifier(DRAW(Streams(0)), half.train, half.val, RECIPE, Streams(0), classifier="fc")


def test_features_are_what_the_classifier_sees(half: Half) -> None:
    network = DRAW(Streams(0))
    seen = features(network, half.val, "fc_out")
    assert seen.images.shape == (len(half.val), 12)
    with torch.inference_mode():
        logits = network.fc_out(seen.images)
    assert torch.allclose(logits, predict(network, half.val), atol=1e-6)
    assert not network.fc_out._forward_hooks


def test_what_moves(half: Half, source: dict[str, Tensor]) -> None:
    for init in INITS:
        network = starting_network(init, DRAW, source, TARGET, "fc_out")
        start = copy_state(network)
        history = fit_arm(network, half.train, half.val, RECIPE, TARGET, init=init, classifier="fc_out")
        assert [epoch.step for epoch in history.epochs] == [9, 18, 27, 36, 45]
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, start[name])}
        everything = {name for name, _ in network.named_parameters()}
        assert moved == (CLASSIFIER if init == "frozen" else everything), init
        network.load_state_dict(history.best_state)
        assert history.best.val_loss == pytest.approx(evaluate(network, half.val).loss, rel=1e-4)


def test_lp_ft_trains_the_classifier_alone_for_a_fifth(half: Half, source: dict[str, Tensor]) -> None:
    network = starting_network("lp-ft", DRAW, source, TARGET, "fc_out")
    start, moved = copy_state(network), []

    def look(epoch: Epoch) -> None:
        moved.append({name for name, p in network.named_parameters() if not torch.equal(p, start[name])})

    recipe = dataclasses.replace(RECIPE, epochs=10)
    fit_arm(network, half.train, half.val, recipe, TARGET, init="lp-ft", on_epoch=look, classifier="fc_out")
    assert moved[:2] == [CLASSIFIER] * 2
    assert all(len(names) == len(list(network.parameters())) for names in moved[2:])
    with pytest.raises(UsageError, match="lp-ft"):
        probing_epochs(1)


def test_every_init_learns_and_says_how_far_it_moved(half: Half) -> None:
    streams = Streams(0)
    pretraining = fraction(half.train, 100, streams)
    pretrained = fit_and_score(DRAW(streams), pretraining, half, RECIPE, streams, classifier="fc_out").final_state
    train = fraction(half.train, 40, TARGET)
    assert torch.bincount(train.labels).tolist() == [10, 30, 20]
    digests = set()
    for init in INITS:
        result = train_arm(DRAW, train, half, RECIPE, TARGET, init=init, source=pretrained, classifier="fc_out")
        assert result.test.accuracy > 0.6, init
        assert set(result.distances) == {"scale", "conv.0", "conv.1", "fc.0", "fc.1", "fc_out.0", "fc_out.1", "all"}
        digests.add(weights_digest(result.final_state))
    assert len(digests) == len(INITS)


def test_the_trunk_may_learn_more_slowly_also_beside_a_name_that_begins_alike(half: Half) -> None:
    slow = dataclasses.replace(RECIPE, trunk_factor=1e-3, weight_decay=0.0)
    network = DRAW(Streams(0))
    start = copy_state(network)
    fit(network, half.train, half.val, slow, Streams(0), classifier="fc_out")
    moved = {name: float((tensor - start[name]).abs().max()) for name, tensor in copy_state(network).items()}
    assert max(moved["fc.0.weight"], moved["conv.0.weight"]) < 0.01 * moved["fc_out.0.weight"]


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


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier")])
def test_networks_of_torchvision_are_accepted(name: str, classifier: str, half: Half) -> None:
    draw = partial(fresh, partial(torchvision.models.get_model, name, num_classes=3), classifier=classifier)
    recipe = Recipe(epochs=2, batch_size=16, trunk_factor=0.5)
    few = half.train.take(torch.arange(0, 150, 9))
    small = dataclasses.replace(half, val=few, test=few)
    pretrained = draw(Streams(1)).state_dict()
    for init in ("pretrained", "frozen"):
        result = train_arm(draw, few, small, recipe, TARGET, init=init, source=pretrained, classifier=classifier)
        assert [epoch.step for epoch in result.epochs] == [1, 2]
        trunk = {layer: far for layer, far in result.distances.items() if not layer.startswith(classifier)}
        assert (sum(trunk.values()) - trunk["all"] > 0) == (init == "pretrained")
