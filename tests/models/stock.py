"""Run by tests as a program: stock pipelines on saved folders, where fewstep cannot be imported.

    python stock.py jobs.pt results.pt

A job is a dict: folder, pipeline (a class of diffusers), call (its arguments; `seed` becomes a
generator), and where they are needed: without (names of parts that the folder does not have); loras
(paths of LoRA files with their strengths); single (a single file to open, `folder` being its
configuration); scheduler (a folder that has it). A result is a dict: images, latents, and the batch
sizes of the network's calls.
"""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

sys.modules["fewstep"] = None  # type: ignore[assignment]  importing it now raises ImportError

import diffusers
import torch

torch.set_num_threads(1)


@functools.cache
def opened(
    folder: str,
    pipeline: str,
    without: tuple[str, ...],
    loras: tuple[str, ...],
    scheduler: str | None,
    single: str | None,
) -> Any:
    kind = getattr(diffusers, pipeline)
    if single is None:
        pipe = kind.from_pretrained(folder, **dict.fromkeys(without))
    else:
        pipe = kind.from_single_file(single, config=folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for path in map(Path, loras):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
    if scheduler is not None:
        pipe.scheduler = diffusers.DDIMScheduler.from_pretrained(scheduler, subfolder="scheduler")
    return pipe


def run(
    folder: str,
    pipeline: str,
    call: dict[str, Any],
    without: tuple[str, ...] = (),
    loras: dict[str, float] | None = None,
    scheduler: str | None = None,
    single: str | None = None,
) -> dict[str, Any]:
    pipe = opened(folder, pipeline, without, tuple(loras or ()), scheduler, single)
    if loras:
        pipe.set_adapters([Path(path).stem for path in loras], list(loras.values()))
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
