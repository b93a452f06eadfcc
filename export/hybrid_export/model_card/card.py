"""MODEL_CARD.md: intended use, data, performance and limitations (Mitchell et al., FAT* 2019).

A pure function of the bundle and of the record in its run folder. Every card has every section;
what is not recorded is written as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from hybrid_export.model_card.markdown import facts, small, table, text
from hybrid_export.model_card.performance import (
    calibration_section,
    operating_point_section,
    performance_section,
    prediction_sets_section,
)
from hybrid_export.model_card.run_record import Record
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.ood import OodEntry

CARD_NAME = "MODEL_CARD.md"
#: How a card written here starts.
CARD_MARK = "<!-- Written by hybrid-export. Remove this line to keep edits. -->"

NOT_A_DEVICE = (
    "**This is a research model and not a medical device. It must not be used to diagnose, to "
    "triage or to reassure.**"
)


def model_card(bundle: Bundle, record: Record, *, name: str) -> str:
    """Return the card as Markdown."""
    spec = bundle.spec
    sections = [
        f"{CARD_MARK}\n\n# Model card: {text(name)}\n\n{NOT_A_DEVICE}",
        _details(spec, record),
        _use(spec),
        _data(spec, record),
        performance_section(spec, record),
        calibration_section(spec, record),
        operating_point_section(spec, record),
        prediction_sets_section(spec, record),
        _out_of_distribution(spec, record),
        _parity(bundle),
        _limitations(spec),
    ]
    return "\n\n".join(sections) + "\n"


def _details(spec: ModelSpec, record: Record) -> str:
    made = spec.provenance
    versions = made.get("versions") or {}
    size = spec.preprocess
    known = {
        "network": f"{spec.vit.model} and {spec.cnn.model} side by side, their "
        f"{spec.num_features} features concatenated, a head of hidden sizes "
        f"{', '.join(map(str, spec.head.hidden)) or 'none'}",
        "input": f"{size.height} × {size.width} pixels, resize {size.resize}, crop {size.crop}",
        "classes": f"{', '.join(spec.classes)} (task {spec.task!r})",
        "made by": record.config.get("command") or made.get("command"),
        "started from": made.get("weights"),
        "source commit": made.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or None,
        "seed": made.get("seed"),
    }
    if made.get("weights") is None:
        known.pop("started from")
    return (
        "## Model\n\n" + facts(known) + "\n- publisher, licence, contact: not recorded; add them "
        "when the model is passed on"
    )


def _use(spec: ModelSpec) -> str:
    return (
        "## Intended use\n\n"
        f"- **For**: research on classifying images into {', '.join(map(text, spec.classes))}, "
        "by people who can judge the predictions.\n"
        "- **Not for**: decisions about a patient; images from other devices, populations or "
        "preparations than the training data's; any population on which it was not measured."
    )


def _data(spec: ModelSpec, record: Record) -> str:
    made, data = spec.provenance, record.metrics.get("data", {})
    lines = [
        facts(
            {
                "source": made.get("data"),
                "fingerprint": made.get("data_fingerprint"),
                "split": _split(spec, record),
            }
        )
    ]
    classes = data.get("classes")
    if classes:
        rows = [{"subset": subset, **counts} for subset, counts in classes.items()]
        lines.append(table(rows))
    dropped = [f"{n} rows dropped: {text(reason)}" for reason, n in data.get("dropped", {}).items()]
    if data.get("unreadable"):
        dropped.append(f"{data['unreadable']} images could not be read and were left out")
    if dropped:
        lines.append("\n".join(f"- {line}" for line in dropped))
    return "## Data\n\n" + "\n\n".join(lines)


def _split(spec: ModelSpec, record: Record) -> str | None:
    counts = spec.provenance.get("split")
    if not counts:
        return None
    subsets = [subset for subset in ("train", "val", "test") if subset in counts]
    images = ", ".join(f"{subset} {counts[subset]}" for subset in subsets) + " images"
    patients: dict[str, set[str]] = {}
    for row in record.predictions:
        patients.setdefault(row["split"], set()).add(row["group"])
    if not patients:
        return images
    if any("" in names for names in patients.values()):
        return (
            f"{images}; by image, since the data names no patients: those of one patient may "
            "be on both sides"
        )
    known = ", ".join(f"{subset} {len(names)}" for subset, names in patients.items())
    return f"{images}; by patient ({known})"


def _out_of_distribution(spec: ModelSpec, record: Record) -> str:
    title, entry = "## Out-of-distribution images", OodEntry.of(spec)
    if entry is None:
        return f"{title}\n\nThe model cannot flag them: it predicts a class for any image."
    lines = [
        f"Mahalanobis distance of the features from the training images' ({entry.file}). A "
        "score above 1 is out of distribution; set so that "
        f"{entry.false_alarms:.1%} of images like the "
        "validation images are flagged wrongly."
    ]
    subset = record.shown
    rate = record.metrics.get(subset, {}).get("ood_rate") if subset else None
    if rate is not None:
        lines.append(f"Flagged on {subset}: {rate:.2%}.")
    lines.append(
        "It flags another kind of image; it does not flag a familiar image with an unfamiliar "
        "finding."
    )
    return f"{title}\n\n" + " ".join(lines)


_PASSED: Mapping[object, str] = {True: "yes", False: "no"}


def _parity(bundle: Bundle) -> str:
    rows = []
    for name, file in bundle.files.items():
        found = file.parity_report or {}
        rows.append(
            {
                "file": name,
                "precision": file.precision,
                "passed": _PASSED.get(found.get("passed"), "not run here"),
                "images": found.get("images"),
                "largest logit error": small(found.get("logits_max_abs")),
                "features' cosine": small(found.get("features_cosine_min")),
                "top-1 flips": found.get("top1_flips"),
                "decision flips": found.get("decision_flips"),
            }
        )
    return "## Exported files against PyTorch fp32\n\n" + table(rows)


def _limitations(spec: ModelSpec) -> str:
    lines = [
        "Numbers hold for images like those of the data above. Other scanners, populations, "
        "frequencies of disease and ways of labelling change them: measure again on the images "
        "that it is to run on.",
        "The labels are taken as true; their errors are in every number.",
        "A network may use what only goes with the label, such as a marker on the image: look at "
        "where it looked (`hybrid-export --explain`).",
    ]
    if str(spec.provenance.get("data", "")).startswith("phantom"):
        lines.insert(0, "It was trained on synthetic images: it diagnoses nothing.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)
