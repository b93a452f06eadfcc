"""The report: everything in one file, nothing loaded from elsewhere, names shown as they are."""

import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from hybrid_rt.spec import Branch, Head, ModelSpec, Preprocess
from hybrid_train.evaluation.metrics import evaluate
from hybrid_train.evaluation.reliability import softmax
from hybrid_train.posthoc.operating_point import at_threshold, choose_operating_point
from hybrid_train.report import DISCLAIMER
from hybrid_train.report.page import GalleryItem, ReportData, render, write_report

VOID = {"meta", "img", "br", "use", "path"}


class Outline(html.parser.HTMLParser):
    """A parser of what a page shows and loads; it fails if tags do not close in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.loads, self.text, self.ids = [], [], [], []
        self.counts = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def __contains__(self, text):
        return text in " ".join(" ".join(self.text).split())


PREDICTION_SETS = [
    {
        "wanted": 0.9,
        "by": "class",
        "coverage": 0.8765,
        "per_class": {"cancer": 0.7654},
        "mean_size": 1.2345,
        "single": 0.7777,
        "note": "too few images",
    }
]


def made(classes=("no cancer", "cancer"), subset="test", seed=0, **changes):
    """Data of a run of 60 images whose predictions are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % len(classes)
    logits = rng.normal(size=(60, len(classes))) + 1.5 * np.eye(len(classes))[labels]
    groups = np.arange(60) // 3
    probabilities = softmax(logits / 1.3)
    point = found = None
    if len(classes) == 2:
        point = choose_operating_point(
            probabilities[:, 1],
            labels,
            positive=classes[1],
            criterion="youden",
            groups=groups,
            bootstrap=50,
        )
        found = at_threshold(
            probabilities[:, 1], labels == 1, point.threshold, groups, bootstrap=50
        )
    spec = ModelSpec(
        classes=classes,
        preprocess=Preprocess(height=64, width=64),
        vit=Branch(model="test_vit", features=64),
        cnn=Branch(model="test_resnet", features=64),
        head=Head(hidden=(8,)),
        temperature=1.3,
        operating_point=point,
    )
    predicted = probabilities.argmax(1)
    gallery = [
        GalleryItem(
            image=Image.new("L", (400, 300), int(k * 4)),
            name=f"image-{k}",
            truth=classes[labels[k]],
            predicted=classes[predicted[k]],
            probability=float(probabilities[k].max()),
        )
        for k in range(20)
    ]
    history = [
        {
            "epoch": e,
            "train_loss": 1 / e,
            "val_loss": 1.1 / e,
            "val_auroc": None,
            "lr": 0.1 / e,
            "seconds": 10.0,
            "images_per_s": 30.0 + e,
            "data_wait": 0.1 * e,
        }
        for e in (1, 2, 3)
    ]
    data = {
        "title": "cancer on phantom",
        "command": "hybrid-train phantom --preset tiny",
        "spec": spec,
        "history": history,
        "metrics": {
            subset: evaluate(
                logits, labels, classes, groups=groups, temperature=1.3, bootstrap=50
            )
            | {"operating_point": found, "ood_rate": 0.0125, "prediction_sets": PREDICTION_SETS}
        },
        "logits": {subset: logits},
        "labels": {subset: labels},
        "counts": {"train": {"images": 100, "patients": 25}, subset: {"images": 60}},
        "gallery": gallery,
        "subgroups": [{"subgroup": "view CC", "images": 30, "AUROC": None}],
        "versions": {"torch": "2.15.0"},
        "notes": ["7 rows dropped: cancer is null"],
    }  # fmt: skip
    return ReportData(**{**data, **changes})


def test_one_file_that_loads_nothing(tmp_path):
    path = write_report(tmp_path, made())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert all(v.startswith(("data:image/", "#")) for v in outline.loads)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)


def test_it_shows_the_numbers_and_how_they_came_about():
    data = made()
    outline = Outline(render(data))
    result, point = data.metrics["test"], data.spec.operating_point
    low, high = result["auroc_interval"]
    for text in (
        f"{result['auroc']:.4f}",
        f"95% {low:.3f} to {high:.3f}",
        f"{result['f1_macro']:.4f}",
        f"temperature 1.30; {result['ece_before_temperature']:.4f} without",
        f"{point.threshold:.4f}",
        "on cancer, by youden",
        f"{result['operating_point']['specificity']:.4f} at the threshold, 95% ",
        "3 epochs in 30 s, 32 images a second (median epoch), 20% of the time waiting",
        "before calibration: ECE",
        "hybrid-train phantom --preset tiny",
        "torch 2.15.0",
        "7 rows dropped: cancer is null",
        "view CC",
        "90% of each class 0.8765 0.7654 1.2345 0.7777 too few images",
        "ood rate",
        "0.0125",
        "15 equal-width bins of the top label's probability",
        DISCLAIMER,
    ):
        assert text in outline, text
    assert outline.counts["svg"] == 8  # no validation AUROC, no plot of it
    assert outline.counts["img"] == 20
    wrong = sum(item.truth != item.predicted for item in data.gallery)
    assert 0 < wrong < 20
    assert render(data).count("<figure class='wrong'>") == wrong


def test_every_plot_keeps_to_its_own_marks():
    """Inline elements share one page: what a plot refers to must be in the page, and be its own."""
    page = render(made())
    found = re.findall(r"<svg.*?</svg>", page, re.S)
    for svg in found:
        references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert references <= set(re.findall(r'id="([^"]+)"', svg))


def test_equal_runs_make_equal_pages():
    assert render(made()) == render(made())
    assert render(made()) != render(made(seed=1))


@pytest.mark.parametrize(
    "classes",
    [
        ("<b>bold</b>", "$x^2$"),
        ("_良性", "a very long name of a class that goes on and on"),
        tuple(f"class number {k}" for k in range(30)),
    ],
)
def test_any_class_names(classes):
    outline = Outline(render(made(classes)))
    for name in classes:
        assert name in outline, name


def test_a_validation_subset_also_chose():
    assert "so expect somewhat less on new ones" in Outline(render(made(subset="val")))
    assert "so expect somewhat less on new ones" not in Outline(render(made()))


def test_a_subset_with_one_class_and_no_history():
    base = made()
    logits, labels = base.logits["test"][:5], np.zeros(5, int)
    result = evaluate(logits, labels, base.spec.classes, bootstrap=10)
    outline = Outline(
        render(made(logits={"test": logits}, labels={"test": labels}, metrics={"test": result},
                    history=[], gallery=(), subgroups=()))
    )  # fmt: skip
    assert "no image of class 'cancer' in this split" in outline
    assert "AUROC –" in outline
