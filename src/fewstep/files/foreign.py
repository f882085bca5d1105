"""What a path is that is no model folder, and how to make a folder of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewstep.errors import FolderError
from fewstep.files.parts import INDEX, PICKLED, read_json
from fewstep.files.single import NETWORK, VAE, header_of

CARD = "fewstep.json"
_NETWORKS = ("unet", "transformer")
_PARTS = (*_NETWORKS, "vae", "text_encoder", "unet_ema", "unet_lora")
_LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_LORA_CONFIG = "adapter_config.json"
_LORA_KEYS = ("lora_", ".lora_A", ".lora_B", ".lora.", "lora.down", "lora.up", "lycoris")
# Names in files of a network alone, beside those of NETWORK, and its class in diffusers.
_ALONE = {
    "distilled_guidance_layer.": "ChromaTransformer2DModel",
    "txt_norm.": "QwenImageTransformer2DModel",
    "attention_y_norm.": "SanaTransformer2DModel",
    "double_blocks.": "FluxTransformer2DModel",
    "joint_blocks.": "SD3Transformer2DModel",
    "transformer_blocks.": "FluxTransformer2DModel",
    "down_blocks.": "UNet2DConditionModel",
    "input_blocks.": "UNet2DConditionModel",
}
_SHOULD = (
    "a model must be a folder that fewstep wrote (with fewstep.json), the folder of a whole "
    "diffusers pipeline (with model_index.json), or a whole checkpoint of Stable Diffusion 1, 2 or "
    "XL (one .safetensors file)"
)


def describe(path: Path) -> str | None:
    """Return an error's text for a file or folder of a known kind that is no model folder.

    None where nothing is known about it. Pickles are not opened.
    """
    if not path.is_dir():
        return _file(path)
    if (path / INDEX).is_file():
        return _saved_again(path)
    return _lora_folder(path) or _bare_part(path) or _checkpoint(path) or _loose_files(path)


def _file(path: Path) -> str:
    if path.name.lower().endswith(".safetensors"):
        names = header_of(path)
        if any(mark in name for name in names for mark in _LORA_KEYS):
            return f"{path} holds a LoRA adapter; {_SHOULD}. {_merge(path)}"
        if any(name.startswith((NETWORK, *_ALONE)) for name in names):
            return f"{path} holds a network alone; {_SHOULD}. {_put_file(path, names)}"
        if any(name.startswith(VAE) for name in names):
            return f"{path} holds an autoencoder alone; {_SHOULD}. Give the whole model."
        if names:
            return f"{path} is a single file of weights; {_SHOULD}. {_convert(path)}"
        return f"{path} is no readable safetensors file; {_SHOULD}. Copy the file again."
    if path.name.lower().endswith(PICKLED):
        return (
            f"{path} is a single file of pickled weights, which can run any code when it is "
            f"opened; {_SHOULD}. If you trust it: {_convert(path)}"
        )
    return f"{path} is a file; {_SHOULD}. Give such a folder."


def _saved_again(path: Path) -> str | None:
    try:
        name = read_json(path / INDEX).get("_class_name")
    except FolderError:
        return None
    return saved_again(path) if name == "ClassConditionalPipeline" else None


def saved_again(path: Path) -> str:
    """Return the text for a folder that diffusers saved again, without fewstep's own card."""
    return (
        f"{path} must hold {CARD}, which says what the model was made for: it was saved again by "
        f"diffusers, which leaves that file out. Copy {CARD} from the folder that fewstep wrote."
    )


def _lora_folder(path: Path) -> str | None:
    file = next((path / name for name in _LORA_FILES if (path / name).is_file()), None)
    if file is None and not (path / _LORA_CONFIG).is_file():
        return None
    return f"{path} holds a LoRA adapter alone; {_SHOULD}. {_merge(file or path)}"


def _bare_part(path: Path) -> str | None:
    if not (path / "config.json").is_file():
        return None
    try:
        config: dict[str, Any] = read_json(path / "config.json")
    except FolderError:
        config = {}
    names = config.get("architectures")
    kind = config.get("_class_name") or (names[0] if isinstance(names, list) and names else "")
    what = f" ({str(kind)[:60]})" if kind else ""
    whole = path.absolute().parent
    if (whole / INDEX).is_file():
        return (
            f"{path} is one part{what} of the model in {path.parent}, and has no {INDEX}; "
            f"{_SHOULD}. Give the whole: {path.parent}"
        )
    return f"{path} is one part of a pipeline{what} and has no {INDEX}; {_SHOULD}. {_put(path)}"


def _checkpoint(path: Path) -> str | None:
    there = [name for name in _PARTS if (path / name).is_dir()]
    if not there:
        return None
    network = next((name for name in _NETWORKS if name in there), there[0])
    return (
        f"{path} has the part {', '.join(there)} and no {INDEX}: it is a trainer's checkpoint, or "
        f"a part of a pipeline; {_SHOULD}. {_put(path / network)}"
    )


def _loose_files(path: Path) -> str | None:
    files = sorted(p for p in path.iterdir() if p.is_file())
    safe = [p for p in files if p.name.endswith(".safetensors")]
    loose = safe or [p for p in files if p.name.endswith(PICKLED)]
    if not loose:
        return None
    named = ", ".join(p.name for p in loose[:3])
    return f"{path} has no {INDEX}, only the weights {named}; {_SHOULD}. {_convert(loose[0])}"


def _convert(file: Path) -> str:
    return (
        "Convert it with diffusers: StableDiffusionPipeline (or StableDiffusionXLPipeline)"
        f".from_single_file({str(file)!r}).save_pretrained(FOLDER)"
    )


def _merge(file: Path) -> str:
    return (
        "Merge it into its base with diffusers: pipe = DiffusionPipeline.from_pretrained(BASE); "
        f"pipe.load_lora_weights({str(file)!r}); pipe.fuse_lora(); pipe.unload_lora_weights(); "
        "pipe.save_pretrained(FOLDER)"
    )


def _put_file(file: Path, names: Iterable[str]) -> str:
    marks = {name.removeprefix(NETWORK).partition(".")[0] + "." for name in names}
    kind = next((kind for mark, kind in _ALONE.items() if mark in marks), "UNet2DConditionModel")
    part = "unet" if kind.startswith("UNet") else "transformer"
    return (
        f"Put it into its base with diffusers: net = {kind}.from_single_file({str(file)!r}, "
        f"config=BASE, subfolder={part!r}); DiffusionPipeline.from_pretrained(BASE, {part}=net)"
        ".save_pretrained(FOLDER)"
    )


def _put(part: Path) -> str:
    network = part.name if part.name in _NETWORKS else "unet"
    kind = "DiTTransformer2DModel" if network == "transformer" else "UNet2DConditionModel"
    return (
        f"Put it into its base with diffusers: net = {kind}.from_pretrained({str(part)!r}); "
        f"DiffusionPipeline.from_pretrained(BASE, {network}=net).save_pretrained(FOLDER)"
    )
