#!/usr/bin/env python3
"""Draws docs/plots/*.svg from what `make bench-scale` printed.

usage: scripts/plot-performance.py RESULTS [FOLDER]

RESULTS holds one line of JSON per run, as bench-scale prints it last; other lines are skipped.
Each plot has the number of Services on its x axis and one line per flavour of the tables.
"""

import json
import math
import sys
from pathlib import Path

PLOTS = {
    "first-sync": ("First sync", "s", "first sync, s"),
    "change": ("A lone change, from API event to kernel, p50", "ms",
               "lone change, from API event to kernel, p50, ms"),
    "memory": ("Memory after 1,000 changes", "MB", "memory after the storm, MB"),
    "connect": ("A new connection to a random Service, p50", "µs",
                "new connection to a random Service, p50, us"),
}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 320, 60, 50, 40, 110
COLOURS = ["#1b6ca8", "#c8553d", "#5b8c5a", "#8e6c8a"]


def read(path):
    """The runs: (flavour, program) -> {services: figures}."""
    runs = {}
    for line in Path(path).read_text().splitlines():
        if not line.startswith("{"):
            continue
        run = json.loads(line)
        for program, figures in run["figures"].items():
            name = run["setup"]["flavor"] if program == "kube-proxy-rs" else f"{program}, {run['setup']['flavor']}"
            runs.setdefault(name, {})[run["setup"]["services"]] = figures
    return runs


def ticks(top):
    step = 10 ** math.floor(math.log10(top))
    step = step / 5 if top / step < 2 else step / 2 if top / step < 5 else step
    return [step * index for index in range(int(top / step) + 1)]


def plot(title, unit, row, runs):
    series = {name: sorted((n, figures[row]) for n, figures in points.items()) for name, points in runs.items()}
    sizes = sorted({n for points in series.values() for n, _ in points})
    top = 1.1 * max(value for points in series.values() for _, value in points)
    low, high = math.log10(sizes[0]), math.log10(max(sizes[-1], sizes[0] * 2))
    x = lambda n: LEFT + (math.log10(n) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    y = lambda value: HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{title} ({unit})</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">Services</text>',
    ]
    for tick in ticks(top):
        out.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for n in sizes:
        out.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{n:,}</text>')
    for (name, points), colour in zip(sorted(series.items()), COLOURS):
        line = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.extend(f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for n, value in points)
        last = points[-1]
        out.append(f'<text x="{x(last[0]) + 8:.1f}" y="{y(last[1]) + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[2] if len(sys.argv) == 3 else "docs/plots")
    folder.mkdir(parents=True, exist_ok=True)
    runs = read(sys.argv[1])
    for name, (title, unit, row) in PLOTS.items():
        (folder / f"{name}.svg").write_text(plot(title, unit, row, runs))


if __name__ == "__main__":
    main()
