"""Editing images on the command line: what is left on the disk, and what is refused."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.cli.inside import fewstep
from tests.cli.test_cli import one_line_error
from tests.models.pipelines import sd_folder, w_student

import fewstep as library
from fewstep.data import open_dataset, read_images
from fewstep.folders import encode_prompts, load_vae, save_model
from fewstep.models import decode_latents, encode_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three held-out digits as files."""
    folder = tmp_path_factory.mktemp("images")
    x, _ = open_dataset("digits", "held-out").batch(torch.arange(3))
    for k, image in enumerate(x):
        pixels = ((image[0] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"digit{k}.png")
    return folder


def settings_in(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(Image.open(path).info["fewstep"])
    return found


def read(folder: Path) -> torch.Tensor:
    files = [np.asarray(Image.open(f)) for f in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(files))[:, None].float() / 127.5 - 1


def test_encode_then_decode(run: Path, images: Path, tmp_path: Path) -> None:
    done = fewstep("encode", run / "encoder-4", "--image", images, "--cond", "3,5,7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "noise.safetensors", "pt") as file:
        z, metadata = file.get_tensor("z"), json.loads(file.metadata()["fewstep"])
    classes = torch.tensor([3, 5, 7])
    model = library.load(run / "encoder-4")
    assert torch.allclose(z, library.encode(model, read(images), classes), atol=1e-5)
    assert metadata["files"] == ["digit0.png", "digit1.png", "digit2.png"]
    done = fewstep("decode", run / "student-4", "noise.safetensors", "--scale", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "decoded.png")).astype(int)
    back = library.decode(library.load(run / "student-4"), z, classes)
    pixels = ((back + 1) * 127.5).round().clamp(0, 255)[:, 0].numpy()
    assert np.abs(sheet[:, :8] - pixels[0]).max() <= 1
    assert settings_in(tmp_path / "decoded.png")["cond"] == "3,5,7"


def test_transfer_leaves_a_sheet_or_a_folder(run: Path, images: Path, tmp_path: Path) -> None:
    pair = (run / "encoder-4", run / "student-4", "--image", images, "--from", "any")
    done = fewstep("transfer", *pair, "--to", "3,5", "--scale", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = Image.open(tmp_path / "transfer.png")
    assert sheet.size == (3 * 10 - 2, 3 * 10 - 2)  # three images; the sources and two classes
    assert np.array_equal(np.asarray(sheet)[:8, :8], np.asarray(Image.open(images / "digit0.png")))
    assert settings_in(tmp_path / "transfer.png")["from"] == "any"
    done = fewstep("transfer", *pair, "--to", "3,5", "--out", "moved", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(t) for t in (tmp_path / "moved/metadata.jsonl").read_text().splitlines()]
    assert [r["file_name"] for r in lines[:2]] == ["0000-digit0-0.png", "0001-digit0-1.png"]
    assert {p.name for p in (tmp_path / "moved").glob("*.png")} == {
        "sheet.png",
        *(r["file_name"] for r in lines),
    }
    assert lines[0]["source"] == "digit0.png"


def test_one_model_that_takes_any_steps_is_both(run: Path, images: Path, tmp_path: Path) -> None:
    both = (run / "teacher", run / "stage-one", "--image", images / "digit1.png")
    done = fewstep("transfer", *both, "--from", 1, "--to", 2, "--steps", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert settings_in(tmp_path / "transfer.png")["steps"] == [3, 3]


@pytest.mark.parametrize("name", ["strip.png", "strip.gif"])
def test_interpolate(run: Path, images: Path, tmp_path: Path, name: str) -> None:
    pair = (run / "encoder-4", run / "student-4", "--cond", "1,2", "--count", 5, "--scale", 1)
    ends = ("--image", images / "digit0.png", "--image", images / "digit1.png")
    done = fewstep("interpolate", *pair, *ends, "--out", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / name) as image:
        if name.endswith("gif"):
            assert (image.n_frames, image.size) == (8, (8, 8))  # there and back
        else:
            assert image.size == (5 * 10 - 2, 8)


def test_img2img_and_inpaint(run: Path, images: Path, tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    shared = (run / "student-4", "--image", images, "--cond", 3, "--w", 1)
    done = fewstep("img2img", *shared, "--strength", 0.5, "--out", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = fewstep("inpaint", *shared, "--mask", "mask.png", "--out", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = np.asarray(Image.open(images / "digit0.png"))
    redrawn = np.asarray(Image.open(tmp_path / "a/0000-digit0.png"))
    filled = np.asarray(Image.open(tmp_path / "b/0000-digit0.png"))
    assert not np.array_equal(redrawn, kept)
    assert np.array_equal(filled[:, :4], kept[:, :4])
    assert not np.array_equal(filled[:, 4:], kept[:, 4:])
    assert Image.open(tmp_path / "b/sheet.png").size == ((3 * (64 + 2) - 2), 3 * (64 + 2) - 2)
    assert settings_in(tmp_path / "b/0000-digit0.png")["masks"] == ["mask.png"]


def test_roundtrip_measures_and_keeps(run: Path, tmp_path: Path) -> None:
    command = (
        "roundtrip", run / "encoder-4", run / "student-4", "--teacher", run / "teacher",
        "--w", "0,1", "--samples", 40, "--out", "trip",
    )  # fmt: skip
    done = fewstep(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "trip/roundtrip.json").read_text())
    ways = [("distilled", 4), ("teacher", 16), ("teacher", 4)]
    assert [(r["model"], r["steps"]) for r in rows] == ways * 2
    assert [r["evaluations"] for r in rows] == [8, 32, 8, 8, 64, 16]
    table = list(csv.DictReader((tmp_path / "trip/table.csv").open()))
    assert float(table[0]["psnr"]) == rows[0]["psnr"]
    with closing(sqlite3.connect(tmp_path / "trip/results.sqlite")) as db:
        kept = db.execute("SELECT key, created FROM cells WHERE sampler = 'roundtrip'").fetchall()
    assert len(kept) == 6
    again = fewstep(*command, cwd=tmp_path)
    assert "dB" not in again.stderr
    assert json.loads((tmp_path / "trip/roundtrip.json").read_text()) == rows
    # There and back by the teacher in more steps is nearer.
    psnr = {(r["model"], r["steps"], r["w"]): r["psnr"] for r in rows}
    assert psnr["teacher", 16, 0.0] > psnr["teacher", 4, 0.0]
    sheet = Image.open(tmp_path / "trip/transfer-w1.png")
    assert json.loads(sheet.info["fewstep"])["rows"][0] == "source"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("encode", "{run}/student-4", "--image", "{images}", "--cond", "3"), "cannot encode"),
        (("encode", "{run}/encoder-4", "--image", "{images}", "--cond", "3,4"), "for 3 images"),
        (("encode", "{run}/encoder-4", "--image", "nothing", "--cond", "3"), "does not exist"),
        (("encode", "{run}/encoder-4", "--image", "{run}", "--cond", "3"), "no images"),
        (
            ("encode", "{run}/encoder-4", "--image", "{run}/recipe.yaml", "--cond", "3"),
            "not a whole image",
        ),
        (
            ("encode", "{run}/encoder-4", "--image", "{images}", "--cond", "3", "--out", "z.npy"),
            "z.safetensors",
        ),
        (("decode", "{run}/student-4", "{run}/recipe.yaml"), "no encoded noise"),
        (
            ("transfer", "{run}/encoder-4", "{run}/student-4-stochastic", "--image", "{images}",
             "--from", "1", "--to", "2"),
            "stochastic",
        ),
        (
            ("transfer", "{run}/encoder-4", "{run}/student-4", "--image", "{images}", "--from", "1",
             "--to", "2", "--w", "9"),
            "w = 9 is outside",
        ),
        (
            ("transfer", "{run}/encoder-4", "{run}/student-4", "--image", "{images}", "--from", "x",
             "--to", "2"),
            "--from",
        ),
        (
            ("transfer", "{run}/encoder-4", "{run}/student-4", "--image", "{images}", "--from", "1",
             "--to", "2", "--out", "x.jpg"),
            "x.png",
        ),
        (
            ("interpolate", "{run}/encoder-4", "{run}/student-4", "--image", "{images}", "--cond",
             "1"),
            "between 2",
        ),
        (("img2img", "{run}/student-4", "--image", "{images}", "--cond", "1", "--strength", "0.1"),
         "[0.25, 1]"),
        (("inpaint", "{run}/encoder-4", "--image", "{images}", "--cond", "1", "--mask", "{images}"),
         "encoder"),
        (("roundtrip", "{run}/encoder-4", "--teacher", "{run}/teacher"), "partner"),
        (("roundtrip", "{run}/encoder-4", "{run}/student-2", "--teacher", "{run}/teacher"),
         "partner"),
        (("distill", "digits-encoders", "--teacher", "{run}/encoder-4"), "not a teacher"),
        (("report", "digits-encoders", "--teacher", "{run}/stage-one", "--set", "distill.w=[0,4]"),
             "guided teacher"),
    ],
)  # fmt: skip
def test_what_is_refused(
    run: Path, images: Path, tmp_path: Path, command: tuple[str, ...], says: str
) -> None:
    done = fewstep(*(c.format(run=run, images=images) for c in command), cwd=tmp_path)
    one_line_error(done, says)
    assert {p.name for p in tmp_path.iterdir()} <= {"roundtrip", "runs"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folders of a text-to-image encoder and decoder of random weights, and of two pictures."""
    folder = tmp_path_factory.mktemp("text")
    teacher = sd_folder(folder / "sd")
    for name, direction in (("encoder", "encode"), ("decoder", "decode")):
        save_model(w_student(teacher, 4, direction), folder / name)
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for k in range(2):
        pixels = draws.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{k}.png")
    return folder / "encoder", folder / "decoder", folder / "pictures"


def test_the_advice_of_refusals_can_be_followed(
    text: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    encoder, decoder, pictures = text
    draw = ("sample", encoder.parent / "sd", "--prompt", "a cat", "--w", 3)
    one_line_error(fewstep(*draw, cwd=tmp_path), "for example steps=50 (--steps 50)")
    done = fewstep(*draw, "--steps", 50, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    move = ("transfer", encoder, decoder, "--image", pictures, "--from-prompt", "a cat")
    move = (*move, "--to-prompt", "a dog", "--w-from", 99)
    one_line_error(fewstep(*move, cwd=tmp_path), "--w-from must lie in", "encoder", "got 99")
    move = ("interpolate", *move[1:3], "--image", pictures, "--prompt", "a cat", "--w-from")
    one_line_error(fewstep(*move, 99, cwd=tmp_path), "--w-from must lie in")
    for w in (0, 2):
        assert fewstep(*move, w, "--out", f"{w}.png", cwd=tmp_path).returncode == 0
    zero, two = (np.asarray(Image.open(tmp_path / f"{w}.png")) for w in (0, 2))
    assert not np.array_equal(zero, two)


def test_transfer_by_prompts(text: tuple[Path, Path, Path], tmp_path: Path) -> None:
    encoder, decoder, pictures = text
    pair = (encoder, decoder, "--image", pictures, "--from-prompt", "a cat")
    done = fewstep(
        "transfer", *pair, "--to-prompt", "a dog", "--to-prompt", "a fox", "--w", 3,
        "--out", "moved", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = sorted(pictures.glob("*.png"))
    x = encode_images(load_vae(encoder), read_images(files, (3, 16, 16)))
    conds = [encode_prompts(decoder, [p] * 2) for p in ("a cat", "a fox")]
    models = library.load(encoder), library.load(decoder)
    z = library.transfer(*models, x, *conds, w=3.0).x
    images = decode_latents(load_vae(decoder), z)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    found = np.asarray(Image.open(tmp_path / "moved/0003-1-1.png")).astype(int)
    assert np.abs(found - pixels[1]).max() <= 1
    assert settings_in(tmp_path / "moved/0003-1-1.png")["to"] == ["a dog", "a fox"]


def test_the_other_commands_take_prompts(text: tuple[Path, Path, Path], tmp_path: Path) -> None:
    encoder, decoder, pictures = text
    image = ("--image", pictures)
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    for command in (
        ("encode", encoder, *image, "--prompt", "a cat"),
        ("decode", decoder, "noise.safetensors"),
        ("interpolate", encoder, decoder, *image, "--prompt", "a cat", "--to-prompt", "a dog"),
        ("img2img", decoder, *image, "--prompt", "a dog", "--strength", 0.5),
        ("inpaint", decoder, *image, "--prompt", "a dog", "--mask", "mask.png"),
        ("sample", decoder, "--prompt", "a cat", "--prompt", "a dog", "--count", 2),
    ):
        done = fewstep(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    # Four samples side by side, eight pixels each of 16 and two between.
    assert Image.open(tmp_path / "sample.png").size == (4 * (8 * 16 + 2) - 2, 8 * 16)
    assert settings_in(tmp_path / "decoded.png")["prompt"] == "a cat"
    one_line_error(
        fewstep("transfer", encoder, decoder, *image, "--from", 1, "--to", 2, cwd=tmp_path),
        "--from-prompt",
    )


def test_prompts_are_not_for_classes(run: Path, images: Path, tmp_path: Path) -> None:
    wrong = ("img2img", run / "student-4", "--image", images, "--prompt", "a three")
    one_line_error(fewstep(*wrong, cwd=tmp_path), "draws by classes")
    wrong = ("sample", run / "student-4", "--prompt", "a three")
    one_line_error(fewstep(*wrong, cwd=tmp_path), "draws by classes")


def test_a_file_of_prompts_gives_a_folder(text: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A cat, sleeping\n\na dog\n")
    command = ("sample", text[1], "--prompts", "prompts.txt", "--count", 2, "--out", "drawn")
    done = fewstep(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(t) for t in (tmp_path / "drawn/metadata.jsonl").read_text().splitlines()]
    assert [(r["file_name"], r["prompt"]) for r in lines] == [
        ("0000-a-cat-sleeping.png", "A cat, sleeping"),
        ("0001-a-dog.png", "a dog"),
        ("0002-a-cat-sleeping.png", "A cat, sleeping"),
        ("0003-a-dog.png", "a dog"),
    ]
    assert Image.open(tmp_path / "drawn/0003-a-dog.png").size == (16, 16)
    (tmp_path / "prompts.txt").write_text("\n")
    one_line_error(fewstep(*command, cwd=tmp_path), "is empty")
