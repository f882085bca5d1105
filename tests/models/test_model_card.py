"""README.md of a saved folder: true, runnable, and honest about what stock pipelines do not do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import sd_folder, w_student

from fewstep.distill.plan import Stage
from fewstep.folders import load, save_model
from fewstep.folders.readme import licence_of
from fewstep.models import student_of

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def saved(parent: Path, folder: Path, steps: int | None = 4, **card: Any) -> str:
    student = w_student(parent, steps)
    student.card = student.card.model_copy(update=card)
    save_model(student, folder)
    return (folder / "README.md").read_text()


def snippets(text: str, folder: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [code.replace("path/to/student", str(folder)) for code in found]


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_its_snippets_run(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    text = saved(request.getfixturevalue(kind), tmp_path / "m")
    stock, ours = snippets(text, tmp_path / "m")
    assert "num_inference_steps=4, guidance_scale=7.5" in stock
    names: dict[str, Any] = {}
    # The tiny encoders read 12 tokens.
    exec(stock.replace("a photograph of a cat", "a cat"), names)
    assert names["image"].size == (16, 16)
    exec(ours.replace("a photograph of a cat", "a cat"), names)
    assert names["images"].shape == (1, 3, 16, 16)
    assert isinstance(names["images"], torch.Tensor)


def test_it_says_what_is_and_what_is_not(sd: Path, tmp_path: Path) -> None:
    text = saved(sd, tmp_path / "m", figures={"fid": 12.345}, training={"updates": 60})
    for names in (
        "`num_inference_steps` must be 4",
        "`guidance_scale` is 1 + w",
        "w from -1 to 14: give a `guidance_scale` from 0 to 15",
        "Negative prompts are ignored",
        "guided away from the empty prompt",
        "0.068 of the image is still there, so it is not quite text-to-image",
        "| fid | 12.35 |",
        "| updates | 60 |",
        "| the network predicts | epsilon |",
        "names no licence",
    ):
        assert names in text
    assert load(tmp_path / "m").card.weights_sha256 in text  # type: ignore[union-attr]
    assert str(tmp_path) not in text


def test_it_differs_where_the_model_does(sd: Path, xl: Path, tmp_path: Path) -> None:
    one = saved(sd, tmp_path / "one", stage=Stage(None, "teacher"), null_prompt='a "bad" one')
    assert "any number that divides 1000" in one
    assert 'guided away from the prompt "a \\"bad\\" one"' in one
    assert "None were measured" in one
    assert "zeros in place of a prompt" in saved(xl, tmp_path / "xl")
    ends_in_noise = saved(sd_folder(tmp_path / "v", **ZERO_SNR), tmp_path / "zero")
    assert "nothing is left of the image: it is text-to-image" in ends_in_noise
    stage = Stage(None, "teacher", steps=4, stride=2)
    stochastic = saved(sd, tmp_path / "stochastic", stage=stage)
    assert "no stock scheduler makes" in stochastic
    assert "StableDiffusionPipeline" not in stochastic


def test_a_teacher_and_a_pair_are_guided_by_two_passes(sd: Path, tmp_path: Path) -> None:
    teacher = load(sd)
    save_model(teacher.denoiser, tmp_path / "t")  # type: ignore[union-attr, arg-type]
    pair = student_of(teacher, Stage("pair", "teacher", updates=1, steps=4, pair=True), (0, 4))  # type: ignore[arg-type]
    save_model(pair, tmp_path / "pair")
    assert load(tmp_path / "pair").passes == 2
    for name in ("t", "pair"):
        text = (tmp_path / name / "README.md").read_text()
        assert "two network evaluations" in text
        assert "Negative prompts" not in text


FRONT = (
    "---\nlicense: other\nlicense_name: openrail\nlicense_link: LICENSE.md\ntags: [a]\n---\n# x\n"
)


def test_the_licence_of_the_parent_is_passed_on(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "parent")
    (tmp_path / "parent" / "README.md").write_text(FRONT)
    (tmp_path / "parent" / "LICENSE.md").write_text("the terms")
    text = saved(tmp_path / "parent", tmp_path / "m")
    assert "That of `parent`, from whose weights it is made: openrail (LICENSE.md)." in text
    assert "Its text is in LICENSE.md" in text
    expected = {"license": "other", "license_name": "openrail", "license_link": "LICENSE.md"}
    assert licence_of(tmp_path / "m") == expected
    assert (tmp_path / "m" / "LICENSE.md").read_text() == "the terms"
    # And on to the students of the student.
    assert "openrail" in saved(tmp_path / "m", tmp_path / "m2")


@pytest.mark.parametrize(
    "text", [None, "", "# x", "---\nlicense: [", "---\n[\n---\n", "---\na\n---"]
)
def test_no_licence_is_found_where_none_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == {}
