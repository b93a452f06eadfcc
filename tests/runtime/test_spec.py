"""The spec survives its round trip and refuses what it cannot mean."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_rt.errors import HybridError, SpecError
from hybrid_rt.spec import Branch, Head, ModelSpec, OperatingPoint, Output, Preprocess


def make_spec(**changes):
    fields = {
        "classes": ("benign", "malignant"),
        "preprocess": Preprocess(height=64, width=48, crop="breast"),
        "vit": Branch(model="vit_tiny_patch16_224", features=192, mean=(0.5, 0.5, 0.5)),
        "cnn": Branch(model="resnet10t", features=512),
        "head": Head(hidden=(32,)),
        "outputs": (Output(name="logits", shape=("batch", 2)),),
        "temperature": 1.3,
        "operating_point": OperatingPoint(
            positive="malignant",
            threshold=0.2,
            criterion="sensitivity>=0.9",
            sensitivity=0.91,
            sensitivity_interval=(0.85, 0.95),
        ),
        "provenance": {"seed": 3, "metrics": {"auroc": 0.9}},
    }
    return ModelSpec(**{**fields, **changes})


def test_json_round_trip_is_exact():
    spec = make_spec()
    text = spec.to_json()
    assert ModelSpec.from_json(text) == spec
    assert ModelSpec.from_json(text).to_json() == text


def test_num_features_is_the_sum_of_both_branches():
    assert make_spec().num_features == 704


def walk(data, path=()):
    """Every (path, key) of nested objects whose fields the spec defines."""
    free = {"provenance", "extras"}
    for key, value in data.items():
        yield path, key
        if isinstance(value, dict) and key not in free:
            yield from walk(value, (*path, key))


ALL_FIELDS = list(walk(make_spec().to_dict()))


@pytest.mark.parametrize(("path", "key"), ALL_FIELDS, ids=lambda v: str(v))
def test_missing_field_is_named(path, key):
    data = make_spec().to_dict()
    inner = data
    for step in path:
        inner = inner[step]
    del inner[key]
    with pytest.raises(SpecError, match=rf"\b{key}\b"):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize("place", ["", "preprocess", "vit", "head", "operating_point"])
def test_unknown_field_is_named_with_the_known_ones(place):
    data = make_spec().to_dict()
    (data[place] if place else data)["colour_space"] = "lab"
    with pytest.raises(SpecError, match=r"colour_space is unknown; known fields are "):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize("version", [0, 1, 3, "1", None])
def test_other_schema_version_is_refused_with_advice(version):
    with pytest.raises(SpecError, match=r"schema_version is .*export the model again"):
        ModelSpec.from_dict({**make_spec().to_dict(), "schema_version": version})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("one",)}, "two names or more"),
        ({"classes": ("a", "a")}, "names that differ"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"classes": ("a", "b")}, "operating_point.positive is 'malignant'"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        make_spec(**changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("preprocess", "resize"), "squash", r"spec.preprocess.resize is 'squash'; expected one"),
        (("preprocess", "height"), "224", r"spec.preprocess.height is str '224'; expected int"),
        (("preprocess", "height"), 4, r"preprocess.height is 4; expected 8 to 8192"),
        (("vit", "std"), [1, 1, 0], "expected positive numbers"),
        (("vit", "mean"), "grey", r"spec.vit.mean is str 'grey'; expected a list"),
        (("classes",), {"a": 1}, r"spec.classes is dict"),
        (("head", "dropout"), 1, r"head.dropout is 1.0"),
        (("operating_point", "sensitivity_interval"), [0.1], "has 1 entries; expected 2"),
        (("temperature",), True, "spec.temperature is bool"),
    ],
)
def test_wrong_values_are_named_by_path(path, value, message):
    data = make_spec().to_dict()
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_dict(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(field=st.sampled_from(ALL_FIELDS), value=json_values)
def test_from_dict_of_any_value_raises_typed_errors(field, value):
    path, key = field
    data = json.loads(make_spec().to_json())
    inner = data
    for step in path:
        inner = inner[step]
    inner[key] = value
    try:
        spec = ModelSpec.from_dict(data)
    except HybridError:
        return
    assert ModelSpec.from_dict(spec.to_dict()).to_dict() == spec.to_dict() or value != value


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000])
def test_text_that_is_no_spec(text):
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)
