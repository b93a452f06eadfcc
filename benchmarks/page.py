"""Results as one self-contained page: latency distribution, throughput, latency against error."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from benchmarks.tables import format_tables

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;color:#1b2128;
padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
pre{overflow-x:auto;background:#f4f6f8;padding:1rem;font-size:12px;line-height:1.45}
svg{max-width:100%;height:auto}p.note{color:#57636f}
"""


def write_page(path: Path, data: dict[str, Any], times: dict[str, list[float]]) -> None:
    """Write the page.

    Args:
        data: The content of results.json.
        times: The raw seconds of each row.
    """
    import matplotlib

    matplotlib.use("Agg")
    rows = [row for row in data["rows"] if "p50_ms" in row]
    sections = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>hybrid-rt benchmarks</title>"
        f"<style>{STYLE}</style><h1>hybrid-rt benchmarks</h1>",
        f"<p class='note'>{html.escape(data['machine']['cpu'])}, {data['machine']['cores']} cores, "
        f"{data['date']}, preset {data['preset']}. Every row ran in its own process, in turn with "
        "its baselines; ratios are medians of pairs.</p>",
    ]
    for title, figure in (
        ("Latency at batch 1", plot_latency(rows, data)),
        ("Throughput over batch size", plot_throughput(rows)),
        ("Latency against error", plot_error(rows)),
    ):
        if figure is not None:
            sections.append(f"<h2>{title}</h2>{to_svg(figure)}")
    sections.append(f"<h2>Tables</h2><pre>{html.escape(format_tables(data))}</pre></html>")
    path.write_text("\n".join(sections))


def to_svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight")
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def colour(row: str) -> str:
    return "#1565c0" if row.startswith("hybrid-rt") else "#9aa5b1"


def plot_latency(rows: list[dict[str, Any]], data: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    chosen = sorted((r for r in rows if r["table"] == "batch 1"), key=lambda r: -r["p50_ms"])
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(chosen) + 1))
    for y, row in enumerate(chosen):
        axes.barh(y, row["p50_ms"], color=colour(row["row"]), height=0.6)
        axes.plot([row["p50_ms"], row["p99_ms"]], [y, y], color="#d84315", lw=2)
        axes.text(row["p99_ms"], y, f"  {row['p50_ms']:.1f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(chosen)), [r["row"] for r in chosen])
    axes.set_xlabel("ms per image: bar p50, red to p99")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_throughput(rows: list[dict[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    series: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["table"] in ("batch 1", "batch 8", "offline"):
            series.setdefault(row["row"], {})[row["images"]] = row["images_per_s"]
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure, axes = plt.subplots(figsize=(9, 4))
    for name, points in series.items():
        xs = sorted(points)
        dash = "-" if name.startswith("hybrid-rt") else "--"
        axes.plot(xs, [points[x] for x in xs], dash, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("images per call")
    axes.set_ylabel("images per second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_error(rows: list[dict[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    chosen = [r for r in rows if r["table"] == "batch 1"]
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(9, 4))
    for row in sorted(chosen, key=lambda r: r["p50_ms"]):
        gap = max(row["parity"]["logits_max_abs"], 1e-8)
        marker = "o" if row["row"].startswith("hybrid-rt") else "s"
        axes.plot(row["p50_ms"], gap, marker, label=row["row"])
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_yscale("log")
    axes.set_xlabel("ms per image, p50")
    axes.set_ylabel("largest logit error against PyTorch fp32")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
