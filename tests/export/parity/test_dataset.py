"""A golden image, however it is encoded, decodes to the pixels it was kept for."""

import io

import numpy as np
import pytest

from hybrid_export.parity import dataset
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import Preprocess
from hybrid_train.phantom import generate


@pytest.mark.parametrize("crop", ["none", "breast"])
@pytest.mark.parametrize("resize", ["stretch", "fit"])
def test_large_originals_are_kept_in_a_form_that_loads_to_the_same_pixels(
    crop, resize, monkeypatch
):
    monkeypatch.setattr(dataset, "_GOLDEN_BYTES", 10)
    preprocess = Preprocess(height=48, width=64, crop=crop, resize=resize)
    for row in generate(1, seed=1, size=256):
        buffer = io.BytesIO()
        row["image"].save(buffer, format="BMP")
        pixels = load_pixels(buffer.getvalue(), preprocess)
        kept = dataset._golden_encoding(buffer.getvalue(), pixels, preprocess)
        assert len(kept) < len(buffer.getvalue())
        assert np.array_equal(load_pixels(kept, preprocess), pixels)
