"""The model card's sections on performance, calibration, operating point and prediction sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_export.model_card.markdown import UNKNOWN, facts, number, table, text, with_interval
from hybrid_export.model_card.run_record import Record
from hybrid_export.model_card.subgroups import subgroup_rows
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.conformal import EXTRAS_KEY as CONFORMAL_KEY
from hybrid_rt.uncertainty.conformal import Conformal


def performance_section(spec: ModelSpec, record: Record) -> str:
    title = "## Performance"
    subset = record.shown
    if subset is None:
        known = spec.provenance.get("metrics")
        if not known:
            return f"{title}\n\n{UNKNOWN.capitalize()}. Measure it before any use."
        return f"{title}\n\n{facts({k: number(v) for k, v in known.items()})}"
    rows = subgroup_rows(record.predictions, spec, subset)
    where = "test images, which no choice was made on" if subset == "test" else (
        "validation images, which also chose the epoch, the temperature and the threshold: "
        "expect less on new ones"
    )  # fmt: skip
    lines = [
        f"On {record.metrics[subset]['count']} {where}. Intervals hold 95% of bootstrap draws, by "
        "patient where patients are known; a dash is not defined."
        + (f" Positive is {text(_positive(spec))}." if len(spec.classes) == 2 else "")
    ]
    if rows:
        lines.append(table([_subgroup(row) for row in rows]))
        lines.append(
            "A subgroup's interval that reaches far below the whole's is a warning, not a proof; "
            "subgroups of few patients say little. What the data has no column for was not looked "
            "at."
        )
    else:
        lines.append(facts({k: number(record.metrics[subset].get(k)) for k in _MEASURES}))
        lines.append(f"By subgroup: {UNKNOWN.partition(':')[0]}, the run has no predictions.")
    return f"{title}\n\n" + "\n\n".join(lines)


_MEASURES = ("accuracy", "balanced_accuracy", "auroc", "auroc_interval", "average_precision")


def _positive(spec: ModelSpec) -> str:
    return spec.classes[1] if spec.operating_point is None else spec.operating_point.positive


def _subgroup(row: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ("auroc", "sensitivity", "specificity", "accuracy")
    return {
        key if key != "auroc" else "AUROC": with_interval(*row[key]) if key in pairs else row[key]
        for key in ("subgroup", "images", "patients", "positives", *pairs)
        if key in row
    }


def calibration_section(spec: ModelSpec, record: Record) -> str:
    subset = record.shown
    lines = [f"- temperature: {spec.temperature:.4f}, fitted on validation images, in the graph"]
    if subset is None:
        lines[0] = f"- temperature: {spec.temperature:.4f}"
        lines.append(f"- calibration error: {UNKNOWN}")
    else:
        found = record.metrics[subset]
        lines += [
            f"- expected calibration error ({subset}): {number(found.get('ece'))} with the "
            f"temperature, {number(found.get('ece_before_temperature'))} without, in "
            f"{found.get('ece_binning', 'bins that are not stated')}",
            f"- Brier score ({subset}): {number(found.get('brier'))}",
        ]
    return "## Calibration\n\n" + "\n".join(lines)


def operating_point_section(spec: ModelSpec, record: Record) -> str:
    title, point = "## Operating point", spec.operating_point
    if point is None:
        return f"{title}\n\nNone is stored: the prediction is the most probable class."
    lines = [
        f"{text(point.positive)} is called at a probability of {point.threshold:.4f} or more, "
        f"chosen on validation images by the rule `{point.criterion}`."
    ]
    rows = [
        {
            "on": "validation",
            "sensitivity": with_interval(point.sensitivity, point.sensitivity_interval),
            "specificity": with_interval(point.specificity, point.specificity_interval),
        }
    ]
    test = record.metrics.get("test", {}).get("operating_point")
    if test:
        rows.append(
            {
                "on": "test",
                "sensitivity": with_interval(test["sensitivity"], test["sensitivity_interval"]),
                "specificity": with_interval(test["specificity"], test["specificity_interval"]),
            }
        )
    lines.append(table(rows))
    if test:
        lines.append(
            "Predictive values on test, for the share of positives there: positive "
            f"{number(test['positive_predictive_value'])}, negative "
            f"{number(test['negative_predictive_value'])}."
        )
    return f"{title}\n\n" + "\n\n".join(lines)


def prediction_sets_section(spec: ModelSpec, record: Record) -> str:
    title = "## Prediction sets"
    if CONFORMAL_KEY not in spec.extras:
        return f"{title}\n\nNot calibrated: `coverage` cannot be asked of this model."
    conformal = Conformal.of(spec)
    patients = f" of {conformal.groups} patients" if conformal.groups else ""
    lines = [
        f"Split conformal sets, calibrated on {conformal.images.count} {conformal.calibrated_on} "
        f"images{patients}. The guarantee is an average over images like those; it does not "
        "hold for a single patient, another population, or after a drift."
    ]
    subset = record.shown
    rows = record.metrics.get(subset, {}).get("prediction_sets", []) if subset else []
    if rows:
        lines.append(
            table(
                [
                    {
                        "wanted": f"{row['wanted']:.0%} of each {row['by']}"
                        if row["by"] == "class"
                        else f"{row['wanted']:.0%} of all images",
                        f"covered ({subset})": f"{row['coverage']:.3f}",
                        **{k: f"{v:.3f}" for k, v in row["per_class"].items()},
                        "labels a set": f"{row['mean_size']:.2f}",
                    }
                    for row in rows
                ]
            )
        )
    return f"{title}\n\n" + "\n\n".join(lines)
