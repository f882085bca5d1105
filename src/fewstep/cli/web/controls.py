"""What can be set on the page: a slider for w above all, and what each tab needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gradio as gr

from fewstep.cli.classes import ANY
from fewstep.cli.pictures import Opened
from fewstep.cli.web.models import (
    ANY_W,
    USUAL_STEPS,
    Models,
    chosen_steps,
    is_free,
    own_steps,
    w_range,
)
from fewstep.errors import RangeError

TASKS = {
    "sample": "Draw",
    "img2img": "Image to image",
    "inpaint": "Inpaint",
    "transfer": "Transfer",
    "interpolate": "Interpolate",
}
MOST = 10  # classes that are drawn at first
PROMPT = "a photo"


class ClassNames:
    """The classes of the models, as the command line takes them."""

    def __init__(self, opened: Opened) -> None:
        """Find a name for every class of a model; a text-to-image model has none."""
        self._classes, names = opened.classes, opened.card.class_names
        self.choices: list[tuple[str, str]] = []
        for k in range(opened.card.num_classes):
            name = names[k] if names else str(k)
            self.choices.append((name, name if self._means(name, k) else str(k)))

    def _means(self, name: str, k: int) -> bool:
        try:
            return self._classes.ids(name, "--cond") == [k]
        except RangeError:
            return False

    def joined(self, chosen: str | Sequence[str] | None) -> str:
        """Return chosen classes as one text for --cond."""
        return chosen if isinstance(chosen, str) else ",".join(chosen or ())

    def first(self, text: str, count: int) -> str:
        """Return the first classes of such a text."""
        written = {k: value for k, (_, value) in enumerate(self.choices)}
        ids = self._classes.ids(text, "--cond")[:count]
        return ",".join(written.get(k, ANY) for k in ids)


class Controls:
    """The components, and which tabs use which group of them.

    Attributes:
        tabs: task -> its tab.
        groups: name -> components that only some tabs use.
        used_by: name of a group -> its tasks.
        right: the column of the pictures.
        task: that of the open tab.
        painted: files of the editor's image and mask; None where nothing is painted.
        given: names of the components that have got an image to begin with.
    """

    used_by: ClassVar = {
        "draw": ("sample",),
        "sources": ("img2img", "transfer", "interpolate"),
        "editor": ("inpaint",),
        "take": ("img2img", "inpaint", "transfer", "interpolate"),
        "become": ("img2img", "inpaint"),
        "strength": ("img2img",),
        "inpaint_strength": ("inpaint",),
        "encode": ("transfer", "interpolate"),
        "transfer": ("transfer",),
        "interpolate": ("interpolate",),
    }

    def __init__(self, models: Models) -> None:
        """Lay out the components inside an open gr.Blocks."""
        self.models, self.classes = models, ClassNames(models.first)
        self.text = models.first.takes_text
        self.task, self.painted = gr.State("sample"), gr.State(None)
        self.given = gr.State(())
        self.tabs: dict[str, gr.Tab] = {}
        self.groups: dict[str, gr.Group] = {}
        with gr.Tabs(elem_id="tasks"):
            for task, label in TASKS.items():
                with gr.Tab(label, id=task) as self.tabs[task]:
                    pass
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300, elem_id="left"):
                self._shared()
                self._own()
            self.right = gr.Column(scale=5, min_width=320, elem_id="right")

    def _shared(self) -> None:
        models = self.models
        low, high = w_range(models.first)
        middle = round((low + high) / 2)
        with gr.Group(elem_id="knob"):
            self.w = gr.Slider(
                low,
                high,
                value=min(max(middle, low), high),
                step=0.1,
                label="Guidance weight w",
                info="0: no guidance",
                elem_id="w",
                interactive=low < high,
            )
            scale = f"guidance scale = 1 + w = {1 + self.w.value:.1f}"
            self.scale = gr.Markdown(scale, elem_id="scale")
        self.model = gr.Radio(
            [(_titled(models.named[name], name), name) for name in models.decoders],
            value=models.decoders[0],
            label="Model",
            elem_id="model",
        )
        with gr.Row():
            steps = models.steps
            self.steps = gr.Dropdown(
                steps,
                value=max((n for n in steps if n <= USUAL_STEPS), default=None),
                label="Steps" if is_free(models.first) else "Teacher's steps",
                visible=bool(steps),
                min_width=120,
                elem_id="steps",
            )
            own = own_steps(models.first)
            self.own_steps = gr.Dropdown(
                own,
                value=chosen_steps(own),
                label="Student's steps",
                visible=bool(own),
                min_width=120,
                elem_id="own-steps",
            )
            self.seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed")
        self.new_seed = gr.Button("New seed", size="sm", elem_id="new-seed")

    def _group(self, name: str) -> gr.Group:
        group = gr.Group(visible="sample" in self.used_by[name])
        self.groups[name] = group
        return group

    def _own(self) -> None:
        first = [value for _, value in self.classes.choices[:MOST]]
        with self._group("draw"):
            self.cond = self._wanted("Classes", "Prompts, one per line", first, "cond", 2)
            self.count = gr.Slider(
                1, 8, 2 if not self.text else 1, step=1, label=self._per(), elem_id="count"
            )
        with self._group("sources"):
            self.gallery = gr.Gallery(
                label="Images to edit",
                type="filepath",
                format="png",
                columns=5,
                height=150,
                object_fit="contain",
                interactive=True,
                file_types=["image"],
                elem_id="gallery",
            )
        with self._group("editor"):
            self.editor = gr.ImageEditor(
                show_label=False,
                type="pil",
                format="png",
                sources=["upload"],
                transforms=[],
                layers=False,
                brush=gr.Brush(48, ["#6366f1"], "#6366f1", "fixed"),
                height=380,
                elem_id="editor",
            )
            self.paint = gr.Button("Redraw the painted part", size="sm", elem_id="paint")
        with self._group("take"):
            self.take = gr.Button("Take images from Draw", size="sm", elem_id="take")
        with self._group("become"):
            self.become = self._wanted("Redraw as class", "Redraw as prompt", first[-1:], "become")
        with self._group("strength"):
            self.strength = self._share(0.75, "strength")
        with self._group("inpaint_strength"):
            self.inpaint_strength = self._share(1.0, "inpaint-strength")
        with self._group("encode"):
            label = "Prompt of these images" if self.text else "Classes of these images, in order"
            self.shown = gr.Textbox(label=label, elem_id="shown")
            encoders = self.models.encoders
            self.encoder = gr.Dropdown(
                encoders,
                value=encoders[0] if encoders else None,
                label="Encoder",
                elem_id="encoder",
            )
            self.w_from = self._w_from(encoders)
        with self._group("transfer"):
            label = "Draw as prompts, one per line"
            self.targets = self._wanted("Draw as classes", label, first[-2:], "targets", 2)
        with self._group("interpolate"):
            self.end = self._wanted(
                "Draw as class (none: the class of the first image)",
                "Draw as prompt (empty: the prompt of the images)",
                [],
                "end",
            )
            self.frames = gr.Slider(2, 16, 9, step=1, label="Images", elem_id="frames")

    def _w_from(self, encoders: Sequence[str]) -> gr.Slider:
        """Return the slider of the weight of encoding, over what every encoder accepts."""
        ranges = [w_range(self.models.named[name]) for name in encoders] or [ANY_W]
        low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
        high = max(low, high)
        label = "w of the encoder"
        return gr.Slider(
            low,
            high,
            min(max(0.0, low), high),
            step=0.1,
            label=label,
            elem_id="w-from",
            interactive=low < high,
        )

    def _per(self) -> str:
        return "Images per prompt" if self.text else "Images per class"

    def _share(self, value: float, name: str) -> gr.Slider:
        info = "Share of the steps to run; at 1 nothing of the redrawn part is left."
        return gr.Slider(0.05, 1, value, step=0.05, label="Strength", info=info, elem_id=name)

    def _wanted(
        self, classes: str, prompts: str, value: list[str], name: str, lines: int = 1
    ) -> Any:
        """Return the choice of what to draw: several where `lines` is above 1."""
        if self.text:
            text = PROMPT if name != "end" else ""
            return gr.Textbox(text, label=prompts, lines=lines, elem_id=name)
        many = lines > 1
        return gr.Dropdown(
            [*self.classes.choices, ("any class", ANY)],
            value=value if many else next(iter(value), None),
            multiselect=many,
            label=classes,
            elem_id=name,
        )

    @property
    def watched(self) -> list[Any]:
        """The components, but the slider of w, whose change redraws the pictures."""
        return [
            *(self.task, self.painted, self.model, self.steps, self.own_steps, self.seed),
            *(self.cond, self.count),
            *(self.gallery, self.become, self.strength, self.inpaint_strength, self.shown),
            *(self.encoder, self.targets, self.w_from, self.end, self.frames),
        ]

    @property
    def all(self) -> set[Any]:
        """The components whose values a picture depends on."""
        return {self.w, self.given, *self.watched}


def _titled(opened: Opened, name: str) -> str:
    counts = opened.card.stage.counts
    shown = ", ".join(map(str, counts))
    return f"{name} ({shown} step{'' if counts == (1,) else 's'})" if counts else name
