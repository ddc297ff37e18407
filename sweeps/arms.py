"""How each init makes its starting network.

`pretrained` keeps every layer of the registered network but the classifier; `random` draws every layer anew. Within a
replicate both draw the same classifier, at every fraction.
"""

from collections.abc import Mapping

from torch import Tensor

from fmnist_transfer.model import CLASSIFIER, CNN2, CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from sweeps.grid import Init


def starting_network(init: Init, spec: CNN2Spec, registered: Mapping[str, Tensor], streams: Streams) -> CNN2:
    """The network that a cell starts to train, on the CPU.

    Args:
        spec: of the target's network: the registered one's with the target's number of classes.
        registered: weights and buffers of the registered network; its classifier is not used.
    """
    network = fresh_network(spec, streams)
    if init == "pretrained":
        own = network.state_dict()
        classifier = {name for name in own if name.startswith(f"{CLASSIFIER}.")}
        network.load_state_dict({name: own[name] if name in classifier else registered[name] for name in own})
    return network
