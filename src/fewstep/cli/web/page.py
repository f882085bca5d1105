"""The page: what is on it, and what happens when something changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from fewstep.cli.pictures import Opened
from fewstep.cli.web.code import command_line, picture_name, python
from fewstep.cli.web.controls import Controls
from fewstep.cli.web.drawing import WIDE, Drawn, Settings, draw, no_pause, save
from fewstep.cli.web.models import Models, chosen_steps, own_steps, w_range
from fewstep.cli.web.sources import Sources
from fewstep.cli.web.style import CSS, KEYS, SCALE, STROKES, THEME
from fewstep.cli.web.turns import Turns
from fewstep.errors import FewstepError, FewstepWarning

Values = dict[Any, Any]  # component -> what it holds
WIDTH, LEAST, MOST = 390, 120, 520  # pixels of a picture on the page; its least and most height
HINT = "Upload an image, or take images from Draw."
HINTS = {"inpaint": "Paint over the part of the image that is to be drawn anew."}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 1}
# A queue of its own, so that the student's drawing need not wait for the teacher's to end.
ONE_TEACHER: dict[str, Any] = {"concurrency_id": "teacher", "concurrency_limit": 1}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class Panel(NamedTuple):
    """A picture with its caption, the button that saves it, and its code."""

    picture: gr.Image
    caption: gr.HTML
    button: gr.DownloadButton
    python: gr.Code
    command: gr.Code


class Page:
    """What happens on a page. Its pictures are files in `folder`."""

    def __init__(self, models: Models, sources: Sources, folder: Path) -> None:
        """Lay out the page of these models."""
        self.models, self.sources, self.folder = models, sources, folder
        self.turns = Turns()
        with gr.Blocks(title="fewstep play", analytics_enabled=False) as self.blocks:
            gr.HTML(
                "<h1>fewstep play</h1><span>Few-step students with a live guidance weight.</span>",
                elem_id="head",
                padding=False,
            )
            self.controls = Controls(models)
            with self.controls.right:
                self._lay_out_pictures()
            self._connect()

    def _lay_out_pictures(self) -> None:
        names = ["student", *(["teacher"] if self.models.teacher else [])]
        pictures, codes = {}, {}
        with gr.Row(equal_height=False):
            for name in names:
                with gr.Column(min_width=260):
                    picture = gr.Image(
                        show_label=False,
                        buttons=["fullscreen"],
                        interactive=False,
                        elem_classes="picture",
                        elem_id=f"{name}-picture",
                    )
                    with gr.Row(elem_classes="under"):
                        caption = gr.HTML(
                            elem_classes="caption", elem_id=f"{name}-caption", padding=False
                        )
                        button = gr.DownloadButton(
                            "Save picture", size="sm", elem_id=f"{name}-save", interactive=False
                        )
                    pictures[name] = (picture, caption, button)
        with gr.Accordion("Code for these pictures", open=True), gr.Tabs():
            for name in names:
                label = "" if len(names) == 1 else f" ({name})"
                with gr.Tab(f"Python{label}"):
                    text = gr.Code(language="python", show_label=False, elem_id=f"{name}-python")
                with gr.Tab(f"Command line{label}"):
                    line = gr.Code(language="shell", show_label=False, elem_id=f"{name}-command")
                codes[name] = (text, line)
        self.panels = {name: Panel(*pictures[name], *codes[name]) for name in names}

    def _connect(self) -> None:
        c = self.controls
        c.w.change(None, c.w, c.scale, js=SCALE, **PRIVATE)
        c.model.change(self._fitted, [c.model, c.w, c.own_steps], [c.w, c.own_steps], **PRIVATE)
        c.new_seed.click(None, None, c.seed, js="() => Math.floor(1e6 * Math.random())", **PRIVATE)
        for task, tab in c.tabs.items():
            tab.select(
                partial(self._turn_to, task),
                c.all,
                [c.task, *c.groups.values(), c.given, c.gallery, c.editor, c.shown],
                **ONE_AT_A_TIME,
                **PRIVATE,
            )
        c.take.click(
            self._take, c.all, [c.given, c.gallery, c.editor, c.shown], **ONE_AT_A_TIME, **PRIVATE
        )
        for painted in (c.paint.click, c.editor.upload, c.editor.clear):
            painted(self._painted, c.editor, c.painted, show_progress="hidden", **PRIVATE)
        for js in (STROKES, KEYS):
            self.blocks.load(None, None, None, js=js, **PRIVATE)
        # A prompt counts when it is finished, not letter by letter.
        changed = [x.blur if isinstance(x, gr.Textbox) else x.change for x in c.watched]
        for name, panel in self.panels.items():
            # The slider redraws the student as it moves, and the slower teacher when it rests.
            slider = c.w.change if name == "student" else c.w.release
            gr.on(
                [self.blocks.load, slider, *changed],
                partial(self._redraw, name),
                c.all,
                list(panel),
                trigger_mode="always_last",
                show_progress="hidden" if name == "student" else "minimal",
                **(ONE_AT_A_TIME if name == "student" else ONE_TEACHER),
                **PRIVATE,
            )

    def _fitted(self, model: str, w: float, steps: int | None) -> list[Any]:
        """Return the slider of w and the steps of the student that fit the chosen model."""
        one = self.models.named[model]
        (low, high), own = w_range(one), own_steps(one)
        return [
            gr.update(minimum=low, maximum=high, value=min(max(w, low), high)),
            gr.update(choices=own, value=chosen_steps(own, steps), visible=bool(own)),
        ]

    def _turn_to(self, task: str, values: Values) -> list[Any]:
        c = self.controls
        shown = [gr.update(visible=task in c.used_by[name]) for name in c.groups]
        taken: list[Any] = [gr.skip()] * 4
        if task != "sample" and _receiver(task) not in values[c.given]:
            taken = self._take({**values, c.task: task})
        return [task, *shown, *taken]

    def _take(self, values: Values) -> list[Any]:
        """Return images of the tab Draw for the open tab: for its gallery, or its editor."""
        c = self.controls
        with self.turns.turn(urgent=True), errors_shown():
            one = self.models.named[values[c.model]]
            s = self._sampled(values, one)
            if one.takes_text:
                s, shown = replace(s, prompts=s.prompts[:1], count=2), s.prompt
            else:
                few = c.classes.first(s.cond or "", WIDE)
                s, shown = replace(s, cond=few, count=1), few
            paths = [str(path) for path in self.sources.drawn(draw(one, None, s).rows[0])]
        receiver = _receiver(values[c.task])
        given = (*values[c.given], receiver)
        if receiver == "editor":
            return [
                given,
                gr.skip(),
                {"background": paths[0], "layers": [], "composite": None},
                gr.skip(),
            ]
        return [given, paths, gr.skip(), shown]

    def _painted(self, editor: dict[str, Any] | None) -> Any:
        with self.turns.turn(urgent=True), errors_shown():
            return self.sources.edited(editor)

    def _sampled(self, values: Values, one: Opened) -> Settings:
        c = self.controls
        steps, seed, own = values[c.steps], values[c.seed], own_steps(one)
        if own:
            steps = chosen_steps(own, values[c.own_steps])
        text = self.models.first.takes_text
        return Settings(
            w=round(float(values[c.w]), 4),
            steps=None if steps is None else int(steps),
            seed=int(seed or 0),
            cond=None if text else c.classes.joined(values[c.cond]),
            prompts=prompts_in(values[c.cond]) if text else (),
            count=int(values[c.count]),
        )

    def _settings(self, values: Values, one: Opened) -> Settings:
        """Return what a model is to draw by what stands on the page."""
        c, task = self.controls, values[self.controls.task]
        s = replace(self._sampled(values, one), task=task)
        if task == "sample":
            return s
        wanted = values[c.become if task in ("img2img", "inpaint") else c.targets]
        if task == "interpolate":
            wanted = values[c.end]
        if self.models.first.takes_text:
            s = replace(s, prompts=prompts_in(wanted))
        else:
            s = replace(s, cond=c.classes.joined(wanted) or None)
        if task == "inpaint":
            image, mask = values[c.painted] or (None, None)
            return replace(
                s,
                images=(image,) if image else (),
                mask=mask,
                strength=values[c.inpaint_strength],
            )
        files = tuple(self.sources.upload(path) for path, _ in values[c.gallery] or ())
        s = replace(s, images=files, strength=values[c.strength], shown=values[c.shown] or None)
        if task == "img2img":
            return s
        s = replace(s, w_from=round(float(values[c.w_from]), 4))
        if task == "transfer":
            return s
        if s.shown and not self.models.first.takes_text:
            s = replace(s, shown=c.classes.first(s.shown, 2))
        return replace(s, images=files[:2], count=int(values[c.frames]))

    def _redraw(self, panel: str, values: Values) -> list[Any]:
        """Return what a panel shows: picture, caption, file to save, and code."""
        c, named = self.controls, self.models.named
        is_student = panel == "student"
        one = named[values[c.model] if is_student else str(self.models.teacher)]
        encoder = named.get(values[c.encoder])
        try:
            with self.turns.turn(urgent=is_student), warnings_shown():
                s = self._settings(values, one)
                if s.task != "sample" and not s.images:
                    return nothing(HINTS.get(s.task, HINT))
                drawn = draw(one, encoder, s, no_pause if is_student else self.turns.pause)
                name = picture_name(s, one)
                path = self._saved(drawn, one, self.folder / panel / name)
        except FewstepError as error:
            # Both panels have most errors in common; one message is enough.
            if is_student:
                gr.Warning(escape(str(error)), title="Not drawn")
            return nothing(escape(str(error)))
        at = {"out": name, "device": self.models.device}
        return [
            gr.update(value=path, height=height_of(drawn)),
            caption(one, s, drawn),
            gr.update(value=path, interactive=True),
            python(s, drawn, one, encoder, **at),
            command_line(s, drawn, one, encoder, **at),
        ]

    def _saved(self, drawn: Drawn, one: Opened, path: Path) -> str:
        """Write a picture in place of the panel's last one; return its path."""
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.iterdir():
            old.unlink()
        save(drawn, one, path)
        return str(path)


def height_of(drawn: Drawn) -> int:
    """Return the height at which a picture fills its panel, in pixels."""
    count = len(drawn.rows[0])
    columns = min(drawn.columns, count)
    rows = len(drawn.rows) * -(-count // columns)
    return max(LEAST, min(MOST, WIDTH * rows // columns))


def nothing(why: str) -> list[Any]:
    """Return what a panel shows where nothing can be drawn."""
    return [None, why, gr.update(value=None, interactive=False), "", ""]


def _receiver(task: str) -> str:
    return "editor" if task == "inpaint" else "gallery"


def prompts_in(text: str | None) -> tuple[str, ...]:
    """Return the prompts of a text, one per line, without empty lines."""
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def caption(one: Opened, s: Settings, drawn: Drawn) -> str:
    """Return the line under a picture."""
    steps = one.card.steps or s.steps
    spent, ms = f"{drawn.evaluations:.3g}", drawn.milliseconds
    return (
        f"<b>{escape(one.folder.name)}</b> &middot; w = {s.w:g}, {steps} step{'s' * (steps != 1)}"
        f"<br><span class='cost'>{spent} evaluation{'s' * (spent != '1')}, "
        f"{ms:{'.2g' if ms < 10 else ',.0f'}} ms per image</span>"
    )


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show warnings of fewstep as messages on the page."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", FewstepWarning)
        yield
    for warning in heard:
        if issubclass(warning.category, FewstepWarning):
            gr.Warning(escape(str(warning.message)), title="Please note")


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show errors and warnings of fewstep as messages on the page."""
    try:
        with warnings_shown():
            yield
    except FewstepError as error:
        raise gr.Error(escape(str(error)), title="Not done", print_exception=False) from None


@contextmanager
def serving(page: Page, host: str, port: int, browser: bool = False) -> Iterator[str]:
    """Serve a page at its address until the end of the context."""
    page.blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        show_error=True,
        footer_links=[],
        run_history=False,
        theme=THEME,
        css=CSS,
        allowed_paths=[str(page.folder), str(page.sources.folder.absolute())],
    )
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        page.blocks.close(verbose=False)
        # An interpreter that ends while torch computes in a thread is aborted.
        page.turns.close(timeout=60)
