"""The fake TensorRT: members that it refuses, as the real one, and outputs of its toy engine."""

import numpy as np
import pytest

from fakes.cuda import FakeCuda, FakeCudaError
from fakes.tensorrt import API, VERSIONS, checked_class, expected, fake_tensorrt, plan_bytes
from fakes.tensorrt.module import IMPLEMENTATIONS


@pytest.fixture
def cuda():
    cuda = FakeCuda()
    cuda.push(cuda.retain(0))
    return cuda


class Logger:
    """The messages that the fake logs."""

    def __init__(self):
        self.messages = []

    def log(self, severity, msg):
        self.messages.append((severity.name, msg))


def test_recorded_classes_refuse_missing_members():
    config = checked_class("IBuilderConfig", API["11.4"]["classes"]["IBuilderConfig"])()
    with pytest.raises(AttributeError, match="int8_calibrator"):
        config.int8_calibrator = None
    with pytest.raises(AttributeError, match="set_calibration_profile"):
        config.set_calibration_profile(None)
    assert "FP16" not in API["11.4"]["enumerations"]["BuilderFlag"]
    assert "FP16" in API["8.6"]["enumerations"]["BuilderFlag"]
    assert "STRONGLY_TYPED" not in API["8.6"]["enumerations"]["NetworkDefinitionCreationFlag"]


@pytest.mark.parametrize("version", VERSIONS)
def test_module_has_the_recorded_classes(version):
    trt = fake_tensorrt(version)
    for name, members in API[version]["classes"].items():
        methods = [m for m, f in members.items() if "overloads" in f and m[:2] != "__"]
        assert [m for m in methods if not hasattr(getattr(trt, name), m)] == [], name
    assert trt.__version__ == API[version]["version"]


def test_implementations_are_recorded_classes():
    recorded = {name for version in VERSIONS for name in API[version]["classes"]}
    assert set(IMPLEMENTATIONS) <= recorded


def test_method_with_other_parameters_is_refused():
    network = fake_tensorrt("10.3").INetworkDefinition(2)
    with pytest.raises(TypeError, match=r"INetworkDefinition\.get_layer"):
        network.get_layer(position=0)


def test_method_without_implementation_is_refused():
    network = fake_tensorrt("10.3").INetworkDefinition(2)
    with pytest.raises(NotImplementedError, match="the fake INetworkDefinition has no add_softmax"):
        network.add_softmax(None)


def test_logger_has_to_be_tensorrts():
    with pytest.raises(AssertionError):
        fake_tensorrt("10.3").Builder(Logger())


def test_runtime_refuses_junk_and_logs():
    trt, logger = fake_tensorrt("10.3"), Logger()
    assert trt.Runtime(logger).deserialize_cuda_engine(b"junk") is None
    assert logger.messages == [("ERROR", "magic tag does not match")]
    assert trt.engines == []


def make_context(trt, **facts):
    engine = trt.Runtime(Logger()).deserialize_cuda_engine(plan_bytes(**facts))
    return engine, engine.create_execution_context()


def test_engine_computes_the_mean(cuda):
    _, context = make_context(trt := fake_tensorrt("10.3", cuda))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    stream = cuda.new_stream(1)
    assert context.set_input_shape("images", images.shape)
    addresses = {"images": cuda.take("device", images.nbytes)}
    cuda.array_at(addresses["images"], images.nbytes)[:] = images.reshape(-1)
    for name, values in expected(images).items():
        addresses[name] = cuda.take("device", values.nbytes)
    for name, address in addresses.items():
        context.set_tensor_address(name, address)
    context.execute_async_v3(stream)
    for name, values in expected(images).items():
        found = cuda.array_at(addresses[name], values.nbytes).view(np.float32)
        np.testing.assert_array_equal(found, values.reshape(-1))
    assert trt.engines[0].contexts[0].profile == 0


def test_context_refuses_a_batch_outside_its_profile(cuda):
    _, context = make_context(fake_tensorrt("10.3", cuda))
    assert context.set_input_shape("images", (8, 32, 32, 3))
    assert not context.set_input_shape("images", (9, 32, 32, 3))
    assert not context.set_input_shape("images", (8, 64, 64, 3))


def test_second_context_needs_a_profile(cuda):
    trt = fake_tensorrt("10.3", cuda)
    engine, _ = make_context(trt)
    context = engine.create_execution_context()
    with pytest.raises(AssertionError, match="no profile chosen"):
        context.set_input_shape("images", (1, 32, 32, 3))
    assert [c.profile for c in trt.engines[0].contexts] == [0, None]


def test_context_needs_current_cuda_context():
    engine = fake_tensorrt("10.3", FakeCuda()).Runtime(Logger())
    engine = engine.deserialize_cuda_engine(plan_bytes())
    with pytest.raises(FakeCudaError, match="invalid device context"):
        engine.create_execution_context()
