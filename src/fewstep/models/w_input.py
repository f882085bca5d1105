"""How w enters a network, and how one w is folded into its weights.

A network that has a slot for features of w (`time_cond_proj_dim` of a U-Net) is given them there.
To any other an input is added: a projection of the features, zero at first, whose result is added
to the input of the network's timestep embedders, as the slot of a U-Net does it.

The features are those of stock diffusers pipelines: `[sin, cos]` of
`1000 w exp(-k ln 10^4 / (half - 1))`. The fastest columns turn by 1,000 radians per unit of w, so
their values at two neighbouring w's have nothing to do with each other. fewstep feeds only the
columns slower than `BAND` while it trains, so the others' weights stay exactly zero, the knob is
smooth, and a stock pipeline, which feeds all of them, computes the same (decision 0003).

With the one feature `sin(0.1 w)`, the slowest sine, the contribution of w keeps its direction and
changes in strength alone, so that it can be exported as a LoRA of that strength.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.errors import FolderError
from fewstep.files.weights import quietly

if TYPE_CHECKING:
    from fewstep.models.families.family import Family

SCALE = 1000.0
BAND = 1.0  # radians per unit of w
# Which features are fed: the slower than so many radians per unit of w, all, or the slowest sine.
Band: TypeAlias = "float | Literal['one'] | None"
ONE: Literal["one"] = "one"
SLOT = "time_embedding.cond_proj"  # the input of a U-Net
ADDED = "w_projection"  # the input that is added to other networks
ADDED_AFTER = "w_input"  # of format 1, which added it to the output of the timestep embedders
# The names that the one new weight may have.
W_PARAMETERS = tuple(f"{name}.weight" for name in (SLOT, ADDED, ADDED_AFTER))
STEPS = "steps_projection"  # the input for the number of steps of an any-step student
# The names that new weights may have, of both inputs.
INPUTS = (*W_PARAMETERS, f"{STEPS}.weight")
# Ends the network's class in model_index.json, so that stock pipelines do not find it: they would
# draw without the input.
LIVE = "WithW"
ANY_STEPS = "WithSteps"  # likewise, of a network with an input for the number of steps

_Columns: TypeAlias = "tuple[Tensor, Tensor | None]"
_kept: dict[tuple[int, Band, torch.device], _Columns] = {}


def frequencies(dim: int) -> Tensor:
    """Return the (dim // 2,) frequencies in radians per unit of w, float32, from 1000 to 0.1."""
    return SCALE * _falling(dim)


def _falling(dim: int) -> Tensor:
    half = dim // 2
    return torch.exp(torch.arange(half) * -(math.log(1e4) / (half - 1)))


def w_features(w: Tensor, dim: int, band: Band = BAND) -> Tensor:
    """Return the features (B, dim), float32, of guidance weights w (B,).

    band: columns faster than so many radians per unit of w are zero; None keeps all, as a stock
    pipeline does; ONE keeps the column of `one_feature` alone. Source: the guidance embedding of
    diffusers' latent consistency pipelines.
    """
    falling, heard = _columns(dim, band, w.device)
    # In the order of the stock pipelines, so that the float32 rounding is theirs.
    turn = (SCALE * w.float())[:, None] * falling
    features = torch.cat([torch.sin(turn), torch.cos(turn)], dim=1)
    return features if heard is None else features * heard


def one_feature(dim: int) -> int:
    """Return the column of the slowest sine, sin(0.1 w), among `dim` features of w."""
    return dim // 2 - 1


def _columns(dim: int, band: Band, device: torch.device) -> _Columns:
    """Return (1, dim // 2) frequencies and (dim,) which features are fed, on the device.

    Kept, because a copy from the host would make every call wait for the device. (In a dict, since
    torch.compile traces the function behind functools' caches.)
    """
    if (dim, band, device) not in _kept:
        with torch.inference_mode(False):
            if band is None:
                heard = None
            elif band == ONE:
                heard = torch.arange(dim, device=device) == one_feature(dim)
            else:
                heard = (frequencies(dim) <= band).repeat(2).to(device)
            _kept[dim, band, device] = (_falling(dim)[None, :].to(device), heard)
    return _kept[dim, band, device]


class _Addend:
    """Hooks of the timestep embedders: add what the projections made in this call."""

    value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Addend:
        """Return hooks without a value, which belongs to a graph."""
        memo[id(self)] = copied = _Addend()
        return copied

    def before(self, embedder: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.value is None:
            return arguments
        given, value = arguments[0], self.value
        if given.ndim == 3:  # tokens between batch and features
            value = value[:, None]
        return (given + value, *arguments[1:])

    def after(self, embedder: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        return out if self.value is None else out + self.value

    def checkpoint(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Compute a part of the network again backward, with the value that it has now."""
        value = self.value

        def again(*inner: Any) -> Any:
            before, self.value = self.value, value
            try:
                return function(*inner)
            finally:
                self.value = before

        return checkpoint(again, *arguments, use_reentrant=False)


def projection_of(network: Any) -> nn.Linear | None:
    """Return the layer that projects the features of w; None where the network has no input."""
    name = added_name(network)
    if name is not None:
        added: nn.Linear = getattr(network, name)
        return added
    slot: nn.Linear | None = getattr(getattr(network, "time_embedding", None), "cond_proj", None)
    return slot


def steps_projection(network: Any) -> nn.Linear | None:
    """Return the layer that projects the number of steps; None where it is no input."""
    projection: nn.Linear | None = getattr(network, STEPS, None)
    return projection


def added_name(network: Any) -> str | None:
    """Return the name of the input that was added to a network; None where there is none."""
    return next((name for name in (ADDED, ADDED_AFTER) if hasattr(network, name)), None)


def features_of(network: Any) -> int | None:
    """Return how many features of w a network takes; None where it has no input for them."""
    projection = projection_of(network)
    return None if projection is None else projection.in_features


def first_layer(embedder: Any) -> nn.Linear:
    """Return the layer that takes an embedder's input; Chroma has an approximator in its place."""
    layer: nn.Linear = embedder.in_proj if hasattr(embedder, "in_proj") else embedder.linear_1
    return layer


def add_w_input(network: Any, family: Family, dim: int) -> None:
    """Give a network that has none an input for w, whose weight is zero: it changes nothing yet.

    dim: number of features of w.
    """
    embedders = family.embedders(network)
    projection = zero_linear(dim, first_layer(embedders[0]))
    if family.slot == "features":
        network.time_embedding.cond_proj = projection
        network.register_to_config(time_cond_proj_dim=dim)
        return
    attach(network, embedders, ADDED, projection)


def restore_w_input(network: Any, family: Family, name: str, weight: Tensor) -> None:
    """Give a network without a slot the input of a saved student.

    name: `ADDED`, or `ADDED_AFTER`, which is added to the output of the embedders. weight: (D, dim)
    with D the size of what it is added to. Raises FolderError where D is another number.
    """
    embedders = family.embedders(network)
    first = embedders[0]
    size = first_layer(first).in_features if name == ADDED else first.linear_2.out_features
    if weight.ndim != 2 or len(weight) != size:
        raise FolderError(
            f"{name}.weight must be a matrix of {size} rows, got the shape {list(weight.shape)}. "
            "Copy the whole folder again."
        )
    projection = zero_linear(weight.shape[1], first_layer(first), size)
    with torch.no_grad():
        projection.weight.copy_(weight)
    attach(network, embedders, name, projection)


def attach(network: Any, embedders: Sequence[Any], name: str, projection: nn.Linear) -> None:
    """Give a network an input whose projection is added to the embedders, or after them."""
    setattr(network, name, projection)
    if hasattr(network, "w_addend"):  # of the other input
        return
    network.w_addend = _Addend()
    for embedder in embedders:
        if name == ADDED_AFTER:
            embedder.register_forward_hook(network.w_addend.after)
        else:
            embedder.register_forward_pre_hook(network.w_addend.before)


@contextlib.contextmanager
def adding(network: Any, w: Tensor | None, steps: Tensor | None = None) -> Iterator[None]:
    """Let a network with added inputs add its projections of their features (B, dim) inside.

    w, steps: features of each; None adds nothing.
    """
    inputs = ((projection_of(network), w), (steps_projection(network), steps))
    values = [layer(of) for layer, of in inputs if layer is not None and of is not None]
    if not values:
        yield
        return
    network.w_addend.value = values[0] if len(values) == 1 else values[0] + values[1]
    try:
        yield
    finally:
        network.w_addend.value = None


def checkpoint_activations(network: Any) -> None:
    """Let a network of diffusers compute activations again in the backward pass."""
    if not hasattr(network, "w_addend"):
        network.enable_gradient_checkpointing()
    else:
        network.enable_gradient_checkpointing(network.w_addend.checkpoint)


def fold(network: Any, family: Family, w: float, band: Band) -> Any:
    """Return a copy of the network in which one w is fixed, without an input for it.

    What features of one w add before the first layer of an embedder is a constant, so it is a bias:
    `b += W1 P f(w)`. A slot for w itself is fixed by the family. The copy is a stock network of the
    teacher's class, whose answers are those of `network` at this w but for rounding. The network
    has an input for w, and no adapter.

    band: of the features, as the card says.
    """
    if family.fix is not None:
        changes, weights = family.fix(network, w)
        stock = rebuilt(network, changes)
        stock.load_state_dict(weights)
        return stock.train(network.training)
    projection = projection_of(network)
    assert projection is not None
    slot = {"time_cond_proj_dim": None} if family.slot == "features" else {}
    stock = rebuilt(network, slot)
    stock.load_state_dict({k: t for k, t in network.state_dict().items() if k not in W_PARAMETERS})
    features = w_features(torch.tensor([w], device=network.device), projection.in_features, band)
    with torch.no_grad():
        after = added_name(network) == ADDED_AFTER
        constant = projection.weight.double() @ features[0].double()
        for embedder in family.embedders(stock):
            if after:
                second = embedder.linear_2
                second.bias += constant.to(second.bias.dtype)
            else:
                first = first_layer(embedder)
                first.bias.add_((first.weight.double() @ constant).to(first.bias.dtype))
    return stock.train(network.training)


def with_slot(network: Any, dim: int) -> Any:
    """Return a copy of a U-Net with its stock input for w, whose weight is zero.

    Its parameters are in the order of the stock network, which `add_w_input` does not keep: the
    state of an optimiser is known by it.
    """
    made = rebuilt(network, {"time_cond_proj_dim": dim})
    made.load_state_dict(network.state_dict(), strict=False)
    nn.init.zeros_(made.time_embedding.cond_proj.weight)
    return made


def rebuilt(network: Any, changes: dict[str, Any]) -> Any:
    """Return a new network of the same class and config, but for some changes of the config."""
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    # It draws weights that are replaced, and warns of settings that it does not know (the size).
    with torch.random.fork_rng(devices=[]), quietly():
        made = type(network).from_config({**config, **changes})
    made.to(network.device)
    return made if made.dtype == network.dtype else made.to(network.dtype)


def zero_linear(dim: int, beside: nn.Linear, out: int | None = None) -> nn.Linear:
    """Return a layer without a bias, of zeros, in the place and dtype of another."""
    weight = beside.weight
    made: nn.Linear = nn.utils.skip_init(
        nn.Linear,
        dim,
        beside.in_features if out is None else out,
        bias=False,
        device=weight.device,
        dtype=weight.dtype,
    )
    nn.init.zeros_(made.weight)
    return made
