"""`lora`: a student and its guidance as two LoRA files over the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.atomic import atomic_folder
from fewstep.errors import RangeError, did_you_mean
from fewstep.files.copies import copy_licences
from fewstep.folders.export.factors import Factors, of_adapter, of_difference
from fewstep.folders.export.format import ARCHITECTURES, Format, Options, metadata, sha256_of
from fewstep.folders.export.slider import slider_factors, table
from fewstep.folders.export.stock_folder import check_w_input, is_for_one_w
from fewstep.folders.read import load_model
from fewstep.folders.readme import README, escaped, licence_of, size_in_call
from fewstep.models.lora import has_adapter, merged
from fewstep.models.model import Model
from fewstep.models.w_input import ONE

STUDENT, SLIDER = "student.safetensors", "guidance.safetensors"
RANK = 64
STYLES = ("diffusers", "kohya")
TEMPLATE = Path(__file__).with_name("lora.jinja")
# In the names of kohya's files for SDXL, as diffusers and others read them back.
KOHYA = {"add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}


def write(model: Model, out: Path, options: Options) -> tuple[str, ...]:
    """Write the files, the scheduler whose steps the student makes, and a README.md."""
    _check(model)
    card, network, style = model.card, merged(model.network), _style(model, options)
    if options.steps is not None and style == "kohya":
        raise RangeError(
            "--style kohya must be left out for an any-step student: its number of steps is in "
            "biases, and kohya files have none. Use --style diffusers."
        )
    timesteps = _timesteps(model)
    student, made = _student(model, options, biases=style == "diffusers")
    files, facts = {STUDENT: student}, _facts(model, timesteps)
    if model.w_dim is not None:
        layer, (down, up) = slider_factors(network, model.family, timesteps)
        files[SLIDER] = {layer: Factors(down, up)}
        facts["guidance_strength"] = table(card.w_range or (0.0, 0.0))
    facts |= made
    architecture = ARCHITECTURES.get(card.family)
    with atomic_folder(out, STUDENT) as partial:
        for name, factors in files.items():
            title = f"{card.name}: {Path(name).stem}"
            about = metadata(title, model, facts, f"{architecture}/lora" if architecture else "")
            tensors = _named(factors, style, model.family.part)
            save_file(tensors, partial / name, metadata=about)
        model.clock.scheduler().save_pretrained(partial / "scheduler")
        assert model.source is not None
        copy_licences(model.source, partial)
        (partial / README).write_text(_readme(model, facts), encoding="utf-8")
    line = f"{STUDENT}: {made['made']}; layers changed: {len(student)}"
    return (line, _guidance_line(model, facts))


def _guidance_line(model: Model, facts: Mapping[str, Any]) -> str:
    strengths = list(facts.get("guidance_strength", {}).items())
    if strengths:
        ends = strengths[:: len(strengths) - 1 or 1]
        shown = ", ".join(f"{strength:g} at w = {w}" for w, strength in ends)
        return f"{SLIDER}: its strength is sin(0.1 w): {shown}"
    low, high = model.card.w_range or (0.0, 0.0)
    if low == high and model.family.slot != "value":
        return f"w = {low:g} is in {STUDENT}; there is no {SLIDER}"
    return f"w is an input of the network, as guidance scale 1 + w; there is no {SLIDER}"


def _style(model: Model, options: Options) -> str:
    """Return the style of the keys. Raises RangeError for one that is not there."""
    style, family = options.style or STYLES[0], model.family
    if style not in STYLES:
        raise RangeError(
            f"style must be one of {', '.join(STYLES)}, got {style!r}.{did_you_mean(style, STYLES)}"
        )
    if style == "kohya" and family.part != "unet":
        raise RangeError(
            f"style must be diffusers for a transformer such as one of {family.name}, got 'kohya', "
            "whose keys are those of a U-Net. Leave style out."
        )
    return style


def _timesteps(model: Model) -> Tensor:
    """Return the timesteps (N,) of a student's steps, float64."""
    assert model.card.steps is not None
    grid = model.clock.traits(model.network).clock(model.card.steps)
    return model.clock.place(torch.tensor(grid[:-1], dtype=torch.float64))[1]


def _facts(model: Model, timesteps: Tensor) -> dict[str, Any]:
    card = model.card
    return {
        "model": card.name,
        "weights_sha256": sha256_of(card),
        "base": card.parents[-1].name,
        "base_sha256": card.parents[-1].sha256,
        "steps": card.steps,
        "timesteps": timesteps.tolist(),
        "w_range": card.w_range,
    }


def _check(model: Model) -> None:
    """Raise RangeError unless a model is a LoRA over its teacher, and its guidance one of rank 1.

    No LoRA is needed for the guidance of a student for one w, or of one that takes w itself.
    """
    card, other = model.card, "Use --to diffusers."
    if not is_for_one_w(model):
        check_w_input(model)
    if model.family.time_features is None or model.source is None:
        raise RangeError(
            "only students whose stock pipeline loads LoRA files can become such files, got one of "
            f"{card.family}. {other}"
        )
    if card.steps is None or card.sampler not in (None, "deterministic"):
        made = "any number of steps" if card.steps is None else f"the sampler {card.sampler!r}"
        raise RangeError(
            f"{card.name} must be made for a number of deterministic steps to become LoRA files, "
            f"got one for {made}. {other}"
        )
    if not card.parents:
        raise RangeError(
            f"{card.name} must name the teacher that it was made from to become LoRA files, and "
            f"its card names none. {other}"
        )
    if model.w_dim is not None and card.w_band != ONE:
        raise RangeError(
            f"{card.name} must be trained on one feature of w to become LoRA files, got several. "
            "Train it with network.w_features=one, or use --to diffusers."
        )


def _student(
    model: Model, options: Options, *, biases: bool
) -> tuple[dict[str, Factors], dict[str, Any]]:
    """Return the factors of the student over its teacher, and what the metadata say of them."""
    card, lora = model.card, model.card.lora
    teacher = card.parents[-1]
    if has_adapter(model.network) and lora is not None and lora.base_sha256 == teacher.sha256:
        if options.rank is not None or options.base is not None:
            raise RangeError(
                f"{card.name} is an adapter over its teacher, and is exported as it is. Leave out "
                "rank and base."
            )
        return of_adapter(model.network), {
            "made": f"the adapter as it was trained, of rank {lora.rank}",
            "rank": lora.rank,
            "left_out": 0.0,
        }
    rank = RANK if options.rank is None else options.rank
    if rank < 1:
        raise RangeError(f"rank must be a whole number above 0, got {rank}. Use {RANK}.")
    wanted = f"the teacher that {card.name} was made from, {teacher.name} ({teacher.sha256[:16]})"
    if options.base is None:
        raise RangeError(f"base is required, {wanted}. Use --base FOLDER.")
    base = load_model(options.base)
    if base.card.weights_sha256 != teacher.sha256:
        raise RangeError(
            f"base must be {wanted}, got {base.card.name} ({base.card.weights_sha256[:16]}). Give "
            "the folder with its weights."
        )
    factors, left = of_difference(
        merged(model.network), base.network.state_dict(), rank, biases=biases
    )
    return factors, {
        "made": f"rank {rank}, {100 * left:.3g} % of the difference to the teacher left out",
        "rank": rank,
        "left_out": left,
    }


def _named(factors: Mapping[str, Factors], style: str, part: str) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of its style. part: of the stock pipeline."""
    out: dict[str, Tensor] = {}
    has_biases = any(f.bias is not None for f in factors.values())
    # One for all layers: diffusers 0.42 loses those of attention layers where they differ.
    alpha = max((len(f.down) for f in factors.values()), default=1)
    for layer, f in factors.items():
        if style == "kohya":
            name = layer.replace(".", "_")
            name = f"lora_unet_{KOHYA.get(name, name)}"
            out[f"{name}.lora_down.weight"] = f.down
            out[f"{name}.lora_up.weight"] = f.up * (len(f.down) / alpha)
            out[f"{name}.alpha"] = torch.tensor(float(alpha))
        else:
            out[f"{part}.{layer}.lora_A.weight"] = f.down
            out[f"{part}.{layer}.lora_B.weight"] = f.up
            if has_biases:  # of all layers or of none, since peft switches them on together
                bias = torch.zeros(len(f.up)) if f.bias is None else f.bias
                out[f"{part}.{layer}.lora_B.bias"] = bias
    return {key: t.detach().cpu().contiguous().clone() for key, t in out.items()}


def _readme(model: Model, facts: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    source, family = model.source, model.family
    assert source is not None
    licence, there = licence_of(source), family.parts_in(source)
    data = ModelCardData(
        **licence,  # type: ignore[arg-type]
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["lora"],
        ignore_metadata_errors=True,
    )
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        plain=escaped,
        facts=facts,
        licence=licence,
        pipeline=family.pipelines[0],
        absent="".join(f", {part}=None" for part in family.parts if part not in there),
        size=size_in_call(model, source),
        scheduler=type(model.clock.scheduler()).__name__,
        slot=family.slot == "value",
        true_cfg=family.true_cfg,
        student=STUDENT,
        slider=SLIDER,
        middle=sum(model.card.w_range or (0.0, 0.0)) / 2,
    )
    return str(text)


LORA_FILES = Format(
    name="lora",
    about="two LoRA files for the teacher: its few steps, and guidance as the strength of a slider",
    takes=frozenset({"base", "rank", "style"}),
    write=write,
)
