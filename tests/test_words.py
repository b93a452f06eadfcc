"""The word list finds names and sentences, and nothing in the repository."""

import pytest

from tools.check_words import find, main


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Load a picture.", "picture"),
        ("PICTURE_SUFFIXES = ()", "PICTURE"),
        ("class LanePool:", "Lane"),
        ("row['label_set']", "label_set"),
        ("# a label\n# set of each class", "label # set"),
        ("build_plan(onnx, path)", "build_plan"),
        ("It builds a TensorRT plan.", "builds a TensorRT plan"),
        ("certified_for_bf16()", "certified"),
        ("the network gives logits", "gives"),
    ],
)
def test_a_replaced_word_is_found(text, word):
    assert [found for _, found, _ in find(text)] == [word]


@pytest.mark.parametrize(
    "text",
    [
        "95% confidence intervals",
        "np.floor(x) and math.floor(y)",
        "path.parts, a partial update, GIVEN, planes, limit=3",
        "model.plan is a TensorRT plan; build an engine",
    ],
)
def test_other_uses_are_allowed(text):
    assert list(find(text)) == []


def test_a_found_word_has_its_line_and_fails(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("# Title\n\nA novelty of 3.\n")
    assert main([str(path)]) == 1
    assert f"{path}:3: 'novelty'; use ood_score" in capsys.readouterr().out


def test_the_repository_has_none(monkeypatch, pytestconfig, capsys):
    monkeypatch.chdir(pytestconfig.rootpath)
    if not (pytestconfig.rootpath / ".git").exists():
        pytest.skip("not a git checkout: the tracked files are not known")
    assert main([]) == 0, capsys.readouterr().out
