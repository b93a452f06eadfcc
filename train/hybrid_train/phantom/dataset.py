"""Write phantoms as parquet files with the hub dataset's schema, and draw a preview."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hybrid_rt.errors import UsageError
from hybrid_rt.files import atomic_path
from hybrid_train.data.tables import quiet_datasets
from hybrid_train.phantom.generate import generate


def write_parquet(
    folder: str | Path, *, patients: int, seed: int, shards: int = 1, **options: Any
) -> list[Path]:
    """Write parquet files with the hub dataset's schema, images as PNG; return their paths."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "patient_id": datasets.Value("int64"),
            "laterality": datasets.Value("string"),
            "view": datasets.Value("string"),
            "age": datasets.Value("float64"),
            "cancer": datasets.Value("int64"),
            "invasive": datasets.Value("int64"),
            "implant": datasets.Value("int64"),
            "BIRADS": datasets.Value("float64"),
            "density": datasets.Value("string"),
            "text": datasets.Value("string"),
            "text2": datasets.Value("string"),
        }
    )
    if not 1 <= shards <= patients:
        raise UsageError(
            f"patients={patients}, shards={shards}; expected 1 or more, and 1 to that number"
        )
    bounds = np.linspace(0, patients, shards + 1).astype(int)
    files = []
    for i in range(shards):
        start, stop = int(bounds[i]), int(bounds[i + 1])
        rows = list(generate(stop - start, seed=seed, start=start, **options))
        table = datasets.Dataset.from_list(rows, features=features)
        path = Path(folder) / f"train-{i:05}-of-{shards:05}.parquet"
        with atomic_path(path) as temporary, quiet_datasets():
            table.to_parquet(str(temporary))
        files.append(path)
    return files


def preview(rows: Sequence[dict[str, Any]], *, columns: int = 8, side: int = 200) -> Image.Image:
    """Return a page of images; a red dot marks a positive one."""
    from PIL import ImageDraw

    lines = -(-len(rows) // columns)
    page = Image.new("RGB", (columns * side, lines * side))
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        x, y = i % columns * side, i // columns * side
        page.paste(row["image"].convert("RGB").resize((side - 2, side - 2)), (x, y))
        if row["cancer"]:
            draw.ellipse((x + 4, y + side - 14, x + 12, y + side - 6), fill="#ff4040")
    return page
