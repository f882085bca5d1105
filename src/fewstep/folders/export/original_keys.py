"""The names of tensors in single-file checkpoints of Stable Diffusion 1, 2 and XL.

diffusers renamed the tensors of the original code; `from_single_file` renames in one direction, and
this is the other one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"
}  # fmt: skip
_OPEN_CLIP = (
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".fc1.", ".c_fc."),
    (".fc2.", ".c_proj."),
    (".self_attn.", ".attn."),
)
_BLOCK = re.compile(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)")


def of_unet(state: State, layers: int) -> dict[str, Tensor]:
    """Return a U-Net's tensors under their original names. layers: resnets per down block."""
    attention = {key.split(".attentions.")[0] for key in state if ".attentions." in key}
    return {UNET + _unet_key(key, layers, attention): t for key, t in state.items()}


def _unet_key(key: str, layers: int, attention: set[str]) -> str:
    found = _BLOCK.fullmatch(key)
    if found is None:
        layer, _, end = key.rpartition(".")
        return f"{_UNET_OUTER[layer]}.{end}"
    where, number, kind, place, rest = found.groups()
    block, j = int(number or 0), int(place)
    if kind == "resnets":
        layer, _, end = rest.rpartition(".")
        rest = f"{_RESNET[layer]}.{end}"
    if where == "mid":
        return f"middle_block.{2 * j + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        after = 2 if f"up_blocks.{block}" in attention else 1
        return f"output_blocks.{(layers + 1) * block + layers}.{after}.{rest}"
    at = (layers + 1) * block + j
    name = f"input_blocks.{at + 1}" if where == "down" else f"output_blocks.{at}"
    return f"{name}.{int(kind == 'attentions')}.{rest}"


def of_vae(state: State, levels: int) -> dict[str, Tensor]:
    """Return an autoencoder's tensors under their original names. levels: of resolution."""
    out = {}
    for key, t in state.items():
        name, tensor = key.replace("conv_norm_out", "norm_out"), t
        found = _BLOCK.fullmatch(name.partition(".")[2])
        if found is not None:
            where, number, kind, place, rest = found.groups()
            side, block, j = name.partition(".")[0], int(number or 0), int(place)
            block = levels - 1 - block if where == "up" else block
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            if kind == "attentions":
                layer, _, end = rest.rpartition(".")
                rest = f"{_VAE_ATTENTION[layer]}.{end}"
                # The original attention is made of convolutions of one pixel.
                tensor = t[:, :, None, None] if t.ndim == 2 else t
                name = f"{side}.mid.attn_{j + 1}.{rest}"
            elif where == "mid":
                name = f"{side}.mid.block_{j + 1}.{rest}"
            elif kind == "resnets":
                name = f"{side}.{where}.{block}.block.{j}.{rest}"
            else:
                name = f"{side}.{where}.{block}.{where}sample.{rest}"
        out[VAE + name] = tensor
    return out


def of_clip(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a CLIP text encoder of OpenAI under their original names."""
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": t for k, t in state.items()}


def of_open_clip(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of an OpenCLIP text encoder under their original names.

    There the projections to queries, keys and values are one matrix.
    """
    out: dict[str, Tensor] = {}
    for key, t in state.items():
        if key == "text_projection.weight":
            out[f"{prefix}text_projection"] = t.T
            continue
        name = f"text_model.{key.removeprefix('text_model.')}"
        for new, old in _OPEN_CLIP:
            name = name.replace(new, old)
        if re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            parts = [state[key.replace("q_proj", f"{c}_proj")] for c in "qkv"]
            name, t = name.replace("q_proj.", "in_proj_"), torch.cat(parts)
        out[prefix + name] = t
    return out
