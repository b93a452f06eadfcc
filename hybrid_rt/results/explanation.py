"""Explanation: where each branch looked, at the image's own resolution.

The exported graph computes the heatmaps in the same pass as the prediction: the class token's
attention weighted by its gradient for the ViT, Grad-CAM for the CNN. This module maps them back
through resize and crop to the original image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import Outputs
from hybrid_rt.errors import ModelFileError
from hybrid_rt.files import atomic_path
from hybrid_rt.results.prediction import Prediction
from hybrid_rt.spec import Preprocess

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels, right and bottom outside

_OUTPUTS = ("heatmap_vit", "heatmap_cnn")
_TITLES = {"vit": "ViT", "cnn": "CNN"}
_OPACITY = 0.65  # of the hottest place
_CAPTION = 22  # pixels
_GAP = 6  # pixels between panels
#: matplotlib's "inferno" (CC0) at 0, 1/4, 1/2, 3/4 and 1.
_COLOURS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """A prediction with the image it was made from and both branches' heatmaps.

    ``image`` is the image before crop and resize; ``grids`` holds the graph's own small maps by
    output name, not scaled; ``box`` is the region of the image that the crop kept.
    """

    prediction: Prediction
    image: Image.Image
    grids: dict[str, NDArray[np.float32]]
    box: Box
    preprocess: Preprocess = field(repr=False)

    @classmethod
    def from_outputs(
        cls, prediction: Prediction, row: Outputs, image: Image.Image, preprocess: Preprocess
    ) -> Explanation:
        """Return the explanation of one row of outputs and the image before crop and resize."""
        return cls(
            prediction=prediction,
            image=image,
            grids={name: row[name] for name in _OUTPUTS},
            box=_crop_box(image, preprocess),
            preprocess=preprocess,
        )

    @property
    def heatmap_vit(self) -> NDArray[np.float32]:
        """Where the ViT looked: float32 ``[image.height, image.width]``, made at each access.

        0 is no influence on the prediction, or cropped away; 1 is the branch's strongest place.
        """
        return self._heatmap("heatmap_vit", self.image.size)

    @property
    def heatmap_cnn(self) -> NDArray[np.float32]:
        """Where the CNN looked, in the same form."""
        return self._heatmap("heatmap_cnn", self.image.size)

    @property
    def strength(self) -> dict[str, float]:
        """How far each branch's heat moves the prediction, to first order.

        "vit" is in log-odds, "cnn" in units of the logit. A branch with a small strength had little
        influence, however its map looks.
        """
        return {
            name.removeprefix("heatmap_"): float(np.maximum(np.nan_to_num(grid), 0).sum())
            for name, grid in self.grids.items()
        }

    def _heatmap(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """The heatmap for a copy of the image of another ``size`` (width, height)."""
        across, down = size[0] / self.image.width, size[1] / self.image.height
        left, top, right, bottom = self.box
        box = (round(left * across), round(top * down), round(right * across), round(bottom * down))
        return place_heatmap(_unit(self.grids[name]), size, box, self.preprocess)

    def overlay(self, *, max_size: int = 640) -> Image.Image:
        """Return the image, and the image under each branch's heatmap, side by side with captions.

        A caption ends with the branch's strength; the weaker branch's heat is fainter. A panel's
        longer side is at most ``max_size`` pixels.
        """
        from PIL import Image, ImageDraw

        plain = self.image.convert("RGB")
        plain.thumbnail((max_size, max_size))
        width, height = plain.size
        panels = (
            (plain, _caption(self.prediction)),
            *(self._panel(plain, branch) for branch in ("vit", "cnn")),
        )
        total = len(panels) * width + (len(panels) - 1) * _GAP
        sheet = Image.new("RGB", (total, height + _CAPTION), "white")
        draw = ImageDraw.Draw(sheet)
        for i, (panel, caption) in enumerate(panels):
            left = i * (width + _GAP)
            sheet.paste(panel, (left, _CAPTION))
            draw.text((left + 4, 5), caption, fill="black")
        return sheet

    def _panel(self, plain: Image.Image, branch: str) -> tuple[Image.Image, str]:
        strengths = self.strength
        largest = max(strengths.values())
        opacity = _OPACITY * (strengths[branch] / largest) ** 0.5 if largest > 0 else 0.0
        heatmap = self._heatmap(f"heatmap_{branch}", plain.size)
        return _blend(plain, heatmap, opacity), f"{_TITLES[branch]} {strengths[branch]:.2f}"

    def save(self, path: str | os.PathLike[str], *, max_size: int = 640) -> Path:
        """Write the overlay as PNG, completely or not at all; return its path."""
        path = Path(path)
        with atomic_path(path) as temporary:
            self.overlay(max_size=max_size).save(temporary, "PNG")
        return path

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()


def _caption(prediction: Prediction) -> str:
    if prediction.label is None or prediction.probability is None:
        return "no prediction: out of distribution"
    return f"{prediction.label} {prediction.probability:.1%}"


def check_heatmaps(output_names: Sequence[str], file: str) -> None:
    """Raise ModelFileError unless a graph returns both heatmaps."""
    missing = [name for name in _OUTPUTS if name not in output_names]
    if missing:
        raise ModelFileError(
            f"{file} has no {' and no '.join(missing)}; export it again with: "
            "hybrid-export --explain"
        )


def place_heatmap(
    grid: NDArray[np.float32], size: tuple[int, int], box: Box, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Return a small map ``[rows, columns]`` of the input as float32 ``[height, width]``.

    ``size`` is the image's (width, height), ``box`` the region of it that the crop kept.
    What the model did not see is 0.
    """
    from PIL import Image

    canvas = np.zeros((size[1], size[0]), np.float32)
    left, top, right, bottom = box
    if right <= left or bottom <= top:  # a crop may vanish in a small copy of the image
        return canvas
    seen = _seen(right - left, bottom - top, preprocess)
    heat = Image.fromarray(np.ascontiguousarray(grid, np.float32))
    if preprocess.resize == "fit":  # the grid covers the padding too: leave it out
        columns, rows = heat.size
        source = (
            seen[0] * columns,
            seen[1] * rows,
            seen[2] * columns,
            seen[3] * rows,
        )
        target = (left, top, right, bottom)
    else:
        source = (0.0, 0.0, float(heat.width), float(heat.height))
        width, height = right - left, bottom - top
        target = (
            left + round(seen[0] * width),
            top + round(seen[1] * height),
            left + round(seen[2] * width),
            top + round(seen[3] * height),
        )
    width, height = target[2] - target[0], target[3] - target[1]
    if width > 0 and height > 0:
        region = heat.resize((width, height), Image.Resampling.BILINEAR, box=source)
        canvas[target[1] : target[3], target[0] : target[2]] = np.asarray(region)
    return canvas


def _crop_box(image: Image.Image, preprocess: Preprocess) -> Box:
    if preprocess.crop == "none":
        return 0, 0, image.width, image.height
    from hybrid_rt.images.breast_crop import breast_box

    left, top, right, bottom = breast_box(image)
    return left, top, right, bottom


def _seen(width: int, height: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """The share of the input that is image ("fit"), or of the image that is input ("fill")."""
    if preprocess.resize == "stretch":
        return 0.0, 0.0, 1.0, 1.0
    across, down = preprocess.width / width, preprocess.height / height
    scale = min(across, down) if preprocess.resize == "fit" else max(across, down)
    share = (scale / across, scale / down)
    if preprocess.resize == "fill":
        share = (1 / share[0], 1 / share[1])
    x, y = (1 - share[0]) / 2, (1 - share[1]) / 2
    return x, y, 1 - x, 1 - y


def _unit(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip at 0 and divide by the largest value; a map without heat stays 0."""
    positive = np.maximum(np.nan_to_num(grid), 0).astype(np.float32)
    largest = positive.max()
    return positive / largest if largest > 0 else positive


def _blend(image: Image.Image, heatmap: NDArray[np.float32], opacity: float) -> Image.Image:
    from PIL import Image

    heat = heatmap[..., None]  # [H, W, 1]
    position = np.linspace(0, 1, len(_COLOURS))
    colour = np.concatenate([np.interp(heat, position, _COLOURS[:, c]) for c in range(3)], axis=2)
    pixels = np.asarray(image, np.float32)
    mixed = pixels * (1 - opacity * heat) + colour * (opacity * heat)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
