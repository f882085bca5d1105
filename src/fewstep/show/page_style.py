"""The frame of the report's page: its style and its HTML around the body."""

from __future__ import annotations

from fewstep.show.escape import in_html

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5a5a5a; --paper: #fff; --line: #ddd;
  --warn: #fff4d6; --edge: #d99a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8a8a8; --paper: #16181b; --line: #3a3d42; --warn: #332a10; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 1080px; padding: 2rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.lead { font-size: 1.1rem; max-width: 50rem; } p, ul, ol { max-width: 50rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; font-size: .85rem; margin: 1rem 0; }
dt, figcaption { color: var(--soft); } dd { margin: 0; } figcaption { font-size: .85rem; }
figure { margin: 0; max-width: 40rem; }
figure svg { width: 100%; height: auto; display: block; overflow: visible; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 1rem; margin: 1rem 0; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.sheet { width: 100%; max-width: 60rem; }
.sheet th { font-weight: 400; text-align: left; padding: .2rem .8rem .2rem 0; width: 11rem;
  line-height: 1.2; } .sheet td { padding: 2px 0; }
.sheet img { width: 100%; image-rendering: pixelated; display: block; }
.warning { background: var(--warn); border-left: 4px solid var(--edge); font-size: .85rem;
  margin: 1rem 0; padding: .5rem 1rem .5rem 2rem; }
.wide { overflow-x: auto; } .cells { font-size: .75rem; }
.cells td, .cells th { text-align: right; padding: .2rem .25rem;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.cells th { vertical-align: bottom; white-space: normal; }
.heat td, .heat th { padding: .45rem .6rem; text-align: center; font-weight: 400; }
.heat td b { text-decoration: underline; }
@media (max-width: 700px) {
  .sheet th, .sheet td { display: block; width: auto; }
  .cells, .cells tbody { display: block; } .cells tr:first-child { display: none; }
  .cells tr { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .cells td { display: flex; justify-content: space-between; border: 0; padding: 0; }
  .cells td::before { content: attr(data-name); color: var(--soft); }
  .heat td, .heat th { padding: .3rem .2rem; }
}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def page(title: str, body: str) -> str:
    """Return the whole page: one HTML text that refers to nothing outside itself."""
    return PAGE.format(title=in_html(title), style=STYLE, body=body)
