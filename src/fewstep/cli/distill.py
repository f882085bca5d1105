"""`fewstep distill`: stage one and stage two, as the recipe plans them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    Device,
    Out,
    RecipeName,
    Set,
    Teachers,
    folders_of,
    load_run_recipe,
    run_folder,
    say,
)

if TYPE_CHECKING:
    from fewstep.recipes.config import Recipe


def distill_command(
    recipe: RecipeName,
    out: Out = None,
    teacher: Teachers = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Check everything and print the stages and their cost, then exit."
        ),
    ] = False,
    set_: Set = None,
    device: Device = None,
) -> None:
    """Train the recipe's students from its teacher. The same command resumes where it stopped."""
    given = folders_of(teacher)
    checked = load_run_recipe(recipe, set_, given, out)
    folder = run_folder(recipe, out, checked)
    from fewstep.core.device import choose_device
    from fewstep.recipes.run import Run

    run = Run(checked, folder, choose_device(device), say)
    names = [stage.name for stage in run.plan]
    if plan:
        run.check(names, given, plan=True)
        typer.echo(describe(checked))
        return
    with run.writing(names, given):
        for parent in given:
            run.use_teacher(parent)
        for stage in run.plan:
            run.distill(stage)
    run.tell(f"students: {', '.join(str(run.folder(s.name)) for s in run.plan)}")


def describe(recipe: Recipe) -> str:
    """Return the plan as a table: stages, their parents, and their network evaluations."""
    plan, batch = recipe.distill.plan(), recipe.distill.batch_size
    lines = [_line("stage", "from", "steps", "substeps", "order", "updates", "evaluations")]
    for s in plan:
        steps = "any" if s.steps is None else str(s.steps)
        substeps, order = ("", "") if s.steps is None else (str(s.substeps), str(s.order))
        cost = f"{s.cost(batch).evaluations:,}"
        lines.append(_line(s.name, s.parent, steps, substeps, order, str(s.updates), cost))
    lines.append(_line("all", "", "", "", "", "", f"{plan.cost(batch).evaluations:,}"))
    lines.append("evaluations: calls of one network on one example; a backward pass counts as two")
    return "\n".join(lines)


def _line(name: str, parent: str, *numbers: str) -> str:
    columns = (n.rjust(width) for n, width in zip(numbers, (5, 8, 5, 7, 13), strict=True))
    return f"{name:<22} {parent:<12} {' '.join(columns)}"


command = distill_command
