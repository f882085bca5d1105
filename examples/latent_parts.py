"""Make a small Stable Diffusion folder from images alone, all of it trained but its network.

Real ones come with a published model; this is how to have a whole latent text-to-image model when
there is none at hand. It trains an autoencoder (4 x 8 x 8 latents of 32 x 32 images), learns a
tokenizer from the captions, and trains CLIP text encoders on them against the images. The network
is fresh: `fewstep train latent-small --set latents.folder=OUT` trains it.

    python examples/latent_parts.py train.parquet --out runs/latent-small-parts
    python examples/latent_parts.py train.parquet --pipeline sd3 --vae runs/latent-small-parts/vae \
        --out runs/flow-small-parts

`sd` is Stable Diffusion 1 with a U-Net, for the recipe latent-small. `sd3` is Stable Diffusion 3
with a transformer trained by flow matching and no T5, for the recipe flow-small. Half an hour on
one CPU core for CIFAR-10, two minutes on a GPU; a part that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fewstep.atomic import atomic_folder
from fewstep.core.device import choose_device
from fewstep.core.seed import derive, generator
from fewstep.data import DataConfig, Dataset, caption, open_dataset

TEMPLATES = ("a photo of a {}", "a picture of the {}", "one {}", "a small image of a {}", "{}")
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 16  # tokens of a prompt
# Text encoder -> features of a token. Stable Diffusion 3 joins those of both.
ENCODERS = {
    "sd": {"text_encoder": 64},
    "sd3": {"text_encoder": 32, "text_encoder_2": 32},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", help="parquet file or folder of images with classes, 32 x 32")
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to make")
    parser.add_argument("--pipeline", choices=list(ENCODERS), default="sd", help="default sd")
    parser.add_argument("--vae", type=Path, help="folder of an autoencoder to take")
    parser.add_argument("--vae-updates", type=int, default=3500)
    parser.add_argument("--clip-updates", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    data = DataConfig(name=given.images, size=32, held_out=0.05)
    train, held_out = open_dataset(data, "train"), open_dataset(data, "held-out")
    parts = given.out.with_name(given.out.name + "-unfinished")
    parts.mkdir(parents=True, exist_ok=True)
    if not (parts / "vae").is_dir():
        if given.vae is None:
            vae = train_vae(train, given.vae_updates, given.seed)
        else:
            vae = AutoencoderKL.from_pretrained(given.vae).to(choose_device())
        scale_latents(vae, train, given.seed, shift=given.pipeline == "sd3")
        whole(parts / "vae", vae.save_pretrained)
    for name, width in ENCODERS[given.pipeline].items():
        if not (parts / name).is_dir():
            words = learn_tokenizer([caption(t, c) for t in TEMPLATES for c in train.class_names])
            words.save_pretrained(parts / name.replace("text_encoder", "tokenizer"))
            kind = CLIPTextModel if given.pipeline == "sd" else CLIPTextModelWithProjection
            drawn = name.replace("text_encoder", "clip")  # names its random draws
            text, accuracy = train_text_encoder(
                kind, width, words, train, held_out, given.clip_updates, given.seed, drawn
            )
            print(f"{name}: {accuracy:.3f} of held-out images nearest to their own caption")
            whole(parts / name, text.save_pretrained)
    vae = AutoencoderKL.from_pretrained(parts / "vae").to(choose_device())
    print(f"autoencoder: {psnr(vae, held_out):.2f} dB on held-out images")
    make = stable_diffusion if given.pipeline == "sd" else stable_diffusion_3
    whole(given.out, make(vae, parts, given.seed).save_pretrained)
    print(f"parts: {given.out}")


def stable_diffusion(vae: AutoencoderKL, parts: Path, seed: int) -> Any:
    torch.manual_seed(derive(seed, "unet"))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=fresh_unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3(vae: AutoencoderKL, parts: Path, seed: int) -> Any:
    torch.manual_seed(derive(seed, "transformer"))
    text = CLIPTextModelWithProjection
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        text_encoder_2=text.from_pretrained(parts / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(parts / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=fresh_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
    )


def whole(folder: Path, save: Callable[[Path], object]) -> None:
    with atomic_folder(folder) as partial:
        save(partial)


def fresh_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=ENCODERS["sd"]["text_encoder"],
    )


def fresh_transformer() -> SD3Transformer2DModel:
    """Return a transformer of 2.3 million parameters whose blocks change nothing yet (adaLN-zero).

    Source: Peebles & Xie 2022, section 3.2.
    """
    width = sum(ENCODERS["sd3"].values())
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=width,
        caption_projection_dim=128,
        pooled_projection_dim=width,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    modulations = [m.linear for b in network.transformer_blocks for m in (b.norm1, b.norm1_context)]
    for layer in (*modulations, network.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,  # so that sampling starts where training did
        timestep_spacing="trailing",
        clip_sample=False,
    )


def batch(data: Dataset, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    x, label = data.batch(torch.randint(len(data), (size,), generator=draws))
    assert isinstance(label, Tensor)  # class ids, as images have
    mirrored = torch.rand(size, generator=draws) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x), label


def optimizer(
    parameters: Iterable[nn.Parameter], lr: float, updates: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    adamw = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    warm = min(100, updates)

    def factor(n: int) -> float:
        return min(1.0, (n + 1) / warm) * 0.5 * (1 + math.cos(math.pi * n / updates))

    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, factor)


def train_vae(data: Dataset, updates: int, seed: int) -> AutoencoderKL:
    """Absolute error plus a little KL."""
    device = choose_device()
    torch.manual_seed(derive(seed, "vae"))
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    ).to(device)
    adamw, schedule = optimizer(vae.parameters(), 2e-3, updates)
    bar = trange(updates, desc="autoencoder", disable=None)
    for n in bar:
        x = batch(data, 32, generator("cpu", seed, "vae", n))[0].to(device)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        loss = (y - x).abs().mean() + 1e-5 * posterior.kl().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        schedule.step()
        if n % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return vae.eval()


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, data: Dataset, seed: int, *, shift: bool) -> None:
    """Set the scale that makes latents of unit variance, and with shift of mean 0."""
    x, _ = batch(data, 1000, generator("cpu", seed, "scale"))
    z = torch.cat([vae.encode(p).latent_dist.mode() for p in x.to(vae.device).split(100)])
    vae.register_to_config(scaling_factor=round(1.0 / float(z.std()), 5))
    if shift:
        vae.register_to_config(shift_factor=round(float(z.mean()), 5))


@torch.no_grad()
def psnr(vae: AutoencoderKL, data: Dataset) -> float:
    """Mean over images of the peak signal-to-noise ratio, x in [-1, 1]."""
    x, _ = data.batch(torch.arange(min(500, len(data))))
    parts = x.to(vae.device).split(100)
    y = torch.cat([vae.decode(vae.encode(p).latent_dist.mode()).sample for p in parts])
    errors = (y.cpu().clamp(-1, 1) - x).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / errors)).mean())


def learn_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Byte pairs of the captions, in CLIP's form: words end in </w>."""
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = normalizers.Lowercase()
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=256,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        special_tokens=[START, END],
        show_progress=False,
    )
    learnt.train_from_iterator(captions, trainer)
    kept = json.loads(learnt.to_str())["model"]
    vocab = dict(kept["vocab"])
    for word in (*letters, *(f"{c}</w>" for c in letters)):
        vocab.setdefault(word, len(vocab))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in kept["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


class ImageEncoder(nn.Module):
    """What the captions are trained against; not kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(128, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width) of length 1."""
        return F.normalize(self.out(self.layers(x)), dim=1)


def train_text_encoder(
    kind: type[CLIPTextModel | CLIPTextModelWithProjection],
    width: int,
    words: CLIPTokenizer,
    train: Dataset,
    held_out: Dataset,
    updates: int,
    seed: int,
    name: str,
) -> tuple[Any, float]:
    """As CLIP: an image and its caption near each other, other captions far (Radford 2021)."""
    device = choose_device()
    torch.manual_seed(derive(seed, name))
    text = kind(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=width,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    ).to(device)
    images = ImageEncoder(width).to(device)
    scale = nn.Parameter(torch.tensor(math.log(10.0), device=device))
    parameters = [*text.parameters(), *images.parameters(), scale]
    adamw, schedule = optimizer(parameters, 1e-3, updates)
    names = train.class_names

    def embed(texts: list[str]) -> Tensor:
        ids = words(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        made = text(ids.to(device))
        pooled: Tensor = made.pooler_output if kind is CLIPTextModel else made.text_embeds
        return F.normalize(pooled, dim=1)

    bar = trange(updates, desc=name, disable=None)
    for n in bar:
        draws = generator("cpu", seed, name, n)
        x, label = batch(train, 128, draws)
        which = torch.randint(len(TEMPLATES), (len(x),), generator=draws).tolist()
        texts = [
            caption(TEMPLATES[t], names[c]) for t, c in zip(which, label.tolist(), strict=True)
        ]
        distinct = sorted(set(texts))
        target = torch.tensor([distinct.index(t) for t in texts], device=device)
        logits = scale.exp() * images(x.to(device)) @ embed(distinct).T
        loss = F.cross_entropy(logits, target)
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        schedule.step()
        if n % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with torch.no_grad():
        x, classes = held_out.batch(torch.arange(len(held_out)))
        assert isinstance(classes, Tensor)
        captions = embed([caption(TEMPLATES[0], name) for name in names])
        near = torch.cat([(images(part.to(device)) @ captions.T).cpu() for part in x.split(500)])
    return text.eval(), float((near.argmax(1) == classes).float().mean())


if __name__ == "__main__":
    main()
