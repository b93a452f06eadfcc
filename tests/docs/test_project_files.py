"""Issue forms, the workflow, the hooks and the citation agree with the project they belong to."""

import re
from pathlib import Path

import pytest
import tomllib
import yaml

import hybrid_rt.cli

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((TOP / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def load(name):
    return yaml.safe_load((TOP / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_form_asks_for_the_environment(form):
    content = load(form)
    assert {"name", "description", "body"} <= set(content)
    fields = [item for item in content["body"] if item["type"] != "markdown"]
    ids = [item["id"] for item in fields]
    assert len(ids) == len(set(ids))
    (environment,) = [item for item in fields if item["id"] == "environment"]
    assert "`python -m hybrid_rt --json`" in environment["attributes"]["description"]


def test_form_commands_have_these_options():
    text = "".join(form.read_text(encoding="utf-8") for form in FORMS)
    options = set(re.findall(r"`hybrid-predict MODEL (--\w+)`", text))
    assert options == {"--info", "--selftest"}
    for option in options:
        hybrid_rt.cli._parser().parse_args(["model", option])


def test_workflow_runs_the_script():
    steps = load(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert (TOP / ".ci" / "run").exists()


def test_hooks_are_the_steps_of_make_check():
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"] for hook in repository["hooks"]]
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    steps = [step.strip().replace("$(BIN)", ".venv/bin") for step in recipe[1].splitlines()]
    steps = [step.removesuffix(" .").replace(" --check", "") for step in steps]
    assert sorted(hooks) == sorted([*steps, "make types"])


def test_citation_has_version_and_licence():
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"] == PROJECT["urls"]["Origin"]


@pytest.mark.parametrize(
    "page", ["CHANGELOG.md", "SECURITY.md", ".github/CONTRIBUTING.md"], ids=lambda name: name
)
def test_links_exist(page):
    path = TOP / page
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [t for t in links if not t.startswith("http") and not (path.parent / t).exists()]
    assert missing == []
