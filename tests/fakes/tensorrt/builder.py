"""The builder, its configuration, and what tests read of a build."""

from dataclasses import dataclass, field
from typing import Any

from .api import Value
from .engine import plan_bytes


@dataclass(kw_only=True)
class BuildRecord:
    """What the builder was asked for; flags and features by name.

    ``profiles`` are {input: (smallest, optimal, largest shape)}.
    """

    network: Any = None
    network_flags: int | None = None
    config: Any = None
    flags: list = field(default_factory=list)
    cleared_flags: list = field(default_factory=list)
    memory_pools: dict = field(default_factory=dict)
    compute_capabilities: dict = field(default_factory=dict)
    preview_features: dict = field(default_factory=dict)
    profiles: list = field(default_factory=list)

    @property
    def layers(self):
        """The network's layers by name."""
        found = map(self.network.get_layer, range(self.network.num_layers))
        return {layer.name: layer for layer in found}


class ILogger:
    def __init__(self):
        pass

    def log(self, severity, msg):
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self):
        pass


class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        assert len(min) == len(opt) == len(max)
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data):
        self._data = data

    def serialize(self):
        return self._data + b"+"


class IBuilderConfig:
    def __init__(self):
        self._record = BuildRecord(config=self)
        self._timing_cache = None

    def set_flag(self, flag):
        self._record.flags.append(flag.name)

    def clear_flag(self, flag):
        self._record.cleared_flags.append(flag.name)

    def set_memory_pool_limit(self, pool, pool_size):
        self._record.memory_pools[pool.name] = pool_size

    def add_optimization_profile(self, profile):
        self._record.profiles.append(profile._shapes)
        return len(self._record.profiles) - 1

    def set_compute_capability(self, compute_capability, index):
        self._record.compute_capabilities[index] = compute_capability.name
        return index < self.num_compute_capabilities

    def set_preview_feature(self, feature, enable):
        self._record.preview_features[feature.name] = enable

    def create_timing_cache(self, serialized_timing_cache):
        return self._trt.ITimingCache(bytes(serialized_timing_cache))

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
        assert isinstance(logger, self._trt.ILogger)
        self._logger = logger

    def create_network(self, flags=0):
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self):
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self):
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        config._record.network, config._record.network_flags = network, network._flags
        self._trt.built.append(config._record)
        monitor = config.progress_monitor if hasattr(config, "progress_monitor") else None
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
        if self._trt.build_fails:
            self._logger.log(Value("ERROR", 1), "could not find any implementation")
            return None
        return plan_bytes()
