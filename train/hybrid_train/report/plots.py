"""Draw the plots of the report as SVG text, without pyplot and its global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.spec import OperatingPoint
from hybrid_train.evaluation.reliability import calibration_error, reliability, softmax

Array = NDArray[Any]

BLUE, ORANGE, GREY, INK = "#1565c0", "#e65100", "#90a4ae", "#17202a"
COLOURS = (BLUE, ORANGE, "#2e7d32", "#6a1b9a", "#00838f", "#c62828", "#5d4037", "#455a64")
MOST_CLASSES = 8  # more curves in one plot are unreadable
MOST_TICKS = 24  # more class names on an axis are unreadable


def training(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw loss, validation measures and learning rate over the epochs."""
    if not history:
        return []
    epochs = [row["epoch"] for row in history]
    made = []
    for title, series in (
        ("Loss", {"training": "train_loss", "validation": "val_loss"}),
        ("Validation", {"AUROC": "val_auroc", "balanced accuracy": "val_balanced_accuracy"}),
        ("Learning rate", {"peak of all groups": "lr"}),
    ):
        figure, axes = canvas(title, "epoch", "")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for (name, key), colour in zip(series.items(), COLOURS, strict=False):
            values = [np.nan if row.get(key) is None else row[key] for row in history]
            if not np.isnan(values).all():
                axes.plot(epochs, values, color=colour, label=name, marker="o", ms=3)
        if axes.lines:
            legend(axes, "best")
            made.append(svg(figure))
    return made


def quality(
    logits: Array,
    labels: Array,
    classes: Sequence[str],
    temperature: float,
    point: OperatingPoint | None = None,
) -> list[str]:
    """Draw ROC, precision and recall, confusion matrix, and reliability before and after.

    With two classes, also draw the distribution of probabilities and the rates of every threshold.
    ``point`` marks the chosen threshold.
    """
    probabilities = softmax(np.asarray(logits) / temperature)
    made = [
        roc(probabilities, labels, classes),
        precision_recall(probabilities, labels, classes),
        confusion(probabilities, labels, classes),
        reliability_diagram(logits, labels, temperature),
    ]
    if len(classes) == 2:
        positive = 1 if point is None else list(classes).index(point.positive)
        score = probabilities[:, positive]
        made.append(spread(score, labels, classes, positive, point))
        if len(set(labels.tolist())) == 2:
            made.append(thresholds(score, labels == positive, classes[positive], point))
    return made


def curves(probabilities: Array, labels: Array, classes: Sequence[str]) -> list[tuple[str, Any]]:
    """Return (name, truth, score) of the second class of two, or of all that are present."""
    chosen = [1] if len(classes) == 2 else range(min(len(classes), MOST_CLASSES))
    return [
        (shown_name(classes[c]), (labels == c, probabilities[:, c]))
        for c in chosen
        if (labels == c).any() and not (labels == c).all()
    ]


def roc(probabilities: Array, labels: Array, classes: Sequence[str]) -> str:
    """Draw the ROC curves."""
    from sklearn.metrics import roc_curve

    figure, axes = canvas("ROC", "1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    for (name, (truth, score)), colour in zip(
        curves(probabilities, labels, classes), COLOURS, strict=False
    ):
        x, y, _ = roc_curve(truth, score)
        axes.plot(x, y, color=colour, label=name)
    legend(axes, "lower right")
    return svg(figure)


def precision_recall(probabilities: Array, labels: Array, classes: Sequence[str]) -> str:
    """Draw the precision over the recall."""
    from sklearn.metrics import precision_recall_curve

    figure, axes = canvas("Precision and recall", "recall", "precision")
    axes.set_ylim(0, 1.03)
    for (name, (truth, score)), colour in zip(
        curves(probabilities, labels, classes), COLOURS, strict=False
    ):
        precision, recall, _ = precision_recall_curve(truth, score)
        axes.plot(recall, precision, color=colour, label=name)
        axes.axhline(truth.mean(), color=colour, lw=0.8, ls=":")
    legend(axes, "lower left")
    return svg(figure)


def confusion(probabilities: Array, labels: Array, classes: Sequence[str]) -> str:
    """Draw the confusion matrix of the most probable class."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, probabilities.argmax(1), labels=range(len(classes)))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes = canvas("Confusion matrix (likeliest class)", "predicted", "true")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ticks = range(len(classes))
    if len(classes) <= MOST_TICKS:
        names = [shown_name(name) for name in classes]
        long = max(map(len, names)) > 4 and len(classes) > 3
        axes.set_xticks(ticks, names, rotation=30 if long else 0, ha="right" if long else "center")
        axes.set_yticks(ticks, names)
    if len(classes) <= 12:
        for i in ticks:
            for j in ticks:
                colour = "white" if share[i, j] > 0.55 else INK
                axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=colour)
    axes.grid(False)
    return svg(figure)


def reliability_diagram(logits: Array, labels: Array, temperature: float) -> str:
    """Draw accuracy over probability, before and after the temperature."""
    figure, axes = canvas(
        "Reliability", "probability of the predicted class", "share that is right"
    )
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    for name, value, colour in (
        ("before calibration", 1.0, GREY),
        (f"after, temperature {temperature:.2f}", temperature, BLUE),
    ):
        error = calibration_error(softmax(np.asarray(logits) / value), labels)["ece"]
        bins = reliability(logits, labels, value)
        kept = [k for k, n in enumerate(bins["count"]) if n]
        x = [bins["probability"][k] for k in kept]
        y = [bins["accuracy"][k] for k in kept]
        sizes = [15 + 120 * bins["count"][k] / len(labels) for k in kept]
        axes.plot(x, y, color=colour, lw=1)
        axes.scatter(x, y, s=sizes, color=colour, label=f"{name}: ECE {error:.3f}", alpha=0.8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    legend(axes, "upper left")
    return svg(figure)


def spread(
    score: Array,
    labels: Array,
    classes: Sequence[str],
    positive: int,
    point: OperatingPoint | None,
) -> str:
    """Draw the distribution of the positive class's probability over each class's images."""
    figure, axes = canvas(
        "Probabilities", f"probability of {shown_name(classes[positive])}", "images"
    )
    bins = np.linspace(0, 1, 26)
    for c, colour in ((1 - positive, BLUE), (positive, ORANGE)):
        axes.hist(score[labels == c], bins, color=colour, alpha=0.6, label=shown_name(classes[c]))
    if point is not None:
        axes.axvline(point.threshold, color=INK, lw=1, ls="--", label="threshold")
    legend(axes, "upper center")
    return svg(figure)


def thresholds(score: Array, truth: Array, name: str, point: OperatingPoint | None) -> str:
    """Draw sensitivity and specificity of every threshold."""
    figure, axes = canvas("Choice of a threshold", f"threshold for {shown_name(name)}", "")
    x = np.linspace(0, 1, 401)
    for label, inside, colour in (("sensitivity", True, ORANGE), ("specificity", False, BLUE)):
        ranked = np.sort(score[truth == inside])
        below = np.searchsorted(ranked, x) / len(ranked)
        axes.plot(x, 1 - below if inside else below, color=colour, label=label)
    if point is not None:
        axes.axvline(point.threshold, color=INK, lw=1, ls="--", label=shown_name(point.criterion))
    axes.set_ylim(0, 1.03)
    legend(axes, "lower center")
    return svg(figure)


def shown_name(name: str) -> str:
    """Return a class name for Matplotlib: short, no formula, no hidden legend entry."""
    short = name if len(name) <= 18 else name[:17] + "…"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def canvas(title: str, xlabel: str, ylabel: str) -> tuple[Any, Any]:
    """Return an empty figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#eceff1")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Any, place: str) -> None:
    """Add a legend if there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none", framealpha=0.7, loc=place, fontsize=9)


def svg(figure: Any) -> str:
    """Return the figure as an SVG element with text as text; equal figures are equal."""
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "0"}):
        # Class names of any script: the browser has the glyphs that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
