"""The runtime and its engines. The toy engine returns each image's mean."""

import json
from dataclasses import dataclass, field

import numpy as np

from .api import Value
from .network import Dims

#: The toy engine's outputs and their shapes: an element is the image's mean plus its index.
OUTPUTS = {"probabilities": (2,), "logits": (2,), "features": (16,)}


def expected(images):
    """Return the toy engine's outputs for uint8 ``[b,h,w,3]``."""
    means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64)
    rows = {n: means[:, None] + np.arange(np.prod(s)) for n, s in OUTPUTS.items()}
    return {n: r.reshape(-1, *OUTPUTS[n]).astype(np.float32) for n, r in rows.items()}


def plan_bytes(size=32, profiles=((1, 8),), **facts):
    """Return a plan that the toy engine takes."""
    return b"plan " + json.dumps({"size": size, "profiles": profiles, **facts}).encode()


@dataclass
class EngineRecord:
    """One deserialized engine: a ContextRecord for each of its execution contexts."""

    contexts: list = field(default_factory=list)


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        data = bytes(serialized_engine)
        if not data.startswith(b"plan "):
            self._logger.log(Value("ERROR", 1), "magic tag does not match")
            return None
        engine = self._trt.ICudaEngine(json.loads(data[5:]))
        self._trt.engines.append(engine._record)
        return engine

    def get_engine_validity(self, buffer):
        complete = bytes(buffer).startswith(b"plan ")
        members = self._trt.EngineValidity.__members__
        return (members["VALID"], 0) if complete else (members["INVALID"], 32)


class ICudaEngine:
    def __init__(self, facts):
        self._facts = facts
        self._record = EngineRecord()
        self._num_io_tensors = 1 + len(OUTPUTS)
        self._num_aux_streams = 1
        self._num_optimization_profiles = len(facts["profiles"])
        self._device_memory_size = self._device_memory_size_v2 = 1000

    def get_tensor_name(self, index):
        return [*OUTPUTS, "images"][index]

    def get_tensor_mode(self, name):
        modes = self._trt.TensorIOMode
        return modes.INPUT if name == "images" else modes.OUTPUT

    def get_tensor_dtype(self, name):
        return self._trt.DataType.UINT8 if name == "images" else self._trt.DataType.FLOAT

    def get_tensor_shape(self, name):
        batch = self._facts.get("batch", -1)
        size = self._facts["size"]
        return Dims((batch, *((size, size, 3) if name == "images" else OUTPUTS[name])))

    def get_tensor_profile_shape(self, name, profile_index):
        low, high = self._facts["profiles"][profile_index]
        row = tuple(self.get_tensor_shape(name))[1:]
        return [Dims((low, *row)), Dims((high, *row)), Dims((high, *row))]

    def create_execution_context(self, config=None):
        self._trt.cuda.need_context()
        most = self._trt.refuse_contexts
        if most is not None and len(self._record.contexts) >= most:
            return None
        context = self._trt.IExecutionContext(self, config)
        self._record.contexts.append(context._record)
        return context

    def create_runtime_config(self):
        return self._trt.IRuntimeConfig()

    def create_engine_inspector(self):
        return self._trt.EngineInspector()


class EngineInspector:
    def get_engine_information(self, format):
        assert format.name == "JSON"
        half = [{"Name": "features", "Format/Datatype": "Row major linear FP16 format"}]
        full = [{"Name": "logits", "Format/Datatype": "Float"}]
        conv = {"Outputs": half, "Weights": {"Type": "Half", "Count": 768}}
        return json.dumps({"Layers": [conv, {"Outputs": full}, {"Outputs": half}]})
