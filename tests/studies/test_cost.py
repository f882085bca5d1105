"""The cost of a recipe is counted on its network and its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies.common import DOCS, StudyError

from fewstep.models import build_unet
from fewstep.recipes.config import Recipe, save_recipe
from studies import cost, cost_transformers


@pytest.fixture
def sized(recipe: Recipe) -> Recipe:
    """The small recipe, with images of 8 x 8 as the digits are."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": 8})})


def test_the_network_is_the_recipes(sized: Recipe) -> None:
    parameters, operations = cost.network(sized, 10)
    unet = build_unet(sized.network, (sized.data.channels, 8, 8), 10)
    assert parameters == sum(p.numel() for p in unet.parameters())
    # The first convolution alone: two operations for each product, 9 products for each pixel.
    assert operations > 2 * 9 * 64 * sized.data.channels * 8
    assert cost.network(sized, 20)[0] == parameters + 10 * unet.class_embedding.embedding_dim


def test_the_stages_cost_what_the_plan_says(sized: Recipe) -> None:
    lines = cost.stages(sized, operations=10**15, teraflops=1000).splitlines()
    assert lines[0] == "| stage | evaluations | PFLOP | GPU-hours |"
    assert lines[2] == "| teacher | 24 | 24 | 0 |"  # 3 for each of 8 examples
    plan = {s.name: s.cost(8).evaluations for s in sized.distill.plan()}
    assert list(plan) == ["stage-one", *(f"student-{n}" for n in (8, 4, 2, 1))]
    found = [line.split(" | ")[1] for line in lines[3:]]
    assert found == [str(n) for n in (*plan.values(), 24 + sum(plan.values()))]
    (hours,) = {line.split(" | ")[3] for line in cost.stages(sized, 10**18, 1.0).splitlines()[2:3]}
    assert hours == f"{24 * 1e18 / 1e12 / 3600:,.0f} |"


def test_the_command_prints_network_stages_and_memory(
    sized: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    save_recipe(sized, path)
    cost.main([str(path), "--classes", "10", "--gpus", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("network: 0 million parameters, 0.0 GFLOP per evaluation")
    assert lines[1].startswith("| stage |")
    assert "on each of 2 when shared" in lines[-1]


def test_a_recipe_must_say_how_large_its_images_are(recipe: Recipe) -> None:
    with pytest.raises(StudyError, match=r"must set data\.size, .*; small has none"):
        cost.network(recipe, 10)


@pytest.mark.parametrize("published", [cost_transformers.SD3, cost_transformers.FLUX])
def test_the_page_has_the_operations_of_the_large_transformers(
    published: cost_transformers.Published,
) -> None:
    page = (DOCS / "results" / "cost.md").read_text(encoding="utf-8")
    model = published.model()
    operations = cost_transformers.forward(model, published.cond())
    assert cost_transformers.sizes(model, operations) in page
    assert cost_transformers.stages(cost_transformers.plan(published), operations, 400.0) in page


def test_the_page_has_the_memory_of_the_smaller_one() -> None:
    page = (DOCS / "results" / "cost.md").read_text(encoding="utf-8")
    published = cost_transformers.SD3
    found = cost_transformers.counted(
        published, published.model(), {"checkpoint_activations": True}
    )
    assert cost_transformers.held("checkpointing", found) in page
