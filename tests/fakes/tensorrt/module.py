"""The fake module: the recorded classes of one version, bound to the toy implementations."""

import types

from . import builder, engine, execution, network, parser
from .api import API, checked_class, enumeration

#: The implementations, by the names of TensorRT's classes.
IMPLEMENTATIONS = {
    cls.__name__: cls
    for cls in (
        builder.Builder,
        builder.IBuilderConfig,
        builder.ILogger,
        builder.IOptimizationProfile,
        builder.IProgressMonitor,
        builder.ITimingCache,
        engine.EngineInspector,
        engine.ICudaEngine,
        engine.Runtime,
        execution.IExecutionContext,
        execution.IRuntimeCache,
        execution.IRuntimeConfig,
        network.Dims,
        network.ILayer,
        network.INetworkDefinition,
        network.ITensor,
        parser.OnnxParser,
        parser.ParserError,
    )
}


class FakeTensorRT(types.ModuleType):
    """A module like one TensorRT, and what tests set and read.

    ``engines`` and ``built`` list an EngineRecord and a BuildRecord for each engine and build.
    ``refuse_contexts`` is the number of contexts an engine has at most; ``build_fails`` makes
    builds return nothing.
    """

    def __init__(self, name, cuda, parse, delay):
        super().__init__(name)
        self.cuda, self.parse, self.delay = cuda, parse, delay
        self.engines, self.built = [], []
        self.refuse_contexts, self.build_fails = None, False


def fake_tensorrt(version, cuda=None, *, parse=None, delay=0.0):
    """Return a module like that TensorRT.

    Args:
        version: a key of ``API``.
        cuda: a FakeCuda, needed to run an engine.
        parse: fills a network from a file, as ``parse_onnx`` does.
        delay: seconds that one inference takes.
    """
    recorded = API[version]
    name = "tensorrt_rtx" if version == "rtx" else "tensorrt"
    trt = FakeTensorRT(name, cuda, parse, delay)
    trt.__version__ = recorded["version"]
    for name, values in recorded["enumerations"].items():
        setattr(trt, name, enumeration(name, values))
    for name, members in recorded["classes"].items():
        plain = network.ILayer if name.endswith("Layer") else object
        base = IMPLEMENTATIONS.get(name, plain)
        setattr(trt, name, checked_class(name, members, base, trt))
    return trt
