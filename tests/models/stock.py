"""Run by tests as a program: stock pipelines on saved folders, where fewstep cannot be imported.

    python stock.py jobs.pt results.pt

A job is a dict: folder, pipeline (a class of diffusers), call (its arguments; `seed` becomes a
generator), and without (names of parts that the folder does not have). A result is a dict: images,
latents, and the batch sizes of the network's calls.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

sys.modules["fewstep"] = None  # type: ignore[assignment]  importing it now raises ImportError

import diffusers
import torch

torch.set_num_threads(1)


@functools.cache
def opened(folder: str, pipeline: str, without: tuple[str, ...]) -> Any:
    pipe = getattr(diffusers, pipeline).from_pretrained(folder, **dict.fromkeys(without))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(
    folder: str, pipeline: str, call: dict[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    pipe = opened(folder, pipeline, without)
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

    if pipeline != "DiTPipeline":  # which tells nobody
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
