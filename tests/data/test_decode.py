"""One decoder: upright, opaque, eight bits, and the truth about what cannot be read."""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fewstep.data import image_files, open_image, read_images, read_prompts
from fewstep.data.decode import Record, decode, suffixes
from fewstep.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def pixels(data: bytes, channels: int = 3, size: int | None = None, **more: Any) -> np.ndarray:
    """(H, W, C) of the decoded image."""
    return decode(Record("it", data, None), size, channels, **more).transpose(1, 2, 0)


CORNER = np.zeros((8, 12, 3), np.uint8)
CORNER[:3, :3] = 255


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_is_applied(turn: int) -> None:
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(back[turn](CORNER))
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(Image.fromarray(stored), kind, exif=exif, lossless=True)
        assert np.array_equal(pixels(data), CORNER), kind


def test_a_damaged_exif_block_is_ignored() -> None:
    data = encoded(Image.fromarray(CORNER), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(data), CORNER)


def clear_square(mode: str) -> Image.Image:
    """Black where it is opaque, in the middle; clear elsewhere, over a hidden colour."""
    image = Image.new("RGBA", (6, 6), (200, 0, 200, 0))
    image.paste((0, 0, 0, 255), (2, 2, 4, 4))
    if mode == "P":
        indexed = Image.new("P", (6, 6), 1)
        indexed.putpalette([0, 0, 0, 200, 0, 200])
        indexed.paste(0, (2, 2, 4, 4))
        indexed.info["transparency"] = 1
        return indexed
    return image.convert(mode) if mode != "PA" else clear_square("P").convert("PA")


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("PA", None), ("RGBa", None),
     ("La", None)],
)  # fmt: skip
def test_transparency_is_composed_on_the_background(mode: str, kind: str | None) -> None:
    from fewstep.data.decode import opaque

    made = clear_square("LA").convert("La") if mode == "La" else clear_square(mode)
    image = made if kind is None else open_image(encoded(made, kind))
    for background, corner in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        found = np.asarray(opaque(image, "it", background).convert("RGB"))
        assert tuple(found[0, 0]) == corner
        assert tuple(found[3, 3]) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_colour_marked_as_transparent_is_composed_too(mode: str) -> None:
    values = np.full((4, 4), 40000 if mode == "I;16" else 90)
    values[1:3, 1:3] = 0
    image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    image = image.convert("RGB") if mode == "RGB" else image
    clear = {"L": 90, "RGB": (90, 90, 90), "I;16": 40000}[mode]
    found = pixels(encoded(image, transparency=clear))
    assert found[0, 0].tolist() == [255] * 3
    assert found[1, 1].tolist() == [0] * 3


def test_an_opaque_alpha_channel_changes_no_pixel() -> None:
    plain = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(plain)
    with_alpha = image.copy()
    with_alpha.putalpha(255)
    for channels in (1, 3):
        assert np.array_equal(
            pixels(encoded(image), channels), pixels(encoded(with_alpha), channels)
        )


RAMP = np.linspace(0, 1, 64)[None].repeat(4, 0)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * 255).astype(np.int32), "TIFF"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.float32), "TIFF"),
    ],
)
def test_deep_images_are_scaled_and_not_clipped(values: np.ndarray, kind: str) -> None:
    found = pixels(encoded(Image.fromarray(values), kind), 1)[..., 0]
    assert np.abs(found.astype(float) - RAMP * 255).max() <= 1
    assert np.array_equal(pixels(encoded(Image.fromarray(values), kind), 3)[..., 1], found)


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert pixels(encoded(Image.fromarray(np.full((4, 4), 200, np.uint16))), 1).max() == 1


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN"), (np.inf, "infinite"), (-3.0, "from -3"), (1e9, "to 1e")]
)
def test_floats_without_a_range_are_refused(value: float, message: str) -> None:
    values = RAMP.astype(np.float32).copy()
    values[0, 0] = value
    with pytest.raises(DataError, match=message):
        pixels(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB", "P", "RGBX"])
def test_every_mode_becomes_red_or_grey(mode: str) -> None:
    from fewstep.data.decode import opaque

    red = Image.new("RGB", (4, 4), (250, 5, 5))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        made = ImageCms.applyTransform(red, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert made is not None
    else:
        made = red.convert(mode)
    found = np.asarray(opaque(made, "it").convert("RGB")).reshape(-1, 3).mean(0)
    grey = mode in ("1", "L")
    assert grey or (found[0] > 235 and found[1] < 30)
    # Pillow 12 reads no TIFF file of YCbCr.
    kind = "JPEG" if mode == "YCbCr" else "TIFF"
    data = encoded(made, kind) if mode in ("CMYK", "YCbCr", "LAB", "P", "1") else None
    if data is not None:
        np.testing.assert_allclose(pixels(data).reshape(-1, 3).mean(0), found, atol=2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixels(data)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_a_large_image_is_refused_with_the_truth_and_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow alone would refuse these
    data = encoded(Image.fromarray(CORNER))
    with pytest.raises(DataError, match=r"12x8, .* at most 95 pixels.*data\.max_pixels"):
        pixels(data, max_pixels=95)
    assert pixels(data, max_pixels=96).shape == (8, 12, 3)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_pillows_own_limit_is_put_back_by_the_last_thread() -> None:
    before, data = Image.MAX_IMAGE_PIXELS, encoded(Image.fromarray(CORNER))
    threads = [threading.Thread(target=lambda: [pixels(data) for _ in range(30)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("cut", [0, 1, 20, 40, -100])
def test_damaged_bytes_are_named(cut: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise))
    with pytest.raises(DataError, match="it is not a whole image"):
        pixels(whole[:cut])


def test_random_bytes_after_any_header_are_decoded_or_refused() -> None:
    draws = np.random.default_rng(2)
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "TGA", "PPM", "PCX", "SGI")
    heads = [encoded(Image.fromarray(CORNER), k)[:40] for k in kinds]
    for head in [*heads, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]:
        for _ in range(20):
            tail = draws.integers(0, 256, 200, dtype=np.uint8).tobytes()
            with contextlib.suppress(DataError):  # any other error fails the test
                pixels(head + tail)


def test_what_is_no_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    (tmp_path / "empty.png").touch()
    for name, message in [("x.png", "not a file"), ("none.png", "does not exist"),
                       ("empty.png", "is empty")]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            open_image(tmp_path / name)


def test_suffixes_are_pillows_without_programs() -> None:
    assert suffixes() >= {
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".jfif",
        ".avif",
        ".jp2",
        ".tif",
        ".bmp",
    }
    assert not suffixes() & {".eps", ".ps", ".h5", ".pdf", ".mpg"}


def test_image_files_list_a_folder_as_training_does(tmp_path: Path) -> None:
    for name in ("b.JFIF", "a.png", ".hidden.png", "note.txt"):
        (tmp_path / name).write_bytes(encoded(Image.fromarray(CORNER), "JPEG"))
    (tmp_path / "x.png").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone")
    (tmp_path / "l.png").symlink_to(tmp_path / "a.png")
    found = image_files([tmp_path, tmp_path / "a.png"])
    assert [f.name for f in found] == ["a.png", "b.JFIF", "l.png", "a.png"]
    assert read_images(found, (3, 4, 4)).shape == (4, 3, 4, 4)
    for wrong in (tmp_path / "x.png", tmp_path / ("n" * 300), tmp_path / "none"):
        with pytest.raises(DataError):
            image_files([wrong])


def test_read_images_uses_the_background(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(path)
    assert torch.equal(read_images([path], (1, 4, 4)), torch.ones(1, 1, 4, 4))
    assert torch.equal(read_images([path], (1, 4, 4), background="black"), -torch.ones(1, 1, 4, 4))


TEXT = "ein schöner Hund\r\n\n  zwei Katzen  \nεva\u2028x\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_prompts_in_every_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "p.txt").write_bytes(TEXT.encode(encoding))
    assert read_prompts(tmp_path / "p.txt") == ["ein schöner Hund", "zwei Katzen", "εva\u2028x"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9\n", r"UTF-8, or UTF-16 with a byte order mark, and byte 3 \(0xe9\)"),
        ("no mark".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfea", "byte order mark"),
        (b"\xef\xbb\xbf \n", "is empty"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_the_encodings_that_work(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(tmp_path / "p.txt")
    assert "\n" not in str(caught.value)
