"""Stock pipeline folders of random weights, small enough to make in a test."""

from __future__ import annotations

import atexit
import functools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fewstep.distill.plan import Direction, Stage
from fewstep.folders import load
from fewstep.models import Model, student_of
from fewstep.models.w_input import BAND, frequencies

LENGTH = 12  # tokens
TEXT = 16  # features of an encoder
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer() -> CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH
    )


def text_encoder(projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    model = kind(config)
    # Random CLIP embeddings are of size 0.02: prompts would hardly differ.
    model.get_input_embeddings().weight.data.normal_()
    return model


def vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        **more,
    )


def unet(xl: bool = False) -> UNet2DConditionModel:
    more: dict[str, Any] = {}
    if xl:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 8 + 6 * 4,
            "transformer_layers_per_block": (1, 1),
        }
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=2 * TEXT if xl else TEXT,
        **more,
    )
    for name, weight in model.named_parameters():
        if "attn2.to_" in name:
            weight.data.mul_(2)  # else prompts, and so guidance, would hardly matter
    return model


def sd_folder(path: Path, **scheduler: Any) -> Path:
    """A Stable Diffusion folder; by default as 1.x is: eps, and a scheduler that is not DDIM's."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        pipe = StableDiffusionPipeline(
            unet=unet(),
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            scheduler=DDIMScheduler(**{**BETAS, "clip_sample": False, "steps_offset": 1}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(path)
    config = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **BETAS,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
        **scheduler,
    }
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return path


def xl_folder(path: Path, **more: Any) -> Path:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        pipe = StableDiffusionXLPipeline(
            unet=unet(xl=True),
            vae=vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(projection=True),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
            **more,
        )
    pipe.save_pretrained(path)
    return path


def dit_folder(path: Path, learned_sigma: bool = True, classes: int = 1000) -> Path:
    """A DiT folder; 1,000 classes, since the stock pipeline takes class 1000 for none."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(2)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned_sigma else 4,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=classes,
        )
        scheduler = DDIMScheduler(clip_sample=False)
        pipe = DiTPipeline(transformer, vae(), scheduler)
    pipe.save_pretrained(path)
    # As in published folders; the pipeline itself does not write it.
    edit(path / "model_index.json", id2label={str(k): f"thing {k}" for k in range(classes)})
    return path


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of single letters, as it is saved without a SentencePiece file."""
    letters = [(chr(c), -3.0) for c in range(ord("a"), ord("z") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=512)


def t5_encoder(width: int = TEXT) -> T5EncoderModel:
    config = T5Config(
        vocab_size=30,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def pixart_folder(path: Path, *, alpha: bool = False, learned_sigma: bool = True) -> Path:
    """A PixArt-Sigma folder, or a PixArt-Alpha one; its scheduler is that of published folders."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(3)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned_sigma else 4,
            num_layers=2,
            cross_attention_dim=TEXT,
            caption_channels=TEXT,
            sample_size=8,
            use_additional_conditions=False,
        )
        for name, weight in transformer.named_parameters():
            if "attn2.to_" in name or "caption_projection" in name:
                weight.data.mul_(3)  # else prompts, and so guidance, would hardly matter
        pipe = (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(),
            vae=vae(),
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(),
        )
    pipe.save_pretrained(path)
    return path


def sd3_folder(path: Path, *, t5: bool = True, **scheduler: Any) -> Path:
    """A Stable Diffusion 3 folder, with its T5 or without."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(4)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        for name, weight in transformer.named_parameters():
            if "text_embedder" in name or "context_embedder" in name or "add_" in name:
                weight.data.mul_(4)  # else prompts, and so guidance, would hardly matter
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            vae=vae(16, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=text_encoder(projection=True),
            tokenizer=tokenizer(),
            text_encoder_2=text_encoder(projection=True),
            tokenizer_2=tokenizer(),
            text_encoder_3=t5_encoder(2 * TEXT) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    pipe.save_pretrained(path)
    return path


def gemma_tokenizer() -> GemmaTokenizer:
    """A tokenizer of single letters."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    return GemmaTokenizer(vocab={word: k for k, word in enumerate([*special, *letters])})


def sana_folder(path: Path, **transformer: Any) -> Path:
    """A Sana folder; its scheduler is that of published folders."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(5)
        network = SanaTransformer2DModel(
            in_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=TEXT,
            sample_size=8,
            **{"out_channels": 4, **transformer},
        )
        for name, weight in network.named_parameters():
            if "attn2.to_" in name or "caption_projection" in name:
                weight.data.mul_(3)  # else prompts, and so guidance, would hardly matter
        encoder = Gemma2Model(
            Gemma2Config(
                vocab_size=32,
                hidden_size=TEXT,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                initializer_range=0.5,
            )
        )
        sizes = {"block_out_channels": (8, 8, 16), "layers_per_block": (1, 1, 1)}
        both = {f"{side}_{k}": v for k, v in sizes.items() for side in ("encoder", "decoder")}
        pipe = SanaPipeline(
            tokenizer=gemma_tokenizer(),
            text_encoder=encoder,
            vae=AutoencoderDC(
                latent_channels=4,
                encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()),
                scaling_factor=0.41407,
                **both,
            ),
            transformer=network,
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    pipe.save_pretrained(path)
    return path


@functools.cache
def _without_fewstep() -> Any:
    """Processes that have imported the stock pipelines, and fewstep never."""
    from tests.forks import Forks  # the rest of this file can be used from anywhere

    pipelines = ("stable_diffusion.pipeline_stable_diffusion", "flux.pipeline_flux")
    forks = Forks([f"diffusers.pipelines.{name}" for name in pipelines])
    atexit.register(forks.close)
    return forks


def draw_apart(jobs: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """What stock pipelines draw (`stock.py`) in a process where fewstep cannot be imported."""
    torch.save(jobs, folder / "jobs.pt")
    stock = Path(__file__).with_name("stock.py")
    done = _without_fewstep().run(stock, folder / "jobs.pt", folder / "out.pt", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = torch.load(folder / "out.pt", weights_only=True)
    return found


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def w_student(parent: Path, steps: int | None = None, direction: Direction = "decode") -> Model:
    """A student whose w matters, though nothing has trained it; without steps, a stage one."""
    stage = Stage("student", "teacher", updates=1, steps=steps, direction=direction)
    student = student_of(load(parent), stage, (-1.0, 14.0), w_dim=32)
    assert isinstance(student, Model)
    projection = student.network.time_embedding.cond_proj.weight
    slow = (frequencies(32) <= BAND).repeat(2)
    draws = torch.Generator().manual_seed(1)
    projection.data.copy_(torch.randn(projection.shape, generator=draws) * slow)
    return student.eval()
