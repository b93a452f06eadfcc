"""TensorRT modules without TensorRT: the classes of a real version, with a toy engine behind them.

What exists, how it is called and what can be set comes from ``assets/tensorrt_api.json``, recorded
from NVIDIA's bindings: using anything that a version lacks, or calling it with other parameters,
raises as the real module does. ``fake_tensorrt("8.6", cuda)`` is a module object; version is a key
of that file. The toy engine returns each image's mean.
"""

import functools
import inspect
import json
import threading
import time
import types
from pathlib import Path

import numpy as np

API = json.loads((Path(__file__).parents[1] / "assets" / "tensorrt_api.json").read_text())
VERSIONS = ["8.6", "10.3", "10.16", "11.4", "rtx"]

#: What the toy engine computes, by output name: features are the image's mean plus the index.
OUTPUTS = {"probabilities": (2,), "logits": (2,), "features": (16,)}


def expected(images):
    """The toy engine's outputs for uint8 ``[b,h,w,3]``."""
    means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64)
    rows = {n: means[:, None] + np.arange(np.prod(s)) for n, s in OUTPUTS.items()}
    return {n: r.reshape(-1, *OUTPUTS[n]).astype(np.float32) for n, r in rows.items()}


def checked_class(name, recorded, implementation=object):
    """A class that has what the recorded one has, and does what ``implementation`` does."""

    def wrap(method, overloads):
        signatures = [
            inspect.Signature(
                [
                    inspect.Parameter(
                        parameter,
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        default=None if optional else inspect.Parameter.empty,
                    )
                    for parameter, optional in overload
                ]
            )
            for overload in overloads
        ]

        @functools.wraps(method)
        def call(*args, **kwargs):
            errors = []
            for signature in signatures:
                try:
                    bound = signature.bind(*args, **kwargs)
                except TypeError as err:
                    errors.append(str(err))
                else:
                    return method(*bound.args, **bound.kwargs)
            raise TypeError(f"{name}.{method.__name__}: {errors}")

        return call

    def missing(member):
        def method(self, *args, **kwargs):
            raise NotImplementedError(f"the fake {name} has no {member}")

        return method

    members = {}
    settable = set()
    for member, facts in recorded.items():
        own = getattr(implementation, member, None)
        if "property" in facts:
            if facts["property"] == "settable":
                settable.add(member)
            if isinstance(own, property):
                members[member] = own
        elif member.startswith("__") and own in (None, getattr(object, member, None)):
            continue
        elif own is None:
            members[member] = missing(member)
        else:
            members[member] = wrap(own, facts["overloads"]) if facts["overloads"] else own

    properties = {m for m, facts in recorded.items() if "property" in facts}

    class Checked(implementation):
        def __setattr__(self, attribute, value):
            if not attribute.startswith("_") and attribute not in settable:
                raise AttributeError(f"{name} has no settable attribute {attribute!r}")
            object.__setattr__(self, attribute, value)

        def __getattribute__(self, attribute):
            public = not attribute.startswith("_")
            if public and type(self).__name__ == name and attribute not in recorded:
                raise AttributeError(f"{name} has no attribute {attribute!r}")
            if public and attribute in properties and attribute not in members:
                own = object.__getattribute__(self, "__dict__")
                return own.get(attribute, own.get("_" + attribute))
            return object.__getattribute__(self, attribute)

    for member, value in members.items():
        setattr(Checked, member, value)
    Checked.__name__ = Checked.__qualname__ = name
    return Checked


class _Value(int):
    """A member of one of TensorRT's enumerations."""

    def __new__(cls, name, value):
        self = int.__new__(cls, value)
        self.name = name
        return self

    def __hash__(self):
        return hash((int(self), self.name))


def _enumeration(name, values):
    members = {k: _Value(k, v) for k, v in values.items()}
    return type(name, (), {"__members__": members, **members})


def fake_tensorrt(version, cuda=None, *, parse=None, delay=0.0):
    """A module like that TensorRT. ``cuda`` is a FakeCuda; ``parse`` fills networks from files.

    The module also has ``engines``, the toy engines made so far, and ``refuse_contexts``, after how
    many contexts an engine has no more; ``built``, the networks and configurations of builds.
    """
    recorded = API[version]
    module = types.ModuleType("tensorrt_rtx" if version == "rtx" else "tensorrt")
    module.__version__ = recorded["version"]
    module.engines, module.built, module.refuse_contexts = [], [], None
    for name, values in recorded["enumerations"].items():
        setattr(module, name, _enumeration(name, values))
    implementations = _implementations(module, cuda, parse, delay)
    for name, members in recorded["classes"].items():
        plain = implementations["ILayer"] if name.endswith("Layer") else object
        base = implementations.get(name, plain)
        setattr(module, name, checked_class(name, members, base))
    return module


def _implementations(trt, cuda, parse, delay):
    class ILogger:
        def __init__(self):
            pass

        def log(self, severity, msg):
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self):
            pass

    class Dims(tuple):
        pass

    class ITensor:
        def __init__(self, name, dtype, shape):
            self.__dict__.update(_name=name, _dtype=dtype, _shape=Dims(shape))
            self.__dict__["_is_shape_tensor"] = False

    class ILayer:
        def __init__(self, kind, name, inputs, outputs, **facts):
            self._kind, self._layer_name, self._ins, self._outs = kind, name, inputs, outputs
            self._told = {}
            self.__dict__.update({f"_{key}": value for key, value in facts.items()})

        name = property(lambda self: self._layer_name)
        type = property(lambda self: trt.LayerType.__members__[self._kind])
        num_inputs = property(lambda self: len(self._ins))
        num_outputs = property(lambda self: len(self._outs))

        def get_input(self, index):
            return self._ins[index]

        def get_output(self, index):
            return self._outs[index]

        def set_output_type(self, index, dtype):
            self._told[index] = dtype

        def output_type_is_set(self, index):
            return index in self._told

        def get_output_type(self, index):
            return self._told[index]

    class INetworkDefinition:
        def __init__(self, flags):
            self._network_flags = flags
            self._layers, self._inputs = [], []

        num_layers = property(lambda self: len(self._layers))
        num_inputs = property(lambda self: len(self._inputs))

        def get_layer(self, index):
            return self._layers[index]

        def get_input(self, index):
            return self._inputs[index]

    class ParserError:
        def desc(self):
            return "no importer registered for op: Weird"

        def node(self):
            return 7

        def node_name(self):
            return "/vit/weird"

        def node_operator(self):
            return "Weird"

    class OnnxParser:
        def __init__(self, network, logger):
            assert isinstance(logger, trt.ILogger)
            self._network, self._logger = network, logger
            self._failed = False

        num_errors = property(lambda self: int(self._failed))

        def parse_from_file(self, model):
            assert isinstance(model, str)
            self._logger.log(_Value("INFO", 3), f"Opset version:    {opset_of(model)}")
            self._failed = not parse(trt, self._network, model)
            return not self._failed

        def get_error(self, index):
            return trt.ParserError()

    class IOptimizationProfile:
        def __init__(self):
            self._ranges = {}

        def set_shape(self, input, min, opt, max):
            assert len(min) == len(opt) == len(max)
            assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
            self._ranges[input] = (min, opt, max)

    class ITimingCache:
        def __init__(self, data):
            self._data = data

        def serialize(self):
            return self._data + b"+"

    class IBuilderConfig:
        def __init__(self):
            self._set_flags, self._cleared, self._profiles = [], [], []
            self._pools, self._targets, self._preview = {}, {}, {}
            self._timing_cache = None

        def set_flag(self, flag):
            self._set_flags.append(flag.name)

        def clear_flag(self, flag):
            self._cleared.append(flag.name)

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool.name] = pool_size

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def set_compute_capability(self, compute_capability, index):
            self._targets[index] = compute_capability.name
            return index < self.num_compute_capabilities

        def set_preview_feature(self, feature, enable):
            self._preview[feature.name] = enable

        def create_timing_cache(self, serialized_timing_cache):
            return trt.ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            if cache._data.startswith(b"other GPU"):
                return False
            self._timing_cache = cache
            return True

        def get_timing_cache(self):
            return self._timing_cache

    class Builder:
        def __init__(self, logger):
            assert isinstance(logger, trt.ILogger)
            self._logger = logger

        def create_network(self, flags=0):
            return trt.INetworkDefinition(flags)

        def create_builder_config(self):
            return trt.IBuilderConfig()

        def create_optimization_profile(self):
            return trt.IOptimizationProfile()

        def build_serialized_network(self, network, config):
            trt.built.append((network, config))
            monitor = config.progress_monitor if hasattr(config, "progress_monitor") else None
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                assert monitor.step_complete("Building", 0)
                monitor.phase_finish("Building")
            if getattr(trt, "build_fails", False):
                self._logger.log(_Value("ERROR", 1), "could not find any implementation")
                return None
            return plan_bytes(trt)

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            data = bytes(serialized_engine)
            if not data.startswith(b"plan "):
                self._logger.log(_Value("ERROR", 1), "magic tag does not match")
                return None
            engine = trt.ICudaEngine(json.loads(data[5:]))
            trt.engines.append(engine)
            return engine

        def get_engine_validity(self, buffer):
            whole = bytes(buffer).startswith(b"plan ")
            members = trt.EngineValidity.__members__
            return (members["VALID"], 0) if whole else (members["INVALID"], 32)

    class ICudaEngine:
        def __init__(self, facts):
            self._facts = facts
            self._contexts = []
            self._num_io_tensors = 1 + len(OUTPUTS)
            self._num_aux_streams = 1
            self._num_optimization_profiles = len(facts["profiles"])
            self._device_memory_size = self._device_memory_size_v2 = 1000

        def get_tensor_name(self, index):
            return [*OUTPUTS, "images"][index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name == "images" else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return trt.DataType.UINT8 if name == "images" else trt.DataType.FLOAT

        def get_tensor_shape(self, name):
            batch = self._facts.get("batch", -1)
            size = self._facts["size"]
            return Dims((batch, *((size, size, 3) if name == "images" else OUTPUTS[name])))

        def get_tensor_profile_shape(self, name, profile_index):
            low, high = self._facts["profiles"][profile_index]
            row = tuple(self.get_tensor_shape(name))[1:]
            return [Dims((low, *row)), Dims((high, *row)), Dims((high, *row))]

        def create_execution_context(self, config=None):
            cuda.need_context()
            if trt.refuse_contexts is not None and len(self._contexts) >= trt.refuse_contexts:
                return None
            context = trt.IExecutionContext(self, config)
            self._contexts.append(context)
            return context

        def create_runtime_config(self):
            return trt.IRuntimeConfig()

        def create_engine_inspector(self):
            return trt.EngineInspector()

    class EngineInspector:
        def get_engine_information(self, format):
            assert format.name == "JSON"
            half = [{"Name": "features", "Format/Datatype": "Row major linear FP16 format"}]
            full = [{"Name": "logits", "Format/Datatype": "Float"}]
            conv = {"Outputs": half, "Weights": {"Type": "Half", "Count": 768}}
            return json.dumps({"Layers": [conv, {"Outputs": full}, {"Outputs": half}]})

    class IRuntimeCache:
        def __init__(self):
            self._loaded = None

        def deserialize(self, data):
            self._loaded = bytes(data)

        def serialize(self):
            return b"kernels"

    class IRuntimeConfig:
        def __init__(self):
            self._cache = None

        def create_runtime_cache(self):
            return trt.IRuntimeCache()

        def set_runtime_cache(self, cache):
            self._cache = cache
            return True

    class IExecutionContext:
        def __init__(self, engine, config):
            self._engine_, self._config = engine, config
            self._addresses, self._batch, self._aux = {}, None, None
            self._profile = None if engine._contexts else 0
            self._settled = False
            self._changes = 0
            self._users = threading.Semaphore(1)

        def set_input_shape(self, name, shape):
            assert self._profile is not None or "batch" in self._engine_._facts, "no profile chosen"
            low, high = self._engine_._facts["profiles"][self._profile or 0]
            size = self._engine_._facts["size"]
            assert name == "images"
            if not low <= shape[0] <= high or tuple(shape[1:]) != (size, size, 3):
                return False
            self._settled = self._settled and self._batch == shape[0]
            self._changes += self._batch != shape[0]
            self._batch = shape[0]
            return True

        def set_tensor_address(self, name, memory):
            assert isinstance(memory, int)
            self._addresses[name] = memory
            return True

        def set_optimization_profile_async(self, profile_index, stream_handle):
            assert stream_handle in cuda.live["streams"]
            self._profile = profile_index
            return profile_index < len(self._engine_._facts["profiles"])

        def set_aux_streams(self, aux_streams):
            assert all(handle in cuda.live["streams"] for handle in aux_streams)
            self._aux = list(aux_streams)

        def execute_async_v3(self, stream_handle):
            cuda.need_context()
            assert stream_handle not in (self._aux or [])
            recording = cuda.live["streams"][stream_handle].recorded is not None
            assert self._settled or not recording, "recorded before a run with that shape"
            self._settled = True
            if not self._users.acquire(blocking=False):
                raise AssertionError("two threads in one execution context")
            try:
                changes = self._changes
                batch, size = self._batch, self._engine_._facts["size"]
                row = size * size * 3
                images = cuda.array_at(self._addresses["images"], batch * row)
                targets = {
                    n: cuda.array_at(self._addresses[n], batch * int(np.prod(s)) * 4)
                    for n, s in OUTPUTS.items()
                }

                def work():
                    assert self._changes == changes, "a graph outlived a change of its context"
                    time.sleep(delay)
                    values = expected(images.reshape(batch, size, size, 3))
                    for name, target in targets.items():
                        target[:] = values[name].reshape(-1).view(np.uint8)

                cuda.enqueue(stream_handle, work)
            finally:
                self._users.release()
            return True

    return {name: value for name, value in locals().items() if isinstance(value, type)}


def plan_bytes(trt, size=32, profiles=((1, 8),), **facts):
    """A plan that the toy engine takes."""
    return b"plan " + json.dumps({"size": size, "profiles": profiles, **facts}).encode()


def opset_of(path):
    """The opset of an ONNX file; 0 where there is none."""
    import onnx

    if not Path(path).exists():
        return 0
    return next(o.version for o in onnx.load(path).opset_import if not o.domain)


def parse_onnx(trt, network, path):
    """Fill a fake network as TensorRT's parser does; weakly typed ones report FP32 throughout.

    All layers are plain ILayer objects, as the real list holds them; callers set their class.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    weak = not network._network_flags & 2 and hasattr(trt.BuilderFlag, "FP16")
    kinds = {"Cast": "CAST", "Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY"}
    kinds |= {"Transpose": "SHUFFLE", "Mul": "ELEMENTWISE", "Relu": "ACTIVATION"}
    kinds |= {"ReduceMean": "REDUCE", "LayerNormalization": "NORMALIZATION"}
    kinds |= {"Softmax": "SOFTMAX", "DequantizeLinear": "DEQUANTIZE"}
    kinds |= {"QuantizeLinear": "QUANTIZE"}
    types_ = {1: "FLOAT", 2: "UINT8", 3: "INT8", 7: "INT64", 10: "HALF", 16: "BF16"}
    members = trt.DataType.__members__
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = {v.name: v.type.tensor_type for v in [*inferred.value_info, *inferred.output]}
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tensors = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or -1 for d in kind.shape.dim]
        tensors[value.name] = trt.ITensor(value.name, members[types_[kind.elem_type]], shape)
        network._inputs.append(tensors[value.name])

    def constant(name):
        if name not in tensors:
            dtype = members[types_[onnx.helper.np_dtype_to_tensor_dtype(arrays[name].dtype)]]
            out = trt.ITensor(f"{name}_output", dtype, arrays[name].shape)
            weights = types.SimpleNamespace(dtype=dtype, size=arrays[name].size)
            layer = trt.ILayer("CONSTANT", name, [], [out], weights=weights)
            network._layers.append(layer)
            tensors[name] = out
        return tensors[name]

    for node in model.graph.node:
        if node.op_type not in kinds:
            return False
        kind = kinds[node.op_type]
        dtype = members[types_[values[node.output[0]].elem_type]]
        reported = members["FLOAT"] if weak and dtype.name in ("HALF", "BF16") else dtype
        out = trt.ITensor(node.output[0], reported, [])
        facts, names = {}, list(node.input)
        if kind == "CONVOLUTION" and all(n in arrays for n in names[1:]):
            weights = [
                types.SimpleNamespace(
                    dtype=members[types_[onnx.helper.np_dtype_to_tensor_dtype(arrays[n].dtype)]],
                    size=arrays[n].size,
                )
                for n in names[1:]
            ]
            facts = {"kernel": weights[0], "bias": weights[1] if len(weights) > 1 else None}
            names = names[:1]
        if kind == "CAST":
            facts = {"to_type": dtype}
        if kind == "REDUCE":
            names = names[:1]
        inputs = [constant(name) for name in names]
        network._layers.append(trt.ILayer(kind, node.name or kind, inputs, [out], **facts))
        tensors[node.output[0]] = out
    return True
