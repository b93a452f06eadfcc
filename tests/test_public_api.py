"""The public interface: ``__all__`` of each package exists, is complete and is documented."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [
    "hybrid_rt",
    "hybrid_rt.images",
    "hybrid_rt.testing",
    "hybrid_export",
    "hybrid_train",
    "hybrid_train.phantom",
]

#: Modules that ``import hybrid_rt`` must not load: they are slow, large or optional.
HEAVY = ("onnxruntime", "openvino", "tensorrt", "torch", "pydicom", "pandas", "tqdm")


def public_module(name):
    """The module; skips the packages that need PyTorch if it is not installed."""
    if not name.startswith("hybrid_rt"):
        pytest.importorskip("torch", reason="torch not installed")
    return importlib.import_module(name)


def own_names(module):
    """Names without an underscore whose objects this package or module defines."""
    is_package = hasattr(module, "__path__")
    found = set()
    for name, value in vars(module).items():
        origin = getattr(value, "__module__", "")
        own = f"{origin}.".startswith(f"{module.__name__}.") if is_package else (
            origin == module.__name__
        )  # fmt: skip
        if own and not name.startswith("_") and not isinstance(value, ModuleType):
            found.add(name)
    return found


def documentation():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name):
    module = public_module(name)
    missing = [n for n in module.__all__ if getattr(module, n, None) is None]
    assert missing == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_all_listed(name):
    module = public_module(name)
    unlisted = own_names(module) - set(module.__all__)
    assert unlisted == set(), f"{name} defines {sorted(unlisted)}; add to __all__ or prefix with _"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    text = documentation()
    names = public_module(name).__all__
    missing = [n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", text)]
    assert missing == [], f"{name}: name {missing} in docs/ or README.md"
    assert re.search(rf"\b{re.escape(name)}\b", text), f"name {name} in docs/ or README.md"


def test_an_unlisted_name_is_found():
    module = ModuleType("example")
    module.__path__ = []
    exec("class Listed: pass\nclass Hidden: pass\n_private = Listed", vars(module))
    assert own_names(module) == {"Listed", "Hidden"}


def test_import_hybrid_rt_loads_nothing_heavy():
    code = (
        "import sys, hybrid_rt, hybrid_rt.images, hybrid_rt.testing\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
