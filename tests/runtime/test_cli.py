"""hybrid-predict: formats, folders, bad files, exit codes."""

import csv
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from hybrid_rt.cli import main


def test_table(tiny_onnx, images, capsys):
    assert main([str(tiny_onnx), *map(str, images)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 8
    assert [line.split()[0] for line in lines[2:]] == [str(p) for p in images]
    assert err == ""


def test_formats_to_files(tiny_onnx, images, tmp_path, capsys):
    folder = str(images[0].parent)
    for kind in ("csv", "json", "jsonl", "table"):
        output = tmp_path / "out" / f"a.{kind}"
        assert main([str(tiny_onnx), folder, "--format", kind, "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    with (tmp_path / "out" / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predictions = json.loads((tmp_path / "out" / "a.json").read_text())
    lines = (tmp_path / "out" / "a.jsonl").read_text().splitlines()
    assert [row["source"] for row in rows] == [str(p) for p in images]
    assert predictions == [json.loads(line) for line in lines]
    assert float(rows[3]["probability"]) == predictions[3]["probability"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.csv", "a.json", "a.jsonl", "a.table"
    ]  # fmt: skip


def test_options_may_stand_anywhere(tiny_onnx, images, capsys):
    first, second = str(images[0]), str(images[1])
    assert main(["--format", "jsonl", str(tiny_onnx), first, "--batch-size", "1", second]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_globs_and_nested_folders(tiny_onnx, images, tmp_path, capsys):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for place in ("b/c/x.png", "b/y.png", ".hidden/z.png"):
        (tmp_path / place).write_bytes(images[0].read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("no image")
    assert (
        main([str(tiny_onnx), str(tmp_path), str(tmp_path / "**" / "y.png"), "--format", "jsonl"])
        == 0
    )
    sources = [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]
    assert sources == [str(tmp_path / p) for p in ("b/c/x.png", "b/y.png", "b/y.png")]


def test_a_bad_file_does_not_stop_the_rest(tiny_onnx, images, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    arguments = [str(tiny_onnx), str(bad), str(images[0]), str(tmp_path / "no.dcm")]
    assert main([*arguments, "--format", "jsonl"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert ["error" in row for row in rows] == [True, False, True]
    assert f"hybrid-predict: {bad}: " in err
    assert "2 of 3 images failed" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.onnx", "a.png"], "does not exist"),
        (["TINY"], "no IMAGE given"),
        (["TINY", "a.png", "--batch-size", "0"], "batch_size is 0"),
        (["TINY", "no/*.png"], "matches no file"),
        (["TINY", "EMPTY"], "holds no images"),
        (["TINY", "IMAGE", "--explain", "out"], "hybrid-export --explain"),
        (["TINY", "IMAGE", "--output", "IMAGE/a.csv"], "cannot be written"),
        (["TINY", "--selftest"], "has no bundle"),
    ],
)
def test_wrong_usage_returns_one_line_and_2(
    tiny_onnx, images, tmp_path, capsys, arguments, message
):
    names = {"TINY": str(tiny_onnx), "IMAGE": str(images[0]), "EMPTY": str(tmp_path)}
    for name, path in names.items():
        arguments = [a.replace(name, path) for a in arguments]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hybrid-predict: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_machine_errors_return_1(tiny_onnx, images, capsys):
    assert main([str(tiny_onnx), str(images[0]), "--device", "cuda:99"]) == 1
    assert "was asked for" in capsys.readouterr().err
    assert main([str(tiny_onnx), str(images[0]), "--device", "cuda:99", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_explain_writes_overlays(bundle_folder, images, tmp_path, capsys):
    output = tmp_path / "heat"
    bad = tmp_path / "bad.png"
    bad.touch()
    arguments = [str(bundle_folder), *map(str, images), str(bad), "--explain", str(output)]
    assert main(arguments) == 1
    assert sorted(p.name for p in output.iterdir()) == [f"{i + 1}_p{i}.png" for i in range(6)]
    with Image.open(output / "1_p0.png") as image:
        assert image.width > image.height
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_selftest_and_info(bundle_folder, capsys):
    assert main([str(bundle_folder), "--selftest"]) == 0
    assert "self-test passed: 2 golden images" in capsys.readouterr().out
    assert main([str(bundle_folder), "--info"]) == 0  # and no IMAGE
    assert json.loads(capsys.readouterr().out)["reason"].startswith("fastest validated")


def test_help_ends_with_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  hybrid-predict model.onnx" in text
    with pytest.raises(SystemExit) as end:
        main(["model.onnx", "--format", "xml"])
    assert end.value.code == 2


def test_module_and_broken_pipe(tiny_onnx, images):
    command = [sys.executable, "-m", "hybrid_rt.cli", str(tiny_onnx), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    read, write = os.pipe()
    os.close(read)  # a reader that is gone, such as head
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.stderr == ""
