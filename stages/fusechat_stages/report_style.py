"""The page's style sheet: light, dark and print, and the colours of series.

The eight series colours are Okabe and Ito's (Color Universal Design, 2008), told apart by people with any
colour blindness, made lighter for the dark scheme; lines differ in dash and marker too, so that colour never
carries the meaning alone.
"""

from __future__ import annotations

COLOURS = 8
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a8437f", "#8a6a00", "#2f8fc4", "#333333", "#7a5195")
DARK = ("#5fb4ea", "#ff8c42", "#3fd0a5", "#e79ac6", "#e5c04b", "#9ad3f5", "#dddddd", "#c3a2dd")
DASHES = ("", "7 3", "2 3", "9 3 2 3")


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


_LIGHT = (
    "--bg:#ffffff;--fg:#1b1f24;--muted:#57606a;--line:#d0d7de;--soft:#f6f8fa;--grid:#e4e8ec;--accent:#0072b2;"
    "--bad:#b3261e;color-scheme:light;" + _variables(LIGHT)
)
_DARK = (
    "--bg:#0f1216;--fg:#e6e9ec;--muted:#a3adb8;--line:#39424c;--soft:#181d23;--grid:#252c34;--accent:#5fb4ea;"
    "--bad:#ff8a80;color-scheme:dark;" + _variables(DARK)
)

CSS = (
    f":root{{{_LIGHT}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","Liberation Sans",sans-serif}
main,header,footer{max-width:70rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2rem}footer{padding-bottom:3rem;color:var(--muted);font-size:.85rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
p{max-width:46rem;margin:.5rem 0}
.verdict{font-size:1.15rem;margin:1rem 0}
.badge{display:inline-block;border:1px solid var(--line);border-radius:1rem;padding:0 .7rem;
margin-right:.4rem;font-size:.85rem;background:var(--soft)}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.92rem;margin:1rem 0}
dl.facts dt{color:var(--muted)}dl.facts dd{margin:0;overflow-wrap:anywhere}
p.note{color:var(--muted);font-size:.9rem}
code{font-family:ui-monospace,"Liberation Mono",Menlo,monospace;font-size:.87em}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;margin:.5rem 0 1rem}
caption{text-align:left;color:var(--muted);padding:.2rem 0;font-size:.88rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--line)}tbody th{font-weight:500}
.number{text-align:right;white-space:nowrap}
tr.strong>*{font-weight:700}
.scroll{overflow-x:auto}
figure{margin:1rem 0}figcaption{color:var(--muted);font-size:.9rem;max-width:46rem}
svg{display:block;max-width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"Liberation Sans",sans-serif}
svg text{fill:var(--fg)}svg .muted{fill:var(--muted)}svg .grid{stroke:var(--grid);stroke-width:1;fill:none}
svg .axis{stroke:var(--muted);stroke-width:1;fill:none}
svg .strong{font-weight:700}svg .small{font-size:10.5px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(29rem,100%),1fr));gap:0 2rem}
details{margin:.75rem 0}summary{cursor:pointer;color:var(--accent)}
.bad{color:var(--bad);font-weight:600}
.node rect{fill:var(--soft);stroke:var(--fg);stroke-width:1.3}
.node.cached rect{stroke:var(--muted);stroke-dasharray:4 3}
.node.failed rect{stroke:var(--bad);stroke-width:2.5}
.edge{fill:none;stroke:var(--muted);stroke-opacity:.45;stroke-width:1}
@media(max-width:40rem){main,header,footer{padding-left:1rem;padding-right:1rem}svg{max-width:none}}
@media print{body{font-size:10.5pt}main,header,footer{max-width:none;padding:0}h2{break-after:avoid}
figure,tr{break-inside:avoid}details::details-content{content-visibility:visible;display:block}.scroll{overflow:visible}
summary{display:none}svg{max-width:100%}}
"""
    + "".join(f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}\n" for i in range(COLOURS))
)
