"""The page: tables, curves and images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from hybrid_export.localization.measure import Localization
from hybrid_rt.results.explanation import Explanation
from hybrid_train.report import (
    COLOURS,
    DISCLAIMER,
    GREY,
    STYLE,
    canvas,
    esc,
    figures,
    legend,
    rows_table,
    svg,
)

_SHOWN = 12  # images
_PANEL = 240  # pixels
_NAMES = {"vit": "ViT heatmap", "cnn": "CNN heatmap (Grad-CAM)"}
_OUTLINE = (0, 255, 200)
_STYLE = """
.overlays{display:grid;grid-template-columns:repeat(auto-fill,minmax(520px,auto));gap:.7rem}
.overlays figure img{background:#fff}
"""


def render(
    result: Localization,
    found: Sequence[tuple[Explanation, NDArray[np.bool_]]],
    command: str,
) -> str:
    """Return the page as text; it loads nothing from elsewhere."""
    pointing = [
        {
            "what points": _NAMES.get(row.name, row.name),
            "hits": row.hits,
            "95% interval": row.hits_interval,
            "share of the heat inside the lesion": row.energy,
        }
        for row in result.pointing
    ]
    areas = [
        {
            "order of the pixels": _NAMES.get(row.name, row.name),
            "area under deletion (smaller is better)": row.deletion_area,
            "area under insertion (larger is better)": row.insertion_area,
        }
        for row in result.curves
    ]
    shown = [
        f"<figure><img alt='image, ViT heatmap, CNN heatmap' src='{_data(overlay(e, mask))}'>"
        "</figure>"
        for e, mask in found[:_SHOWN]
    ]
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width'><title>Heatmaps and lesions"
            f"</title><style>{STYLE}{_STYLE}</style></head><body><main>",
            "<h1>Do the heatmaps point at the lesion?</h1>",
            f"<p class='sub'>{esc(result.file)} on {result.found} phantom images with a lesion "
            f"that the model found, of {result.lesions} ({result.patients} patients, seed "
            f"{result.seed}). A lesion covers {result.lesion_area:.1%} of the image. "
            f"{esc(result.engine)}</p>",
            f"<p class='disclaimer'>Phantoms are synthetic. {esc(DISCLAIMER)}</p>",
            "<h2>Pointing game</h2>",
            "<p class='sub'>How often the hottest point lies in the lesion or within 15 of 512 "
            "pixels of it. The lower rows need no network.</p>",
            rows_table(pointing),
            "<h2>Deletion and insertion</h2>",
            f"<p class='sub'>Mean probability of the predicted class on {result.curve_images} "
            "images.</p>",
            figures(_curves(result)),
            rows_table(areas),
            "<h2>Images</h2><p class='sub'>Outlined: the lesion. Bright: what drove the "
            "prediction.</p>",
            f"<div class='overlays'>{''.join(shown)}</div>",
            f"<h2>How it was made</h2><pre>{esc(command)}</pre></main></body></html>",
        ]
    )


def overlay(explanation: Explanation, mask: NDArray[np.bool_]) -> Image.Image:
    """Return the explanation's overlay with the lesion outlined on each of its panels."""
    sheet = explanation.overlay(max_size=_PANEL)
    small = explanation.image.convert("L")
    small.thumbnail((_PANEL, _PANEL))
    inside = np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))
    edge = outline(inside)
    pixels = np.array(sheet)
    height, width = edge.shape
    top = pixels.shape[0] - height
    lefts = [0, (pixels.shape[1] - width) // 2, pixels.shape[1] - width]  # three panels
    for left in lefts:
        pixels[top : top + height, left : left + width][edge] = _OUTLINE
    return Image.fromarray(pixels)


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels just outside of what is true."""
    edge: NDArray[np.bool_] = binary_dilation(inside) & ~inside
    return edge


def _curves(result: Localization) -> list[str]:
    made = []
    for title, name in (("Deletion", "deletion"), ("Insertion", "insertion")):
        figure, axes = canvas(title, "share of the pixels", "probability of the predicted class")
        for curve, colour in zip(result.curves, (*COLOURS[:2], GREY), strict=True):
            values = getattr(curve, name)
            share = np.linspace(0, 1, len(values))
            axes.plot(share, values, color=colour, label=_NAMES.get(curve.name, curve.name))
        axes.set_ylim(0, 1.02)
        legend(axes, "best")
        made.append(svg(figure))
    return made


def _data(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
