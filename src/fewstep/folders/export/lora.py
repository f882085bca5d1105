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
from fewstep.folders.export.format import SHARED, Format, Options, metadata
from fewstep.folders.export.slider import LAYER, slider_factors, table
from fewstep.folders.export.stock_folder import check_w_input
from fewstep.folders.read import load_model
from fewstep.folders.readme import README, escaped, licence_of
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
    """Write both files, the scheduler whose steps the student makes, and a README.md."""
    _check(model)
    style = options.style or STYLES[0]
    if style not in STYLES:
        raise RangeError(
            f"style must be one of {', '.join(STYLES)}, got {style!r}.{did_you_mean(style, STYLES)}"
        )
    card, network = model.card, merged(model.network)
    scheduler = model.clock.scheduler()
    scheduler.set_timesteps(card.steps)
    down, up = slider_factors(network, scheduler.timesteps)
    student, made = _student(model, options, biases=style == "diffusers")
    strengths = table(card.w_range or (0.0, 0.0))
    facts = {
        "model": card.name,
        "weights_sha256": card.weights_sha256,
        "base": card.parents[-1].name,
        "base_sha256": card.parents[-1].sha256,
        "steps": card.steps,
        "timesteps": scheduler.timesteps.tolist(),
        "w_range": card.w_range,
        "guidance_strength": strengths,
        **made,
    }
    with atomic_folder(out, SLIDER) as partial:
        for name, factors in ((STUDENT, student), (SLIDER, {LAYER: Factors(down, up)})):
            about = metadata(f"{card.name}: {Path(name).stem}", card.steps, facts)
            save_file(_named(factors, style), partial / name, metadata=about)
        scheduler.save_pretrained(partial / "scheduler")
        if model.source is not None:
            copy_licences(model.source, partial)
        (partial / README).write_text(_readme(model, facts), encoding="utf-8")
    ends = ", ".join(
        f"{s:g} at w = {w}" for w, s in list(strengths.items())[:: len(strengths) - 1 or 1]
    )
    return (
        f"{STUDENT}: {made['made']}; layers changed: {len(student)}",
        f"{SLIDER}: its strength is sin(0.1 w): {ends}",
    )


def _check(model: Model) -> None:
    """Raise RangeError unless the guidance of a model is a LoRA of rank 1."""
    card, other = model.card, "Use --to diffusers."
    check_w_input(model)
    if card.family not in SHARED:
        raise RangeError(
            f"only students of {' and '.join(SHARED)} become LoRA files, got one of "
            f"{card.family}. {other}"
        )
    if card.steps is None or card.sampler not in (None, "deterministic"):
        made = "any number of steps" if card.steps is None else f"the sampler {card.sampler!r}"
        raise RangeError(
            f"{card.name} must be made for a number of DDIM steps to become LoRA files, got one "
            f"for {made}. {other}"
        )
    if not card.parents:
        raise RangeError(
            f"{card.name} must name the teacher that it was made from to become LoRA files, and "
            f"its card names none. {other}"
        )
    if card.w_band != ONE:
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


def _named(factors: Mapping[str, Factors], style: str) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of its style."""
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
            out[f"unet.{layer}.lora_A.weight"] = f.down
            out[f"unet.{layer}.lora_B.weight"] = f.up
            if has_biases:  # of all layers or of none, since peft switches them on together
                bias = torch.zeros(len(f.up)) if f.bias is None else f.bias
                out[f"unet.{layer}.lora_B.bias"] = bias
    return {key: t.detach().cpu().contiguous().clone() for key, t in out.items()}


def _readme(model: Model, facts: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    licence = {} if model.source is None else licence_of(model.source)
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
        pipeline=model.family.pipelines[0],
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
