"""How the page looks: a theme of fonts that every machine has, and its style sheet."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Base(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="md",
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_label_text_size="*text_sm",
    slider_color="*primary_500",
)

CSS = """
.gradio-container { width: 100% !important; max-width: 1320px !important; margin: 0 auto !important;
  padding: 8px 12px !important; }
.gradio-container .main.fillable, .gradio-container main { padding: 4px 8px !important; }
#head { padding: 6px 2px 0; }
#head h1 { font-size: 1.3rem; font-weight: 700; margin: 0; display: inline; }
#head span { color: var(--body-text-color-subdued); margin-left: .6em; }
#knob { position: sticky; top: 0; z-index: 20; box-shadow: 0 2px 6px rgb(0 0 0 / .10); }
#knob, #scale { background: var(--block-background-fill); }
#scale { padding: 0 12px 8px; font-variant-numeric: tabular-nums; }
#scale p { color: var(--body-text-color-subdued); font-size: .88rem; margin: 0; }
#gallery, #editor { border: 1px solid var(--border-color-primary) !important; }
.picture { min-height: 140px; }
.picture img { image-rendering: pixelated; object-fit: contain !important; width: 100% !important;
  height: 100% !important; max-height: 600px; padding: 8px; }
.under { align-items: center; flex-wrap: nowrap; }
.under button { flex: 0 0 auto; min-width: 110px; }
.caption { font-variant-numeric: tabular-nums; line-height: 1.45; padding: 0 2px; }
#right .caption { font-size: .92rem; }
.caption .cost { color: var(--body-text-color-subdued); }
#tasks .tabitem { display: none; }
footer { display: none !important; }
@media (max-width: 720px) {
  .gradio-container, .gradio-container .main.fillable { padding: 2px !important; }
  #head span { display: block; margin-left: 0; }
  /* The slider, then the pictures, then what else can be set. */
  #left { display: contents; }
  #left > * { order: 2; }
  #left > #knob { order: 0; }
  #right { order: 1; }
}
"""

SCALE = "w => `guidance scale = 1 + w = ${(1 + w).toFixed(1)}`"

# The editor does not announce the first stroke; the button after every stroke does.
STROKES = """() => {
  let inside = false
  document.addEventListener("pointerdown", e => { inside = !!e.target.closest("#editor") })
  document.addEventListener("pointerup", () => {
    if (inside) setTimeout(() => document.querySelector("#paint")?.click(), 300)
  })
}"""

# The slider announces that the pointer let it go, and not that a key did.
KEYS = """() => {
  let before = null
  const isSlider = e => e.target.closest?.("#w") && e.target.tagName === "INPUT"
  document.addEventListener("keydown", e => {
    if (isSlider(e) && before === null) before = e.target.value
  })
  document.addEventListener("keyup", e => {
    if (isSlider(e) && before !== null && e.target.value !== before)
      e.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }))
    before = null
  })
}"""
