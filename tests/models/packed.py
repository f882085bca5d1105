"""Stock folders of random weights whose networks take 2x2 patches: Flux, Chroma, Qwen-Image.

Latents are 8x8, which no setting of a Flux network says: the folders name it as users would, by
`sample_size` in the network's config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tests.models.pipelines import TEXT, edit, t5_encoder, t5_tokenizer, text_encoder, tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

CHANNELS, SIDE = 16, 8  # of the latents
PIXELS = 2 * SIDE
SHARED: dict[str, Any] = {
    "in_channels": 4 * CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 6, 6),
}


def packed_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _named(path: Path) -> Path:
    edit(path / "transformer/config.json", sample_size=SIDE)
    return path


def _loud(network: Any) -> Any:
    """Make prompts, and so guidance, matter: they hardly do at random weights."""
    for name, weight in network.named_parameters():
        if "context_embedder" in name or "txt_in" in name or "add_" in name:
            weight.data.mul_(3)
    return network


def flux_folder(path: Path, *, guidance: bool = False) -> Path:
    """A Flux folder as "dev" is (guidance), or as "schnell" is but for its dynamic shift."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(4)
        transformer = FluxTransformer2DModel(
            **SHARED, num_single_layers=1, pooled_projection_dim=TEXT, guidance_embeds=guidance
        )
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=packed_vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            text_encoder_2=t5_encoder(),
            tokenizer_2=t5_tokenizer(),
            transformer=_loud(transformer),
        )
    pipe.save_pretrained(path)
    return _named(path)


def chroma_folder(path: Path) -> Path:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(5)
        transformer = ChromaTransformer2DModel(
            **SHARED,
            num_single_layers=1,
            approximator_num_channels=64,
            approximator_hidden_dim=32,
            approximator_layers=2,
        )
        pipe = ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=packed_vae(),
            text_encoder=t5_encoder(),
            tokenizer=t5_tokenizer(),
            transformer=_loud(transformer),
        )
    pipe.save_pretrained(path)
    return _named(path)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*sorted(ByteLevel.alphabet()), *special]
    made = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    return made


def qwen_encoder() -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": TEXT,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "vocab_size": 300,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": TEXT,
        },
        hidden_size=TEXT,
        vision_end_token_id=256,
        vision_start_token_id=256,
        vision_token_id=256,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen_folder(path: Path) -> Path:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(6)
        transformer = QwenImageTransformer2DModel(**SHARED, patch_size=2, out_channels=CHANNELS)
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1 * k for k in range(CHANNELS)],
            latents_std=[1.0 + 0.1 * k for k in range(CHANNELS)],
        )
        pipe = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=vae,
            text_encoder=qwen_encoder(),
            tokenizer=qwen_tokenizer(),
            transformer=_loud(transformer),
        )
    pipe.save_pretrained(path)
    return _named(path)
