"""The frame of the report's page: its style and its HTML around the body."""

from __future__ import annotations

from fewstep.show.escape import in_html

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.lead { font-size: 1.1rem; max-width: 50rem; } p, ul { max-width: 50rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; font-size: .85rem; margin: 1rem 0; }
dt { color: #666; } dd { margin: 0; }
figure { margin: 0; max-width: 46rem; } figure svg { width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 1rem; margin: 1rem 0; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.sheet { width: 100%; }
.sheet th { font-weight: 400; text-align: left; padding: .2rem .8rem .2rem 0; width: 11rem;
  line-height: 1.2; } .sheet td { padding: 2px 0; }
.sheet img { width: 100%; image-rendering: pixelated; display: block; }
.wide { overflow-x: auto; } .cells td, .cells th { text-align: right; padding: .2rem .6rem;
  border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
.cells th { vertical-align: bottom; white-space: normal; }
.heat td, .heat th { padding: .45rem .8rem; text-align: center; font-weight: 400; }
.heat td b { text-decoration: underline; }
@media (max-width: 600px) { .sheet th, .sheet td { display: block; width: auto; } }
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
