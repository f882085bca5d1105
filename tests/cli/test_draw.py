"""The drawing commands, in this process: what they write over, which classes, masks and numbers."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.models.conftest import TINY, card
from tests.models.pipelines import dit_folder, sd_folder

from fewstep.atomic import sha256
from fewstep.cli.bounds import check_images
from fewstep.cli.classes import Classes
from fewstep.cli.main import main
from fewstep.cli.options import numbers, whole
from fewstep.cli.out import check_out
from fewstep.errors import FewstepError, RangeError
from fewstep.folders import save_model
from fewstep.models import Model, build_unet
from fewstep.show.sheet import check_sheet, contact_sheet, most_shown, rows_of

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of random weights with ten classes called 0 to 9; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        unet = build_unet(TINY, (1, 8, 8), 10)
    save_model(Model(unet, card(class_names=tuple(map(str, range(10))))), folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line of a command that fails."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) != 0
    (line,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("fewstep: ")]
    return line


def picture(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def settings(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Image.open(path).info["fewstep"])
    return found


# What is written over.


def test_files_of_the_users_are_refused_before_a_model_is_loaded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(here / "mine.png")
    save_file({"z": torch.zeros(1, 1, 8, 8)}, here / "mine.safetensors")
    Image.new("L", (4, 4)).save(here / "mine.gif")
    (here / "folder").mkdir()
    (here / "folder" / "metadata.jsonl").write_text("mine\n")
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    source = ("--image", picture(here.parent / f"{here.name}.png"), "--cond", 1)
    commands = {
        "mine.png": ("sample", "no-model"),
        "folder": ("sample", "no-model"),
        "mine.safetensors": ("encode", "no-model", *source),
        "mine.gif": ("interpolate", "no-model", "no-model", *source),
    }
    for out, command in commands.items():
        line = refused(capsys, *command, "--out", out)
        assert "must not hold files that fewstep did not draw" in line
        assert "--overwrite" in line
    for command in (
        ("img2img", "no-model", *source),
        ("inpaint", "no-model", *source, "--mask", "mine.png"),
        ("decode", "no-model", "mine.safetensors"),
        ("transfer", "no-model", "no-model", *source[:2], "--from", 1, "--to", 2),
    ):
        assert "metadata.jsonl" in refused(capsys, *command, "--out", "folder")
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_a_command_may_be_run_again(teacher: Path, here: Path) -> None:
    picture(here / "a.png"), picture(here / "b.png", seed=1)
    draw = ("sample", teacher, "--cond", 3, "--steps", 2)
    ends = ("--image", "a.png", "--image", "b.png", "--steps", 2, "--cond", 1)
    for command in (
        draw,
        (*draw, "--out", "folder"),
        ("encode", teacher, *ends),
        ("interpolate", teacher, teacher, *ends, "--out", "arc.gif", "--count", 3),
    ):
        done(*command)
        done(*command)


def test_fewer_images_leave_none_of_the_earlier_ones(teacher: Path, here: Path) -> None:
    draw = ("sample", teacher, "--steps", 1, "--out", "folder", "--cond")
    done(*draw, "1-5")
    done(*draw, "7")
    assert {p.name for p in (here / "folder").iterdir()} == {
        "0000-7.png", "sheet.png", "metadata.jsonl",
    }  # fmt: skip


def test_overwrite_leaves_other_files(teacher: Path, here: Path) -> None:
    (here / "folder").mkdir()
    for name in ("0000-mine.png", "0000-3.png", "notes.txt", "metadata.jsonl"):
        (here / "folder" / name).write_text("mine")
    done("sample", teacher, "--steps", 1, "--cond", 3, "--out", "folder", "--overwrite")
    kept = {p.name for p in (here / "folder").iterdir() if p.read_bytes() == b"mine"}
    assert kept == {"0000-mine.png", "notes.txt"}


def test_pictures_that_were_moved_away_are_the_users(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = ("sample", teacher, "--steps", 1, "--cond", "1-3", "--out")
    done(*draw, "drawn")
    (here / "best").mkdir()
    (here / "drawn" / "0001-2.png").rename(here / "best" / "0000-best.png")
    assert "0000-best.png" in refused(capsys, *draw, "best")


def test_an_input_is_never_replaced(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("sample", teacher, "--steps", 1, "--cond", 3, "--scale", 1, "--out", "three.png")
    done("sample", teacher, "--steps", 1, "--cond", 3, "--out", "drawn")
    one = "drawn/0000-3.png"
    for source, out in (("three.png", "three.png"), ("drawn", "drawn"), (one, "drawn"), (one, one)):
        edit = ("img2img", teacher, "--image", source, "--cond", 1, "--steps", 2, "--out", out)
        assert "what the command reads" in refused(capsys, *edit, "--overwrite")


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("sheet.jpg", "sheet.png or sheet"),
        ("a-file/x.png", "a-file is a file"),
        ("a-file", "the file a-file"),
        ("link", "broken link"),
        ("x" * 300, "File name too long"),
        ("a-folder.png", "the folder a-folder.png"),
        ("zero\0byte", "null"),
        (".png", "result.png or result"),
    ],
)
def test_places_that_cannot_be_written(here: Path, out: str, says: str) -> None:
    (here / "a-file").write_text("mine")
    (here / "link").symlink_to(here / "nowhere")
    (here / "a-folder.png").mkdir()
    with pytest.raises(FewstepError, match=says):
        check_out(Path(out), overwrite=True)


def test_folders_may_have_dots(here: Path) -> None:
    (here / "v1.beta").mkdir()
    for name in ("v1.5", "v1.beta", "new"):
        check_out(Path(name), overwrite=False)
    with pytest.raises(RangeError, match=r"noise\.safetensors"):
        check_out(Path("noise"), False, suffixes=(".safetensors",), folder=False)


def test_a_prompt_or_file_of_any_length_makes_a_file_name(teacher: Path, here: Path) -> None:
    picture(here / f"{'é' * 120}.png")
    edit = ("img2img", teacher, "--image", here, "--cond", 1, "--steps", 2, "--out", "drawn")
    done(*edit)
    (name,) = [p.name for p in (here / "drawn").glob("0000*")]
    assert len(name.encode()) < 200


def test_a_folder_has_one_writer(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "drawn").mkdir()
    with (here / "drawn" / ".fewstep.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        line = refused(capsys, "sample", teacher, "--steps", 1, "--out", "drawn")
        assert "only one process may write" in line
    done("sample", teacher, "--steps", 1, "--out", "drawn")


# Classes.

ANIMALS = ("cat", "dog", "sea lion")
IMAGENET = ("tench, Tinca tinca", "white shark, man-eater", "cock", "crane", "crane")
NUMBERED = ("0", "1", "10", "11", "2", "3", "4")


@pytest.mark.parametrize(
    ("names", "text", "ids"),
    [
        (ANIMALS, "dog, sea lion,cat", [1, 2, 0]),
        (ANIMALS, "0-2,1", [0, 1, 2, 1]),
        (ANIMALS, "any,dog", [3, 1]),
        (NUMBERED, "2-4", [4, 5, 6]),
        (NUMBERED, "2", [4]),
        (NUMBERED, "4-10", [6, 2]),
        (("001", "002", "010"), "1-10", [0, 1, 2]),
        (("0-9", "10-19", "20-29"), "10-19,0-9", [1, 0]),
        (IMAGENET, "tench, Tinca tinca", [0]),
        (IMAGENET, "tench,Tinca tinca,cock", [0, 2]),
        (IMAGENET, "man-eater,tench", [1, 0]),
        (IMAGENET, "3,4", [3, 4]),
        (("any", "none"), "any", [0]),
        ((), "0,3-4", [0, 3, 4]),
    ],
)
def test_a_class_is_written_in_one_way(names: tuple[str, ...], text: str, ids: list[int]) -> None:
    count = len(names) or 5
    assert Classes(names, count, null=count).ids(text, "--cond") == ids


@pytest.mark.parametrize(
    ("names", "text", "says"),
    [
        (ANIMALS, "dogs", "no class 'dogs'. Did you mean 'dog'?"),
        (ANIMALS, "3", "no class 3. Its classes are cat, dog, sea lion"),
        (ANIMALS, "2-1", "a range must go up, got '2-1'"),
        (ANIMALS, "0-99999999999", "no class 0-99999999999"),
        (ANIMALS, "9" * 5000, "no class"),
        (ANIMALS, "-1", "no class '-1'"),
        (ANIMALS, "cat,,dog", "no class ''"),
        (ANIMALS, "", "no class ''"),
        (ANIMALS, "²", "no class '²'"),
        (ANIMALS, "1.0", "no class '1.0'"),
        (NUMBERED, "5", "no class 5"),
        (NUMBERED, "2-5", "no class 2-5"),
        (tuple(map(str, range(10))), "0,10,11", "no class 10, no class 11. Its classes are 0 to 9"),
        (IMAGENET, "crane", "names the classes number 3 and 4. Pass the number"),
        ((), "5", "Its classes are 0 to 4"),
        (("cat, wild", "dog"), "cow", "Its classes are 'cat, wild', dog. Pass"),
    ],
)
def test_classes_that_are_not_there(names: tuple[str, ...], text: str, says: str) -> None:
    with pytest.raises(RangeError) as error:
        Classes(names, len(names) or 5).ids(text, "--cond")
    assert says in str(error.value)
    assert len(str(error.value)) < 6000


def test_a_class_of_a_row_is_its_name_too(teacher: Path, here: Path) -> None:
    """transfer and sample agree on what a number is, whatever the order of the names."""
    folder = here / "numbered"
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        unet = build_unet(TINY, (1, 8, 8), 12)
    names = sorted(map(str, range(12)))
    save_model(Model(unet, card(num_classes=12, null_class=12, class_names=names)), folder)
    done("sample", folder, "--cond", "2-4", "--steps", 1, "--out", "drawn")
    lines = [json.loads(t) for t in (here / "drawn/metadata.jsonl").read_text().splitlines()]
    assert [names[int(line["cond"])] for line in lines] == ["2", "3", "4"]
    pair = (folder, folder, "--image", picture(here / "a.png"), "--from", "any", "--steps", 2)
    done("transfer", *pair, "--to", "10")
    assert settings(here / "transfer.png")["to"] == [str(names.index("10"))]


# Numbers.


@pytest.mark.parametrize("text", ["5-2", "0-99999999999", "a", "", "1,,2", "1.5", "-1", "9" * 5000])
def test_whole_numbers_that_are_none(text: str) -> None:
    with pytest.raises(RangeError, match="--steps"):
        whole(text, "--steps")


@pytest.mark.parametrize("text", ["nan", "0,inf", "", "1;2", "1e999"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(RangeError, match="--w must be finite"):
        numbers(text, "--w")
    assert numbers("0, 1,2.5e0", "--w") == [0.0, 1.0, 2.5]
    assert whole("0, 1,5-7", "--steps") == [0, 1, 5, 6, 7]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--w", "nan"), "finite"),
        (("--w", "inf"), "finite"),
        (("--w", "1e30"), "w must lie in [-1000, 1000]"),
        (("--steps", "2", "--count", "1000000", "--scale", "64"), "a sheet must have at most"),
        (("--device", "mps"), "device must be"),
        (("--device", "gpu"), "device must be"),
        (("--device", "cuda:999"), "device must"),
        (("--cond", "5-2"), "--cond"),
        (("--prompt", "a cat"), "draws by classes: pass --cond"),
        ((), "accepts any number of steps: pass one, for example steps=64"),
    ],
)
def test_sample_refuses_in_one_line(
    teacher: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    more = () if not options or "--steps" in options else ("--steps", 2)
    assert says in refused(capsys, "sample", teacher, *more, *options)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ("--count", "1000000000000"), ("--scale", "1000000"), ("--columns", "0"),
        ("--steps", "1000000000"), ("--steps", "0"), ("--count", "0"),
    ],
)  # fmt: skip
def test_numbers_out_of_bounds_are_usage_errors(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["sample", str(teacher), *options]) == 2
    assert f"Invalid value for '{options[0]}'" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_images_that_do_not_fit_into_memory() -> None:
    check_images(10, (3, 64, 64))
    with pytest.raises(RangeError, match="must fit into memory"):
        check_images(10**15, (3, 64, 64))


def test_a_sheet_is_never_larger_than_can_be_opened() -> None:
    shape = (3, 512, 512)
    check_sheet(100, 10, shape)
    with pytest.raises(RangeError, match="178,956,970"):
        check_sheet(100, 10, shape, 8)
    with pytest.raises(RangeError, match="178,956,970"):
        contact_sheet(torch.zeros(1, 1, 1, 1).expand(10**6, 1, 16, 16), 10, 64)
    shown = most_shown(10_000, 10, shape, 1, rows=2)
    check_sheet(2 * shown, 10, shape)
    assert 0 < shown < 10_000
    assert shown % 10 == 0


def test_a_sheet_of_one_row_is_a_sheet_of_rows() -> None:
    x = torch.rand(13, 3, 4, 5) * 2 - 1
    mine, theirs = (np.asarray(s) for s in (contact_sheet(x, 5, 3), rows_of([x], 5, 3)))
    assert np.array_equal(mine, theirs)


# NaN and infinity.


@pytest.fixture
def broken(teacher: Path, here: Path) -> Path:
    """The teacher with weights that overflow on the way, while each of them is finite."""
    folder = here / "broken"
    shutil.copytree(teacher, folder)
    found = load_file(folder / WEIGHTS)
    found["conv_out.weight"] = torch.full_like(found["conv_out.weight"], 3e38)
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    card = json.loads((folder / "fewstep.json").read_text())
    card["weights_sha256"] = sha256(folder / WEIGHTS)
    (folder / "fewstep.json").write_text(json.dumps(card))
    return folder


def test_no_picture_or_noise_of_nan(
    broken: Path, teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--image", picture(here / "a.png"), "--cond", 1, "--steps", 2)
    for command in ("sample", "encode", "img2img"):
        arguments = source if command != "sample" else source[2:]
        assert "must be finite" in refused(capsys, command, broken, *arguments)
    noise = torch.full((1, 1, 8, 8), float("nan"))
    metadata = {"fewstep": json.dumps({"command": "encode", "cond": "3"})}
    save_file({"z": noise}, here / "z.safetensors", metadata=metadata)
    assert "must be finite" in refused(capsys, "decode", teacher, "z.safetensors", "--steps", 2)
    assert {p.name for p in here.iterdir()} == {"broken", "a.png", "z.safetensors"}


@pytest.mark.parametrize(
    ("z", "note"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), {"cond": "3"}),
        (torch.zeros(0, 1, 8, 8), {"cond": "3"}),
        (torch.zeros(()), {"cond": "3"}),
        (torch.zeros(1, 3, 8, 8), {"cond": "3"}),
        (torch.zeros(1, 1, 8, 8), ["cond"]),
        (torch.zeros(1, 1, 8, 8), {"cond": 3}),
    ],
)
def test_noise_files_that_are_none(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str], z: torch.Tensor, note: object
) -> None:
    save_file({"z": z}, here / "z.safetensors", metadata={"fewstep": json.dumps(note)})
    refused(capsys, "decode", teacher, "z.safetensors", "--steps", 2)
    assert not (here / "decoded.png").exists()


def test_noise_of_another_precision_is_decoded(teacher: Path, here: Path) -> None:
    metadata = {"fewstep": json.dumps({"cond": "3", "files": ["../a.png"]})}
    save_file({"z": torch.zeros(1, 1, 8, 8).double()}, here / "z.safetensors", metadata=metadata)
    done("decode", teacher, "z.safetensors", "--steps", 2, "--out", "drawn")
    assert (here / "drawn" / "0000-a.png").is_file()


# Masks.


def mask_of(path: Path, mode: str, base: Any, spot: Any, size: tuple[int, int] = (32, 32)) -> Path:
    image = Image.new(mode, size, base)
    image.paste(spot, (0, 0, 16, 32))
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "base", "spot", "size", "says"),
    [
        ("RGBA", (0, 0, 0, 255), (0, 0, 0, 0), (32, 32), "must be opaque"),
        ("LA", (0, 0), (255, 255), (32, 32), "must be opaque"),
        ("L", 0, 1, (32, 32), "brightest pixel is 1"),
        ("L", 0, 127, (32, 32), "brightest pixel is 127"),
        ("L", 0, 0, (32, 32), "brightest pixel is 0"),
        ("L", 0, 255, (64, 32), "width and height of its image"),
        ("L", 0, 255, (32, 64), "width and height of its image"),
        ("L", 0, 255, (4, 4), "smaller than"),
    ],
)
def test_masks_that_are_refused(
    teacher: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    base: Any,
    spot: Any,
    size: tuple[int, int],
    says: str,
) -> None:
    picture(here / "a.png", (32, 32))
    mask_of(here / "m.png", mode, base, spot, size)
    paint = ("inpaint", teacher, "--image", "a.png", "--mask", "m.png", "--cond", 1, "--steps", 2)
    assert says in refused(capsys, *paint)
    assert not (here / "inpainted.png").exists()


def test_a_mark_that_is_too_thin_is_refused(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(here / "a.png", (32, 32))
    thin = np.zeros((32, 32), np.uint8)
    thin[:, 5] = 255
    Image.fromarray(thin).save(here / "m.png")
    paint = ("inpaint", teacher, "--image", "a.png", "--mask", "m.png", "--cond", 1, "--steps", 2)
    assert "more than half of one" in refused(capsys, *paint)


@pytest.mark.parametrize(
    ("mode", "base", "spot", "size"),
    [
        ("L", 0, 255, (32, 32)),
        ("L", 0, 255, (64, 64)),
        ("1", 0, 1, (32, 32)),
        ("RGB", (0, 0, 0), (255, 255, 255), (32, 32)),
        ("RGBA", (0, 0, 0, 255), (255, 255, 255, 255), (32, 32)),
        ("I;16", 0, 65535, (32, 32)),
    ],
)
def test_masks_draw_where_they_are_white(
    teacher: Path, here: Path, mode: str, base: Any, spot: Any, size: tuple[int, int]
) -> None:
    picture(here / "a.png", (32, 32))
    white = (size[0] // 2, size[1])
    image = Image.new(mode, size, base)
    image.paste(spot, (0, 0, *white))
    image.save(here / "m.png")
    paint = ("inpaint", teacher, "--image", "a.png", "--mask", "m.png", "--cond", 1)
    done(*paint, "--steps", 2, "--out", "drawn")
    whole_image = Image.open(here / "a.png").resize((8, 8), Image.Resampling.BOX)
    kept, found = (np.asarray(i) for i in (whole_image, Image.open(here / "drawn/0000-a.png")))
    assert np.array_equal(found[:, 4:], kept[:, 4:])
    assert not np.array_equal(found[:, :4], kept[:, :4])


# Prompts.


def test_a_prompt_file_of_another_encoding(
    tmp_path_factory: pytest.TempPathFactory, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sd_folder(tmp_path_factory.mktemp("sd") / "sd")
    (here / "p.txt").write_bytes(b"caf\xe9\n")
    draw = ("sample", folder, "--prompts", "p.txt", "--steps", 1, "--out", "drawn")
    assert "UTF-8" in refused(capsys, *draw)
    assert "no such file" in refused(capsys, *draw[:3], "none.txt", *draw[4:])
    (here / "p.txt").write_bytes("a cat\r\nein Hündchen\n".encode("utf-16"))
    done(*draw)
    names = sorted(p.name for p in (here / "drawn").glob("0*"))
    assert names == ["0000-a-cat.png", "0001-ein-hündchen.png"]
    assert "draws by prompts: pass --prompt" in refused(capsys, "sample", folder, "--steps", 1)


# Beside drawing.


def test_a_measurement_replaces_no_table_of_the_users(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "table.csv").write_text("mine")
    trip = ("roundtrip", teacher, "--teacher", teacher, "--out")
    assert "table.csv" in refused(capsys, *trip, "mine")
    assert (here / "mine" / "table.csv").read_text() == "mine"
    (here / "file").write_text("mine")
    assert "the file file" in refused(capsys, *trip, "file")
    assert "device must be" in refused(capsys, *trip, "new", "--device", "gpu")


def test_show_prints_no_control_characters(
    teacher: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(teacher, here / "m")
    card = json.loads((here / "m/fewstep.json").read_text())
    card |= {"name": "red\x1b[31m\nline", "training": {"seed": 3, "data_sha256": "0" * 64}}
    (here / "m/fewstep.json").write_text(json.dumps(card))
    capsys.readouterr()
    assert main(["show", "m"]) == 1
    said = capsys.readouterr()
    assert "name" in said.err
    assert "\x1b" not in said.out + said.err


def test_show_knows_every_kind_of_folder(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path_factory.mktemp("kinds")
    sd_folder(folders / "sd"), dit_folder(folders / "dit", classes=3)
    for name, says in {"sd": "by prompts", "dit": "3 classes"}.items():
        capsys.readouterr()
        done("show", folders / name)
        assert says in capsys.readouterr().out
        done("show", folders / name, "--json")
        assert json.loads(capsys.readouterr().out)["stage"]["kind"] == "pretraining"
