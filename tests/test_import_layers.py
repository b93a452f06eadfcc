"""Imports run one way: down the layers below, without cycles and without private names.

Every import counts, also in a function, under TYPE_CHECKING, and a module named in a string that
is imported or started later.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"hybrid_rt": ROOT, "hybrid_export": ROOT / "export", "hybrid_train": ROOT / "train"}

#: What a package may import of the others.
MAY_IMPORT = {
    "hybrid_rt": (),
    "hybrid_train": ("hybrid_rt",),
    "hybrid_export": ("hybrid_rt", "hybrid_train"),
}

#: Each package from top to bottom. A line is a layer: a module, or a package and all in it that no
#: longer name claims. A layer imports only itself and the layers below it.
LAYERS = {
    "hybrid_rt": """
        hybrid_rt.__main__
        hybrid_rt.cli
        hybrid_rt
        hybrid_rt.serving
        hybrid_rt.engine
        hybrid_rt.environment
        hybrid_rt.selftest
        hybrid_rt.opening
        hybrid_rt.selection
        hybrid_rt.results
        hybrid_rt.streaming
        hybrid_rt.uncertainty
        hybrid_rt.backends.registry
        hybrid_rt.testing
        hybrid_rt.backends
        hybrid_rt.tensorrt.rebuild
        hybrid_rt.tensorrt.builder
        hybrid_rt.tensorrt
        hybrid_rt.cpu
        hybrid_rt.bundle
        hybrid_rt.images
        hybrid_rt.cuda
        hybrid_rt.spec
        hybrid_rt.serialization
        hybrid_rt.progress
        hybrid_rt.processes
        hybrid_rt.files
        hybrid_rt.errors
    """,
    "hybrid_export": """
        hybrid_export.__main__
        hybrid_export.demo
        hybrid_export.cli
        hybrid_export.localization
        hybrid_export
        hybrid_export.pipeline
        hybrid_export.bundle
        hybrid_export.artifacts
        hybrid_export.state
        hybrid_export.options
        hybrid_export.parity
        hybrid_export.precision
        hybrid_export.onnx_graph
        hybrid_export.sessions
        hybrid_export.network
        hybrid_export.model_card
    """,
    "hybrid_train": """
        hybrid_train.__main__
        hybrid_train.cli
        hybrid_train.arguments
        hybrid_train
        hybrid_train.run
        hybrid_train.finalize
        hybrid_train.report
        hybrid_train.posthoc
        hybrid_train.loop
        hybrid_train.evaluation
        hybrid_train.model
        hybrid_train.config
        hybrid_train.data.sources
        hybrid_train.phantom
        hybrid_train.data
        hybrid_train.provenance
    """,
}

BUILDER = "hybrid_rt.tensorrt.builder"

#: Times the libraries that are installed, PyTorch too, each in a child process.
PROBE = "hybrid_rt.cpu.workload"


@dataclass(frozen=True)
class Import:
    """One import of ``module``; ``name`` is empty for the module itself, bound to ``local``."""

    module: str
    name: str
    local: str
    line: int
    in_function: bool
    in_string: bool = False


def read_sources() -> dict[str, str]:
    """The source of every module, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports_of(source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """Every import of one module."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if isinstance(child, ast.Import):
                for alias in child.names:
                    local = alias.asname or alias.name
                    yield Import(alias.name, "", local, child.lineno, inside)
            elif isinstance(child, ast.ImportFrom):
                assert child.module, "relative imports are not used here"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    module, name = (whole, "") if whole in modules else (child.module, alias.name)
                    yield Import(module, name, alias.asname or alias.name, child.lineno, inside)
            elif isinstance(child, ast.Constant) and child.value in modules:
                if "." in child.value:  # without a dot it names the distribution or a logger
                    yield Import(child.value, "", "", child.lineno, inside, in_string=True)
            else:
                yield from walk(child, inside)

    yield from walk(parsed(source), False)


@cache
def parsed(source: str) -> ast.Module:
    """The syntax tree of a source."""
    return ast.parse(source)


def layer_of(module: str) -> int | None:
    """The position in its package's table, counted from the top."""
    names = LAYERS[module.partition(".")[0]].split()
    top = module.partition(".")[0]
    while module not in names:
        module = module.rpartition(".")[0]
        if module in ("", top):  # the package itself claims no module in it
            return None
    return names.index(module)


def problems_of(sources: Mapping[str, str]) -> list[str]:
    """All that breaks a rule, one line each."""
    found = [f"{module} is in no layer" for module in sources if layer_of(module) is None]
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        imports = list(imports_of(source, sources))
        package = module.partition(".")[0]
        graph[module] = {i.module for i in imports if i.module in sources} - {module}
        for i in imports:
            where = f"{module}:{i.line} imports {i.module}"
            other = i.module.partition(".")[0]
            probed = module == PROBE and i.in_function
            if package == "hybrid_rt" and other in ("torch", "torchvision", "timm") and not probed:
                found.append(f"{where}: the runtime has no PyTorch")
            if other not in LAYERS or i.in_string:
                continue
            if other != package and other not in MAY_IMPORT[package]:
                found.append(f"{where}: {package} does not import {other}")
            above, below = layer_of(module), layer_of(i.module)
            if other == package and above is not None and below is not None and above > below:
                found.append(f"{where}, which is above it")
            if is_private(i.name):
                found.append(f"{where}.{i.name}, a private name")
            outside = package == "hybrid_rt" and not module.startswith(BUILDER)
            if outside and i.module.startswith(BUILDER) and not i.in_function:
                found.append(f"{where} at module level: prediction loads no builder")
        found += private_attributes(module, source, imports)
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles_of(graph)]


def private_attributes(module: str, source: str, imports: list[Import]) -> Iterator[str]:
    """``other._name``, where ``other`` is a module of ours."""
    ours = {i.local for i in imports if not i.name and i.module.partition(".")[0] in LAYERS}
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in ours:
                yield f"{module}:{node.lineno} reads {owner}.{node.attr}, a private name"


def is_private(name: str) -> bool:
    """Whether a name is private: one leading underscore, or two and none at the end."""
    return name.startswith("_") and not name.endswith("__")


def cycles_of(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """One cycle of each strongly connected group of modules."""
    state: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        state[module] = 1
        path.append(module)
        for other in sorted(graph[module]):
            if state.get(other) == 1:
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found


def test_imports_run_down_the_layers():
    problems = problems_of(read_sources())
    assert not problems, "\n".join(problems)


def test_every_layer_exists():
    planned = {"hybrid_rt.serving"}
    names = {name for layers in LAYERS.values() for name in layers.split()}
    assert names - set(read_sources()) <= planned


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("hybrid_rt.files", "from hybrid_rt import engine", "hybrid_rt.engine, which is above it"),
        (
            "hybrid_rt.images.bit_depth",
            "def f():\n    from hybrid_rt.images.load import decode",
            "cycle: hybrid_rt.images.bit_depth -> hybrid_rt.images.load",
        ),
        (
            "hybrid_train.data.samples",
            "if TYPE_CHECKING:\n    from hybrid_train.run import fit",
            "hybrid_train.run, which is above it",
        ),
        (
            "hybrid_rt.bundle.manifest",
            "from hybrid_rt.serialization import _kind",
            "hybrid_rt.serialization._kind, a private name",
        ),
        (
            "hybrid_rt.engine",
            "import hybrid_rt.cuda.driver as gpu\ngpu._device",
            "reads gpu._device, a private name",
        ),
        (
            "hybrid_rt.tensorrt.rebuild",
            "from hybrid_rt.tensorrt.builder import build_engine",
            "at module level: prediction loads no builder",
        ),
        ("hybrid_rt.spec", "def f():\n    import hybrid_train", "does not import hybrid_train"),
        ("hybrid_rt.engine", "import torch.nn", "the runtime has no PyTorch"),
        ("hybrid_train.run", "import hybrid_export.cli", "does not import hybrid_export"),
        (
            "hybrid_rt.backends.base",
            'NAME = "hybrid_rt.backends.registry"',
            "hybrid_rt.backends.base -> hybrid_rt.backends.registry",
        ),
        ("hybrid_rt.newcomer", "", "hybrid_rt.newcomer is in no layer"),
    ],
)
def test_a_broken_rule_is_found(module, line, expected):
    sources = read_sources()
    sources[module] = f"{sources.get(module, '')}\n{line}\n"
    assert any(expected in problem for problem in problems_of(sources)), problems_of(sources)
