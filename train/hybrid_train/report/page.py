"""Write the report of a run: one page with numbers, curves and images.

    write_report(folder, report)  # folder/report.html

The page loads nothing from elsewhere, so that it can be mailed and archived.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.files import atomic_path
from hybrid_rt.spec import ModelSpec
from hybrid_train.report import plots

DISCLAIMER = (
    "This is a research tool and not a medical device. The numbers hold for images like those "
    "of this data set; other scanners, populations and ways of labelling can change them."
)

CHOSEN_ON_VAL = (
    "There is no test subset: the epoch, the temperature and the threshold were chosen on the "
    "images measured here, so expect somewhat less on new ones."
)

BY = {"class": "each class", "image": "all images"}
PREDICTION_SETS = (
    "Split conformal prediction, calibrated on the validation subset: the share of images whose "
    "set holds the true label. hybrid-predict returns these sets with --coverage."
)

STYLE = """
:root{--ink:#17202a;--soft:#5d6b78;--line:#e2e7ec;--blue:#1565c0}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
margin:0;background:#f5f7f9}
main{max-width:1120px;margin:0 auto;padding:2rem 1.2rem 4rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .8rem}
p.sub{color:var(--soft);margin:.1rem 0 1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:.8rem}
.card,.plot,table,pre,.scroll{background:#fff;border:1px solid var(--line);border-radius:8px}
.card{padding:.8rem 1rem}.card b{display:block;font-size:1.55rem;font-weight:600}
.card span{color:var(--soft);font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:.8rem}
.plot{padding:.6rem}.plot svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto}.scroll table{border:0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.4rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}
tr:last-child td{border-bottom:0}
.plot svg text{font-family:inherit!important}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.7rem}
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:8px;overflow:hidden}
figure img{width:100%;display:block;background:#000}
figcaption{padding:.4rem .6rem;font-size:.82rem;line-height:1.35}
figure.wrong{border-color:#c62828}figure.wrong figcaption b{color:#c62828}
pre{padding:.8rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
.disclaimer{border-left:4px solid #f9a825;background:#fffdf3;padding:.7rem 1rem;border-radius:4px}
"""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """An image with its true and its predicted class."""

    image: Image.Image
    name: str
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The content of the page; ``metrics``, ``logits`` and ``labels`` are by split name."""

    title: str
    command: str
    spec: ModelSpec
    history: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    logits: Mapping[str, NDArray[Any]]
    labels: Mapping[str, NDArray[Any]]
    counts: Mapping[str, Mapping[str, int]]  # split -> class or "patients" -> number
    gallery: Sequence[GalleryItem] = ()
    subgroups: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(folder: str | Path, report: ReportData) -> Path:
    """Write ``report.html`` into ``folder`` and return its path."""
    path = Path(folder) / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    return path


def render(report: ReportData) -> str:
    """Return the page as HTML."""
    shown = "test" if "test" in report.metrics else next(iter(report.metrics))
    spec = report.spec
    sections = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{esc(report.title)}</title>"
        f"<style>{STYLE}</style></head><body><main>",
        f"<h1>{esc(report.title)}</h1><p class='sub'>{esc(spec.vit.model)} + "
        f"{esc(spec.cnn.model)}, {spec.preprocess.height} px, classes "
        f"{esc(', '.join(spec.classes))}. Numbers below are of the <b>{esc(shown)}</b> subset.</p>",
        cards(report.metrics[shown], spec),
        f"<p class='disclaimer'>{esc(DISCLAIMER)}</p>",
    ]
    notes = [*report.notes, *report.metrics[shown].get("notes", ())]
    if shown == "val":
        notes.append(CHOSEN_ON_VAL)
    if notes:
        sections.append("<ul>" + "".join(f"<li>{esc(n)}</li>" for n in notes) + "</ul>")
    sections += ["<h2>Data</h2>", data_table(report.counts)]
    sections += ["<h2>Training</h2>", f"<p class='sub'>{esc(speed(report.history))}</p>"]
    sections.append(figures(plots.training(report.history)))
    sections += [f"<h2>Curves ({esc(shown)})</h2>"]
    before, labels = report.logits[shown], report.labels[shown]
    drawn = plots.quality(before, labels, spec.classes, spec.temperature, spec.operating_point)
    sections.append(figures(drawn))
    sections += ["<h2>All measures</h2>", measures_table(report.metrics)]
    sections.append(
        f"<p class='sub'>ECE is the expected calibration error in "
        f"{esc(report.metrics[shown]['ece_binning'])}. Intervals hold 95% of bootstrap draws of "
        "complete groups (patients) if the data has them.</p>"
    )
    sections += [f"<h2>By class ({esc(shown)})</h2>"]
    sections.append(rows_table(report.metrics[shown]["per_class"]))
    if sets := report.metrics[shown].get("prediction_sets"):
        sections += [f"<h2>Prediction sets ({esc(shown)})</h2>", prediction_sets_table(sets)]
        sections.append(f"<p class='sub'>{esc(PREDICTION_SETS)}</p>")
    if report.subgroups:
        sections += [f"<h2>By subgroup ({esc(shown)})</h2>", rows_table(report.subgroups)]
    for title, wrong in (
        ("Wrong predictions, most probable first", True),
        ("Right predictions", False),
    ):
        items = [g for g in report.gallery if (g.truth != g.predicted) == wrong]
        if items:
            sections += [f"<h2>{title}</h2><div class='gallery'>"]
            sections += [gallery_figure(item, wrong) for item in items]
            sections.append("</div>")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sections.append(f"<h2>How it was made</h2><pre>{esc(report.command)}\n\n{esc(versions)}</pre>")
    sections.append("</main></body></html>")
    return "\n".join(sections)


def cards(metrics: Mapping[str, Any], spec: ModelSpec) -> str:
    """Return the most important numbers."""
    interval = metrics.get("auroc_interval")
    entries = [
        ("AUROC", metrics["auroc"], f"95% {interval[0]:.3f} to {interval[1]:.3f}" if interval else
         "one against the rest" if len(spec.classes) > 2 else ""),
        ("Accuracy", metrics["accuracy"], f"{metrics['count']} images"),
        ("Balanced accuracy", metrics["balanced_accuracy"], "mean recall of the classes"),
        ("Average precision", metrics["average_precision"], ""),
        ("Sensitivity", metrics["sensitivity_at_90_specificity"], "at 90% specificity"),
        ("Calibration error", metrics["ece"], f"temperature {spec.temperature:.2f}; "
         f"{number(metrics['ece_before_temperature'])} without"),
    ]  # fmt: skip
    point, found = spec.operating_point, metrics.get("operating_point")
    if point is not None and found is not None:
        entries += [
            ("Threshold", point.threshold, f"on {point.positive}, by {point.criterion}"),
            *(
                (name.capitalize(), found[name], at_threshold(found[f"{name}_interval"]))
                for name in ("sensitivity", "specificity")
            ),
        ]
    cells = [
        f"<div class='card'><span>{esc(name)}</span><b>{number(value)}</b>"
        f"<span>{esc(note)}</span></div>"
        for name, value, note in entries
    ]
    return f"<div class='cards'>{''.join(cells)}</div>"


def at_threshold(interval: tuple[float, float] | None) -> str:
    known = f", 95% {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"at the threshold{known}"


def speed(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the speed of training, and the share of time spent waiting for images."""
    if not history:
        return "No epoch was trained."
    rate = median(row["images_per_s"] for row in history)
    waited = sum(row["data_wait"] * row["seconds"] for row in history)
    seconds = sum(row["seconds"] for row in history)
    return (
        f"{len(history)} epochs in {seconds:.0f} s, {rate:.0f} images a second (median epoch), "
        f"{waited / max(seconds, 1e-9):.0%} of the time waiting for data."
    )


def data_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return the number of images of each subset as a table."""
    return rows_table([{"subset": name, **row} for name, row in counts.items()])


def measures_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the measures that are single numbers as a table."""
    names = [
        name
        for name, value in next(iter(metrics.values())).items()
        if value is None or isinstance(value, (int, float))
    ]
    return rows_table(
        [
            {"measure": name.replace("_", " "), **{s: m.get(name) for s, m in metrics.items()}}
            for name in names
        ]
    )


def prediction_sets_table(sets: Sequence[Mapping[str, Any]]) -> str:
    """Return coverage and size of the prediction sets as a table."""
    return rows_table(
        [
            {
                "wanted": f"{row['wanted']:.0%} of {BY[row['by']]}",
                "covered": row["coverage"],
                **{f"of {name}": share for name, share in row["per_class"].items()},
                "labels a set": row["mean_size"],
                "sets of one label": row["single"],
                "note": row["note"],
            }
            for row in sets
        ]
    )


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of dictionaries with the first one's keys as its head."""
    if not rows:
        return ""
    columns = list(rows[0])
    head = "".join(f"<th>{esc(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


def cell(value: Any) -> str:
    """Return a cell's content as HTML."""
    if isinstance(value, (list, tuple)):
        return " to ".join(number(v) for v in value)
    return esc(value) if isinstance(value, str) else number(value)


def number(value: Any) -> str:
    """Return a number with four decimals; None is a dash."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def figures(svgs: Sequence[str]) -> str:
    """Return SVG elements side by side."""
    return "<div class='plots'>" + "".join(f"<div class='plot'>{s}</div>" for s in svgs) + "</div>"


def gallery_figure(item: GalleryItem, wrong: bool) -> str:
    """Return an image with its classes as a figure element."""
    thumbnail = item.image.convert("L" if item.image.mode == "L" else "RGB")
    thumbnail.thumbnail((300, 300))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = "wrong" if wrong else "right"
    return (
        f"<figure class='{kind}'><img alt='{esc(item.name)}' src='data:image/jpeg;base64,{data}'>"
        f"<figcaption><b>{esc(item.predicted)} {item.probability:.0%}</b><br>"
        f"is {esc(item.truth)}<br>{esc(item.name)}</figcaption></figure>"
    )


def esc(text: object) -> str:
    """Return text with the special characters of HTML escaped."""
    return html.escape(str(text), quote=True)
