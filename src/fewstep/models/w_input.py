"""How w enters a network, and how one w is folded into its weights.

A network that has a slot for features of w (`time_cond_proj_dim` of a U-Net) is given them there.
To any other an input is added: a projection of the features, zero at first, whose result is added
to the input of the network's timestep embedders, as the slot of a U-Net does it.

The features are those of stock diffusers pipelines: `[sin, cos]` of
`1000 w exp(-k ln 10^4 / (half - 1))`. The fastest columns turn by 1,000 radians a unit of w: a
hash, of which nothing can be learnt between two trained w's. fewstep feeds only the columns slower
than `BAND` while it trains, so the others' weights stay exactly zero, the knob is smooth, and a
stock pipeline, which feeds all of them, computes the same (decision 0003).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from fewstep.errors import FolderError, RangeError

if TYPE_CHECKING:
    from fewstep.models.families.family import Family

SCALE = 1000.0
BAND = 1.0  # radians a unit of w
SLOT = "time_embedding.cond_proj"  # the input of a U-Net
ADDED = "w_input"  # the input that is added to other networks
ADDED_WEIGHT = f"{ADDED}.weight"
W_PARAMETERS = (f"{SLOT}.weight", ADDED_WEIGHT)  # the one new weight, by its name
# In model_index.json, which stock pipelines cannot find: they would draw without the input.
LIVE = "WithW"  # after the network's class, where an input was added to it
AT_OUTPUT = "DiTWithW"  # of format 1, whose input was added to the output of the embedders

_Columns: TypeAlias = "tuple[Tensor, Tensor | None]"
_kept: dict[tuple[int, float | None, torch.device], _Columns] = {}


def frequencies(dim: int) -> Tensor:
    """Return the (dim // 2,) frequencies in radians a unit of w, float32, from 1000 to 0.1."""
    return SCALE * _falling(dim)


def _falling(dim: int) -> Tensor:
    half = dim // 2
    return torch.exp(torch.arange(half) * -(math.log(1e4) / (half - 1)))


def w_features(w: Tensor, dim: int, band: float | None = BAND) -> Tensor:
    """Return the features (B, dim), float32, of guidance weights w (B,).

    band: columns faster than so many radians a unit of w are zero; None keeps all, as a stock
    pipeline does. Source: the guidance embedding of diffusers' latent consistency pipelines.
    """
    falling, heard = _columns(dim, band, w.device)
    # In the order of the stock pipelines, so that the float32 rounding is theirs.
    turn = (SCALE * w.float())[:, None] * falling
    features = torch.cat([torch.sin(turn), torch.cos(turn)], dim=1)
    return features if heard is None else features * heard


def _columns(dim: int, band: float | None, device: torch.device) -> _Columns:
    """Return (1, dim // 2) frequencies and (dim,) which features are fed, on the device.

    Kept, because a copy from the host would make every call wait for the device. (In a dict, since
    torch.compile looks through functools' caches.)
    """
    if (dim, band, device) not in _kept:
        with torch.inference_mode(False):
            heard = None if band is None else (frequencies(dim) <= band).repeat(2).to(device)
            _kept[dim, band, device] = (_falling(dim)[None, :].to(device), heard)
    return _kept[dim, band, device]


class _Told:
    """Hooks of the timestep embedders: add what the projection made of w.

    It stays until the next call, so that activations can be computed again backward.
    """

    def __init__(self, *, at_output: bool = False) -> None:
        self.at_output = at_output
        self.projected: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        """Return hooks that were told nothing: what they were told belongs to a graph."""
        memo[id(self)] = copied = _Told(at_output=self.at_output)
        return copied

    def before(self, embedder: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.projected is None:
            return arguments
        return (arguments[0] + self.projected, *arguments[1:])

    def after(self, embedder: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        return out if self.projected is None else out + self.projected


def projection_of(network: Any) -> nn.Linear | None:
    """Return the layer that projects the features of w; None where the network has no input."""
    added = getattr(network, ADDED, None)
    slot = getattr(getattr(network, "time_embedding", None), "cond_proj", None)
    found: nn.Linear | None = slot if added is None else added
    return found


def features_of(network: Any) -> int | None:
    """Return how many features of w a network takes; None where it has no input for them."""
    projection = projection_of(network)
    return None if projection is None else projection.in_features


def add_w_input(network: Any, family: Family, dim: int) -> None:
    """Give a network that has none an input for w, whose weight is zero: it changes nothing yet.

    dim: number of features of w.
    """
    embedders = family.embedders(network)
    projection = _zero_linear(dim, embedders[0].linear_1)
    if family.slot == "features":
        network.time_embedding.cond_proj = projection
        network.register_to_config(time_cond_proj_dim=dim)
        return
    setattr(network, ADDED, projection)
    network.told_w = _Told()
    for embedder in embedders:
        embedder.register_forward_pre_hook(network.told_w.before)


def restore_w_input(network: Any, family: Family, weight: Tensor, *, after: bool) -> None:
    """Give a network without a slot the input of a saved student, of weight (D, dim).

    after: add the projection to the output of the embedders, as folders of format 1 did, where D is
    the size of that output. Raises FolderError where D is another number.
    """
    embedders = family.embedders(network)
    first = embedders[0]
    size = first.linear_2.out_features if after else first.linear_1.in_features
    if weight.ndim != 2 or len(weight) != size:
        raise FolderError(
            f"{ADDED}.weight must be a matrix of {size} rows, got the shape {list(weight.shape)}. "
            "Copy the whole folder again."
        )
    if after:
        setattr(network, ADDED, _zero_linear(weight.shape[1], first.linear_1, size))
        network.told_w = _Told(at_output=True)
        for embedder in embedders:
            embedder.register_forward_hook(network.told_w.after)
    else:
        add_w_input(network, family, weight.shape[1])
    with torch.no_grad():
        getattr(network, ADDED).weight.copy_(weight)


def tell(network: Any, features: Tensor) -> None:
    """Tell a network with an added input the features (B, dim) of its next call."""
    network.told_w.projected = getattr(network, ADDED)(features)


def fold(network: Any, family: Family, w: float, band: float | None) -> Any:
    """Return a copy of the network in which one w is fixed, without an input for it.

    What w adds before the first layer of an embedder is a constant for one w, so it is a bias:
    `b += W1 P f(w)`. The copy is a stock network of the teacher's class, whose answers are those of
    `network` at this w but for rounding. An adapter must have been merged.

    band: of the features, as the card says. Raises RangeError where there is no input for w.
    """
    projection = projection_of(network)
    if projection is None:
        raise RangeError("only a network with an input for w can be folded, and this has none.")
    slot = {"time_cond_proj_dim": None} if family.slot == "features" else {}
    stock = _rebuilt(network, slot)
    stock.load_state_dict({k: t for k, t in network.state_dict().items() if k not in W_PARAMETERS})
    features = w_features(torch.tensor([w], device=network.device), projection.in_features, band)
    with torch.no_grad():
        at_output = getattr(network, "told_w", _Told()).at_output
        constant = projection.weight.double() @ features[0].double()
        for embedder in family.embedders(stock):
            first, second = embedder.linear_1, embedder.linear_2
            if at_output:
                second.bias += constant.to(second.bias.dtype)
            else:
                first.bias += (first.weight.double() @ constant).to(first.bias.dtype)
    return stock.train(network.training)


def with_slot(network: Any, dim: int) -> Any:
    """Return a copy of a U-Net with its stock input for w, whose weight is zero.

    Its parameters are in the order of the stock network, which `add_w_input` does not keep: the
    state of an optimiser is known by it.
    """
    made = _rebuilt(network, {"time_cond_proj_dim": dim})
    made.load_state_dict(network.state_dict(), strict=False)
    nn.init.zeros_(made.time_embedding.cond_proj.weight)
    return made


def _rebuilt(network: Any, changes: dict[str, Any]) -> Any:
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    made = type(network).from_config({**config, **changes}).to(network.device)
    return made if made.dtype == network.dtype else made.to(network.dtype)


def _zero_linear(dim: int, beside: nn.Linear, out: int | None = None) -> nn.Linear:
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
