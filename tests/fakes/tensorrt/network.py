"""Networks, their layers and their tensors."""


class Dims(tuple):
    pass


class ITensor:
    def __init__(self, name, dtype, shape):
        self.__dict__.update(_name=name, _dtype=dtype, _shape=Dims(shape))
        self.__dict__["_is_shape_tensor"] = False


class ILayer:
    def __init__(self, kind, name, inputs, outputs, **facts):
        self._kind, self._layer_name, self._ins, self._outs = kind, name, inputs, outputs
        self._output_types = {}
        self.__dict__.update({f"_{key}": value for key, value in facts.items()})

    name = property(lambda self: self._layer_name)
    type = property(lambda self: self._trt.LayerType.__members__[self._kind])
    num_inputs = property(lambda self: len(self._ins))
    num_outputs = property(lambda self: len(self._outs))

    def get_input(self, index):
        return self._ins[index]

    def get_output(self, index):
        return self._outs[index]

    def set_output_type(self, index, dtype):
        self._output_types[index] = dtype

    def output_type_is_set(self, index):
        return index in self._output_types

    def get_output_type(self, index):
        return self._output_types[index]


class INetworkDefinition:
    def __init__(self, flags):
        self._flags = flags
        self._layers, self._inputs = [], []

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))

    def get_layer(self, index):
        return self._layers[index]

    def get_input(self, index):
        return self._inputs[index]

    def add_input(self, name, dtype, shape):
        self._inputs.append(self._trt.ITensor(name, dtype, shape))
        return self._inputs[-1]

    def add_cast(self, input, to_type):
        name = f"cast{len(self._layers)}"
        out = self._trt.ITensor(f"{name}_output", self._trt.DataType.FLOAT, [])
        return self._add("CAST", name, [input], [out], to_type=to_type)

    def _add(self, kind, name, inputs, outputs, **facts):
        """Add a plain ILayer, as the real list holds them; callers set its class."""
        self._layers.append(self._trt.ILayer(kind, name, inputs, outputs, **facts))
        return self._layers[-1]
