"""The page's style sheet: light and dark, readable on a phone and on paper."""

CSS = """
:root { color-scheme: light dark;
  --ink: #1c2127; --muted: #5c6570; --rule: #d5dae0; --paper: #ffffff; --soft: #f4f6f8;
  --good: #00674a; --fair: #7a5200; --accent: #00609c; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ed; --muted: #a3adb8; --rule: #3a424c; --paper: #14181d; --soft: #1d232a;
  --good: #5cd6a9; --fair: #f0b849; --accent: #6cb8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: .5rem;
  border-top: 1px solid var(--rule); }
p, li, dd { max-width: 46rem; }
a { color: var(--accent); }
a:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: .75rem 0;
  list-style: none; }
.muted { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.tiles div { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; }
.tiles dt { color: var(--muted); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.55rem; font-weight: 650; line-height: 1.3; }
.tiles dd small { font-size: .85rem; font-weight: 400; color: var(--muted); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: .25rem 0 .5rem; }
caption span { display: block; max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: .32rem .65rem .32rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--rule); }
td.wide { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
th[scope=row] { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
.num { text-align: right; }
.second { display: block; color: var(--muted); }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .15em;
  margin: 0 .35em 0 .1em; vertical-align: -.05em; border: 1px solid var(--rule); }
.confirmed { color: var(--good); font-weight: 700; }
.reached { color: var(--fair); font-weight: 600; }
.missed, .inferred { font-style: italic; color: var(--muted); }
.dominant { font-weight: 700; }
code, pre { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; min-width: 40rem; color: var(--ink); }
figure.small svg { max-width: 46rem; min-width: 30rem; }
figcaption { color: var(--muted); font-size: .9rem; max-width: 46rem; margin-top: .35rem; }
dl.words { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dl.words dd { margin: 0; }
@media (max-width: 36rem) { body { font-size: 15px; } dl.words { grid-template-columns: 1fr; }
  dl.words dd { margin-bottom: .4rem; } th, td { padding-right: .5rem; } }
@media print { nav { display: none; } body { max-width: none; } .scroll { overflow: visible; }
  figure svg { min-width: 0; } }
"""
