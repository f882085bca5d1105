"""`fewstep distill`: stage one and stage two, as the recipe plans them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import (
    Device,
    For,
    Out,
    PushToHub,
    RecipeName,
    Set,
    Teachers,
    Track,
    folders_of,
    load_run_recipe,
    run_folder,
    say,
)

if TYPE_CHECKING:
    from fewstep.distill.plan import Stage
    from fewstep.recipes.config import Recipe
    from fewstep.recipes.duration import Speed


def distill_command(
    recipe: RecipeName,
    out: Out = None,
    teacher: Teachers = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Check everything, print the stages, their cost in network evaluations and an "
            "estimate of the time on this machine, then exit.",
        ),
    ] = False,
    set_: Set = None,
    device: Device = None,
    track: Track = None,
    push_to_hub: PushToHub = None,
    _for: For = None,
) -> None:
    """Train the students of a recipe from its teacher.

    Run the same command again to continue where it stopped.
    """
    given = folders_of(teacher)
    checked = load_run_recipe(recipe, set_, given, out, track)
    folder = run_folder(recipe, out, checked)
    from fewstep.core.device import choose_device
    from fewstep.files.hub import check_push, push
    from fewstep.recipes.run import Run

    run = Run(checked, folder, choose_device(device), say)
    names = [stage.name for stage in run.plan]
    repos = {name: f"{push_to_hub}-{name}" for name in names if push_to_hub is not None}
    for repo in repos.values():
        check_push(repo)
    if plan:
        run.check(names, given, plan=True)
        from fewstep.recipes.duration import speed_of
        from fewstep.recipes.preflight import found_models

        left = not found_models(run.workspace, given) and _trains_teacher(checked)
        typer.echo(describe(checked, speed_of(run, given), teacher=left))
        return
    with run.writing(names, given):
        for parent in given:
            run.use_teacher(parent)
        for stage in run.plan:
            run.distill(stage)
    run.tell(f"students: {', '.join(str(run.folder(s.name)) for s in run.plan)}")
    for name, repo in repos.items() if run.is_main else ():
        say(f"pushed: {push(run.folder(name), repo)}")


def _trains_teacher(recipe: Recipe) -> bool:
    """Whether the plan needs a teacher that `fewstep train` can make."""
    from fewstep.distill.plan import TEACHER

    is_given = recipe.latents is not None and recipe.latents.folder is None
    return not is_given and any(stage.parent == TEACHER for stage in recipe.distill.plan())


def describe(recipe: Recipe, speed: Speed | None = None, *, teacher: bool = False) -> str:
    """Return the plan as a table: stages, their parents, their network evaluations and times.

    speed: of the network on this machine; without it there are no times.
    teacher: whether `fewstep train` has yet to make the teacher, which then has a line.
    """
    from fewstep.distill.plan import KINDS
    from fewstep.recipes.wanted import evaluations_of
    from fewstep.train.progress import duration

    plan, batch = recipe.distill.plan(), recipe.distill.batch_size
    drawn = recipe.evaluate.samples * evaluations_of(plan, recipe.evaluate)

    def seconds(*stages: Stage) -> str:
        return "" if speed is None else duration(speed.distillation(stages, batch))

    head = ("stage", "from", "steps", "substeps", "order", "updates", "evaluations")
    lines = [_line(*head, "time" if speed else "")]
    for s in plan:
        steps = ",".join(map(str, s.counts)) or "any"
        has = "substeps" in KINDS[s.kind].settings
        substeps, order = (str(s.substeps), str(s.order)) if has else ("", "")
        cost = f"{s.cost(batch).evaluations:,}"
        updates = str(s.updates)
        lines.append(_line(s.name, s.parent, steps, substeps, order, updates, cost, seconds(s)))
    cost = f"{plan.cost(batch).evaluations:,}"
    lines.append(_line("all", "", "", "", "", "", cost, seconds(*plan)))
    if teacher:
        trained = recipe.teacher
        cost = f"{3 * trained.updates * trained.batch_size:,}"
        time = "" if speed is None else duration(speed.pretraining(recipe))
        lines.append(
            _line("training the teacher", "", "", "", "", str(trained.updates), cost, time)
        )
    time = "" if speed is None else duration(drawn * speed.forward)
    lines.append(_line("figures of a report", "", "", "", "", "", f"{drawn:,}", time))
    lines.append("evaluations: calls of one network on one example; a backward pass counts as two")
    lines.append(
        "time: not estimated, since the network is not there to be measured"
        if speed is None
        else "time: an estimate, from a short measurement of this network on this machine"
    )
    return "\n".join(lines)


def _line(name: str, parent: str, *numbers: str) -> str:
    steps, *others = numbers
    columns = (n.rjust(width) for n, width in zip(others, (8, 5, 7, 13, 12), strict=True))
    first = steps.rjust(max(6, 18 - len(parent)))
    return f"{name:<22} {parent}{first} {' '.join(columns)}".rstrip()


command = distill_command
