"""Run by tests as a program: stock pipelines on saved folders, where fewstep cannot be imported.

    python stock.py jobs.pt results.pt

A job is a dict: folder, pipeline (a class of diffusers), call (its arguments; `seed` becomes a
generator), and where they are needed: without (names of parts that the folder does not have); loras
(paths of LoRA files with their strengths); single (a single file to open, `folder` being its
configuration: of a whole checkpoint, or of a transformer); scheduler (a folder that has it). A
result is a dict: images, latents, and the batch sizes of the network's calls.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.modules["fewstep"] = None  # type: ignore[assignment]  importing it now raises ImportError

import diffusers
import torch
from diffusers.loaders import single_file_model

torch.set_num_threads(1)


@functools.cache
def opened(
    folder: str,
    pipeline: str,
    without: tuple[str, ...],
    single: str | None,
    adapted: bool,
) -> Any:
    """A pipeline, with adapters or without: those that are loaded once stay."""
    kind = getattr(diffusers, pipeline)
    parts: dict[str, Any] = dict.fromkeys(without)
    if single is not None and (Path(folder) / "transformer").is_dir():
        parts["transformer"] = transformer(folder, single)
    elif single is not None:
        return quiet(kind.from_single_file(single, config=folder, local_files_only=True))
    return quiet(kind.from_pretrained(folder, **parts))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    pipe.stock_scheduler = pipe.scheduler
    return pipe


def transformer(folder: str, single: str) -> Any:
    """A transformer by diffusers' own conversion, some of which are for 3072 features alone."""
    config = json.loads((Path(folder) / "transformer" / "config.json").read_text())
    name = config["_class_name"]
    known, wide = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[name], "inner_dim = 3072"
    convert = known["checkpoint_mapping_fn"]
    source = inspect.getsource(convert)
    if wide in source:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        names = dict(vars(inspect.getmodule(convert)))
        exec(source.replace(wide, f"inner_dim = {width}"), names)
        known["checkpoint_mapping_fn"] = names[convert.__name__]
    try:
        made = getattr(diffusers, name).from_single_file(
            single, config=folder, subfolder="transformer", local_files_only=True
        )
    finally:
        known["checkpoint_mapping_fn"] = convert
    return made


def adapt(pipe: Any, loras: dict[str, float]) -> None:
    names = {path: "_".join(Path(path).with_suffix("").parts[-2:]) for path in loras}
    there = {name for adapters in pipe.get_list_adapters().values() for name in adapters}
    for path in (Path(p) for p, name in names.items() if name not in there):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=names[str(path)])
    pipe.set_adapters(list(names.values()), list(loras.values()))


def run(
    folder: str,
    pipeline: str,
    call: dict[str, Any],
    without: tuple[str, ...] = (),
    loras: dict[str, float] | None = None,
    scheduler: str | None = None,
    single: str | None = None,
) -> dict[str, Any]:
    pipe = opened(folder, pipeline, without, single, bool(loras))
    if loras:
        adapt(pipe, loras)
    pipe.scheduler = pipe.stock_scheduler
    if scheduler is not None:
        config = json.loads((Path(scheduler) / "scheduler" / "scheduler_config.json").read_text())
        kind = getattr(diffusers, config["_class_name"])
        pipe.scheduler = kind.from_pretrained(scheduler, subfolder="scheduler")
    batches: list[int] = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def count(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        batches.append(len(args[0] if args else named["hidden_states"]))

    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    seed = call.pop("seed", 0)
    last: dict[str, torch.Tensor] = {}

    def keep(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last["latents"] = tensors["latents"].clone()
        return tensors

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        call["callback_on_step_end"] = keep
    out = pipe(**call, generator=torch.Generator().manual_seed(seed), output_type="pt")
    hook.remove()
    return {"images": out.images, "latents": last.get("latents"), "batches": batches}


if __name__ == "__main__":
    try:
        import fewstep
    except ImportError:
        jobs = torch.load(sys.argv[1], weights_only=True)
        torch.save({name: run(**job) for name, job in jobs.items()}, sys.argv[2])
    else:
        sys.exit(f"{fewstep} can be imported here, so nothing is shown")
