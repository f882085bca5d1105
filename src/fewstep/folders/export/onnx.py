"""`onnx`: a student's network and its autoencoder's decoder, for onnxruntime.

The network is exported as it is, with its input for w: (sample, timestep, w, conditions) ->
prediction. What a sampler needs beside it is in the metadata of the file (`_metadata`), so that
it can be written from the file alone; `examples/onnx_sampler.py` is one.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.atomic import atomic_folder
from fewstep.core.cond import Cond, repeat_null
from fewstep.errors import GridError, MissingError, RangeError
from fewstep.folders.export.format import Format, Options, sha256_of
from fewstep.folders.vae import load_vae
from fewstep.models.card import OWN
from fewstep.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from fewstep.models.lora import merged
from fewstep.models.model import Model
from fewstep.models.student import fold_w
from fewstep.models.vae import decoded, mean_and_scale

NETWORK, DECODER = "model.onnx", "decoder.onnx"
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of onnxruntime's answers, times the largest one where that is above 1
# Numbers of steps whose grids are written of a student for any number, where its clock has them.
GRIDS = (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 64, 100, 128)
# Parts of a condition, under the names that diffusers' networks have for them.
INPUTS = {
    "text": "encoder_hidden_states",
    "mask": "encoder_attention_mask",
    "pooled": "pooled_projections",
    "time_ids": "time_ids",
}


class _Network(nn.Module):
    """A model's network as a function of one tuple: sample, timestep, w unless folded, conditions.

    keys: of a condition that is a dict; None for one that is a tensor.
    """

    def __init__(self, model: Model, keys: Sequence[str] | None) -> None:
        super().__init__()
        self.model, self.keys = model, keys
        self.kind = type(model.network).__name__

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        sample, timestep, *rest = inputs
        w = rest.pop(0) if self.model.takes_w else torch.zeros_like(timestep)
        cond = rest[0] if self.keys is None else dict(zip(self.keys, rest, strict=True))
        return self.model.predict(sample, timestep, cond, w)


class _Decoder(nn.Module):
    """An autoencoder as a function of one tuple, the clean latents of the network."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.kind = type(vae).__name__

    def forward(self, inputs: tuple[Tensor]) -> Tensor:
        return decoded(self.vae, inputs[0])


def write(model: Model, out: Path, options: Options) -> tuple[str, ...]:
    """Write the network and, for a model of latents, the decoder.

    Both are run by onnxruntime before the folder appears, and must answer as torch does.
    """
    _check_packages()
    _check(model)
    if options.w is not None:
        model = fold_w(model, options.w)
    network = merged(model.network)
    if network.device.type != "cpu":
        network = copy.deepcopy(network).cpu()
    model = Model(network, model.card, model.clock, model.source).eval()
    names, lines = _names(model), []
    keys = sorted(model.null_cond) if isinstance(model.null_cond, dict) else None
    with atomic_folder(out, NETWORK) as partial, _quietly(), torch.no_grad():
        scaled = None
        if model.source is not None:
            vae = load_vae(model.source)
            latents = torch.randn(3, *model.card.shape, generator=torch.Generator().manual_seed(0))
            scaled = _scaled(vae)
            try:
                off = _export(
                    _Decoder(vae), (latents,), ("latents",), "images", {}, partial / DECODER
                )
                lines.append(f"{DECODER}: images within {off:.1g} of torch's")
            except RangeError as error:
                for file in partial.glob(f"{DECODER}*"):
                    file.unlink()
                scaled["decoder"] = None
                lines.append(f"{DECODER} is left out: {error}")
        metadata = _metadata(model, options.w, scaled)
        off = _export(
            _Network(model, keys), _example(model, keys), names, "prediction", metadata,
            partial / NETWORK,
        )  # fmt: skip
    shown = f"{NETWORK}: opset {OPSET}, any batch; inputs {', '.join(names)}; within {off:.1g}"
    return (f"{shown} of torch's answers", *lines)


def _check_packages() -> None:
    try:
        for name in PACKAGES:
            __import__(name)
    except ImportError:
        raise MissingError(
            f"an export to ONNX needs the packages {', '.join(PACKAGES)}. In the clone of "
            'fewstep, run: pip install -e ".[onnx]"'
        ) from None
    if not hasattr(torch.export, "Dim") or not hasattr(torch.export.Dim, "AUTO"):
        raise MissingError(
            f"an export to ONNX needs torch 2.6 or newer, got {torch.__version__}: pip install -U "
            "torch"
        )


def _check(model: Model) -> None:
    """Raise RangeError unless the model is a student of one pass in a network of diffusers."""
    card = model.card
    if card.family == OWN:
        found = "a module of your own. Use torch.onnx.export on the module itself"
    elif card.is_teacher or card.pair:
        found = "one that is guided by two passes. Distil its guidance first"
    else:
        return
    raise RangeError(f"{card.name} must be a student of one pass to become ONNX, got {found}.")


def _names(model: Model) -> tuple[str, ...]:
    """Return the names of the inputs, in their order."""
    names = {**INPUTS}
    if model.family.name == STABLE_DIFFUSION_XL.name:
        names["pooled"] = "text_embeds"
    null = model.null_cond
    if isinstance(null, dict):
        conds = [names[key] for key in sorted(null)]
    else:
        conds = [names["text"] if model.family.takes_prompts else "class_labels"]
    return ("sample", "timestep", *(["w"] if model.takes_w else []), *conds)


def _example(model: Model, keys: Sequence[str] | None) -> tuple[Tensor, ...]:
    """Return inputs of a batch of 3, on which the export is tried.

    Conditions have the shapes of the null condition, with random embeddings and every token used.
    """
    draws = torch.Generator().manual_seed(0)
    sample = torch.randn(3, *model.card.shape, generator=draws)
    _, timesteps = model.clock.place(torch.tensor([0.3, 0.8, 1.4]))
    low, high = model.card.w_range or (0.0, 0.0)
    w = [torch.tensor([low, (low + high) / 2, high])] if model.takes_w else []
    cond: Cond = repeat_null(model.null_cond, 3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draws)

    if isinstance(cond, dict):
        assert keys is not None
        filled = {"mask": torch.ones_like, "time_ids": torch.clone}
        return (sample, timesteps, *w, *(filled.get(k, noise)(cond[k]) for k in keys))
    if not model.family.takes_prompts:
        return (sample, timesteps, *w, torch.arange(3) % model.card.num_classes)
    return (sample, timesteps, *w, noise(cond))


def _export(
    module: _Network | _Decoder,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    output: str,
    metadata: dict[str, str],
    path: Path,
) -> float:
    """Write a module and return the largest difference of onnxruntime's answers.

    inputs: a batch of 3 on which the answers are compared; the first two are the example by which
    torch follows the module. Raises RangeError where the export fails, has a fixed batch, or
    answers otherwise.
    """
    wanted = module.eval()(inputs)  # also makes the constants that the network keeps
    doing = "be exported to ONNX"
    kind = module.kind
    try:
        # Its errors are of many classes, of several libraries; all mean the same here.
        _write(module, tuple(t[:2].contiguous() for t in inputs), names, output, metadata, path)
        doing = f"answer a batch of {len(wanted)} in onnxruntime once it is exported"
        found = _answer(path, dict(zip(names, inputs, strict=True)))
    except Exception as error:  # noqa: BLE001
        first = error.__cause__ or error
        reason = " ".join(str(first).split())[:200]
        raise RangeError(
            f"{kind} cannot {doing} by torch {torch.__version__} "
            f"({type(first).__name__}: {reason}). Use --to diffusers."
        ) from None
    off = float((torch.from_numpy(found) - wanted).abs().max())
    if not off <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise RangeError(
            f"{kind} must answer in onnxruntime as in torch to be exported, got a difference of "
            f"{off:.2g}. Use --to diffusers."
        )
    return off


def _write(
    module: nn.Module,
    pair: tuple[Tensor, ...],
    names: Sequence[str],
    output: str,
    metadata: dict[str, str],
    path: Path,
) -> None:
    """Write a module; pair: inputs of a batch of 2, by which torch follows it."""
    program = torch.export.export(
        module,
        (pair,),
        # With a named axis the export would fail: diffusers asks whether a batch is above 63,
        # for the speed alone.
        dynamic_shapes=(tuple({0: torch.export.Dim.AUTO} for _ in pair),),
        strict=False,
    )
    _mend(program)
    made = torch.onnx.export(
        program,
        (pair,),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=[output],
        dynamic_shapes=(tuple({0: "batch"} for _ in pair),),
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(metadata)
    made.save(str(path))


def _mend(program: torch.export.ExportedProgram) -> None:
    """Remove squeezes of axes longer than 1, which torch ignores and ONNX refuses.

    Raises ValueError where the batch became fixed.
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.squeeze.dim:
            before, axis = node.args
            if isinstance(size := before.meta["val"].shape[axis], int) and size != 1:
                node.replace_all_uses_with(before)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    inputs = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.name in inputs and isinstance(node.meta["val"].shape[0], int):
            raise ValueError("the batch would be fixed at 2, since its code computes with the size")


def _answer(path: Path, inputs: dict[str, Tensor]) -> Any:
    """Return what onnxruntime answers; the batch is another one than the export's."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {name: t.numpy() for name, t in inputs.items()})[0]


def _metadata(model: Model, w: float | None, latents: dict[str, Any] | None) -> dict[str, str]:
    """Return what a sampler must know, each value as JSON.

    model, family, weights_sha256: which student it is. shape: (C, H, W) of a sample.
    steps: the number that it was made for; null for any. sampler: its name; null for any.
    grids: number of steps -> "timesteps" (N), the second input, and "angles" (N + 1) in radians,
    from noise to data. prediction: "v_prediction", "epsilon", "sample" or "flow".
    w_range: the range of the input w; null where it is folded into the weights, at `w`.
    num_classes, class_names: of a model of classes. latents: null for a model of images; else the
    "scale" and "mean" by which the autoencoder's own latents are latents * scale + mean, and the
    name of the "decoder", which does that by itself.
    """
    card, clock = model.card, model.clock
    grids = {}
    for steps in GRIDS if card.steps is None else (card.steps,):
        try:
            angles = clock.grid(steps)
        except GridError:
            continue
        _, timesteps = clock.place(torch.tensor(angles[:-1], dtype=torch.float32))
        grids[steps] = {"timesteps": timesteps.tolist(), "angles": list(angles)}
    metadata = {
        "model": card.name,
        "family": card.family,
        "weights_sha256": sha256_of(card),
        "shape": card.shape,
        "steps": card.steps,
        "sampler": card.sampler,
        "grids": grids,
        "prediction": clock.prediction or "v_prediction",
        "w_range": card.w_range if model.takes_w else None,
        "w": w if w is not None or model.takes_w else (card.w_range or (None,))[0],
        "num_classes": card.num_classes,
        "class_names": card.class_names,
        "latents": latents,
    }
    return {key: json.dumps(value) for key, value in metadata.items()}


def _scaled(vae: Any) -> dict[str, Any]:
    mean, scale = mean_and_scale(vae, torch.zeros(1))
    return {"scale": scale.flatten().tolist(), "mean": mean.flatten().tolist(), "decoder": DECODER}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the warnings of torch and onnxscript about their own internals."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


ONNX = Format(
    name="onnx",
    about="the network for onnxruntime, with w as an input or fixed, and its latents' decoder",
    takes=frozenset({"w"}),
    write=write,
)
