"""The names of tensors in single files of transformers: Stable Diffusion 3, Flux, Chroma, Sana.

diffusers renamed the tensors of the original code and took fused layers apart; `from_single_file`
does this, and here it is undone. Files of Qwen-Image have diffusers' own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import RangeError

_BLOCK = re.compile(r"([a-z_.]+)\.(\d+)\.(.+)")
# Layers that make a shift and a scale, in this order; diffusers has them the other way around. Of
# the context's, that of the last block alone.
_SHIFT_AND_SCALE = ("final_layer.adaLN_modulation.1", "context_block.adaLN_modulation.1")


@dataclass(frozen=True)
class Names:
    """Names in one list of blocks, or outside of them.

    Attributes:
        list: original name of the list of blocks; "" outside.
        layers: layer, or tensor, of diffusers -> original one.
        fused: original layer -> layers of diffusers, whose tensors it holds one after the other.
    """

    list: str = ""
    layers: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Layout = Mapping[str, Names]  # the list of blocks of diffusers ("" outside) -> its names


def of_transformer(network: Any, layout: Layout) -> dict[str, Tensor]:
    """Return a network's tensors under their original names.

    Raises RangeError for a network with a layer that the original code does not have.
    """
    state, out = network.state_dict(), {}
    last = network.config.num_layers - 1
    for key, tensor in state.items():
        block = _BLOCK.fullmatch(key)
        listed, number, inner = block.groups() if block and block[1] in layout else ("", "", key)
        names = layout[listed]
        layer, _, end = inner.rpartition(".")
        fused = next((k for k, parts in names.fused.items() if layer in parts), None)
        if fused is not None:
            parts = names.fused[fused]
            if layer != parts[0]:
                continue
            before = key.removesuffix(inner)
            tensor, name = torch.cat([state[f"{before}{p}.{end}"] for p in parts]), f"{fused}.{end}"
        elif inner in names.layers:
            name = names.layers[inner]
        elif layer in names.layers:
            name = f"{names.layers[layer]}.{end}"
        else:
            raise RangeError(
                f"a network with {key} has no single file: the original code has no such layer. "
                "Use --to diffusers."
            )
        if name.startswith(_SHIFT_AND_SCALE) and (not number or int(number) == last):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        out[".".join(part for part in (names.list, number, name) if part)] = tensor
    return out


def of_sana(network: Any) -> dict[str, Tensor]:
    """Return the tensors of a Sana network under their original names.

    Two that diffusers does not keep are zeros: positions, where the network has none, and the
    embedding of the unconditional pass, which a student does not make.
    """
    config, shape = network.config, network.patch_embed.proj.weight.shape
    positions = getattr(network.patch_embed, "pos_embed", None)
    if positions is None:
        side = config.sample_size // config.patch_size
        positions = torch.zeros(1, side * side, shape[0])
    return {
        **of_transformer(network, SANA),
        "pos_embed": positions,
        "y_embedder.y_embedding": torch.zeros(300, config.caption_channels),
    }


SD3: Layout = {
    "": Names(
        layers={
            "pos_embed.pos_embed": "pos_embed",
            "pos_embed.proj": "x_embedder.proj",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
            "context_embedder": "context_embedder",
            "norm_out.linear": "final_layer.adaLN_modulation.1",
            "proj_out": "final_layer.linear",
        }
    ),
    "transformer_blocks": Names(
        "joint_blocks",
        {
            "norm1.linear": "x_block.adaLN_modulation.1",
            "norm1_context.linear": "context_block.adaLN_modulation.1",
            "attn.norm_q": "x_block.attn.ln_q",
            "attn.norm_k": "x_block.attn.ln_k",
            "attn.norm_added_q": "context_block.attn.ln_q",
            "attn.norm_added_k": "context_block.attn.ln_k",
            "attn.to_out.0": "x_block.attn.proj",
            "attn.to_add_out": "context_block.attn.proj",
            "attn2.norm_q": "x_block.attn2.ln_q",
            "attn2.norm_k": "x_block.attn2.ln_k",
            "attn2.to_out.0": "x_block.attn2.proj",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        },
        {
            "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        },
    ),
}
# Chroma has no layers of modulation; an approximator makes them all.
FLUX: Layout = {
    "": Names(
        layers={
            "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
            "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
            "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
            "context_embedder": "txt_in",
            "x_embedder": "img_in",
            "norm_out.linear": "final_layer.adaLN_modulation.1",
            "proj_out": "final_layer.linear",
            "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
            "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
        }
    ),
    "transformer_blocks": Names(
        "double_blocks",
        {
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
            "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
            "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
            "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
            "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
        },
        {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        },
    ),
    "single_transformer_blocks": Names(
        "single_blocks",
        {
            "norm.linear": "modulation.lin",
            "attn.norm_q.weight": "norm.query_norm.scale",
            "attn.norm_k.weight": "norm.key_norm.scale",
            "proj_out": "linear2",
        },
        {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
    ),
    "distilled_guidance_layer.layers": Names(
        "distilled_guidance_layer.layers", {"linear_1": "in_layer", "linear_2": "out_layer"}
    ),
    "distilled_guidance_layer.norms": Names("distilled_guidance_layer.norms", {"weight": "scale"}),
}
SANA: Layout = {
    "": Names(
        layers={
            "patch_embed.proj": "x_embedder.proj",
            "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_embed.linear": "t_block.1",
            "caption_projection.linear_1": "y_embedder.y_proj.fc1",
            "caption_projection.linear_2": "y_embedder.y_proj.fc2",
            "caption_norm": "attention_y_norm",
            "proj_out": "final_layer.linear",
            "scale_shift_table": "final_layer.scale_shift_table",
        }
    ),
    "transformer_blocks": Names(
        "blocks",
        {
            "scale_shift_table": "scale_shift_table",
            "attn1.to_out.0": "attn.proj",
            "attn2.to_q": "cross_attn.q_linear",
            "attn2.to_out.0": "cross_attn.proj",
            "ff.conv_inverted": "mlp.inverted_conv.conv",
            "ff.conv_depth": "mlp.depth_conv.conv",
            "ff.conv_point": "mlp.point_conv.conv",
        },
        {
            "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
        },
    ),
}
