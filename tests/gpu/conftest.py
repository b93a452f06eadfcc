"""Plans for this machine's own GPU. Without one every test here is skipped, and says why."""

import pytest

from factories.gpu_bundle import export_hybrid, why_not
from factories.tiny_hybrid import make_model


def pytest_collection_modifyitems(items):
    reason = why_not()
    for item in items:
        if item.get_closest_marker("gpu") is not None and reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny_model():
    return make_model()


@pytest.fixture(scope="session")
def bundle_folder(tiny_model, tmp_path_factory):
    """The tiny hybrid's bundle."""
    return export_hybrid(tmp_path_factory.mktemp("gpu"), *tiny_model)
