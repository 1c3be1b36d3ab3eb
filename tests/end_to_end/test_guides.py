"""The guides: their commands are parsed, their snippets compile, and what they tell works."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import exporter
from exporter.arguments import parse

ROOT = Path(__file__).parents[2]
GUIDES = sorted(ROOT.glob("docs/guides/*.md"))
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *GUIDES]
START = ROOT / "docs" / "guides" / "start.md"
SHELL = ("", "sh")
RUN = "scripts/run"
PYTHON = ".venv/bin/python"
RUN_SCRIPT = "import runpy, sys; sys.argv = {0!r}; runpy.run_path({0!r}[0], run_name='__main__')"


def blocks(page):
    """Returns language and text of each block of code in a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Returns the words of each command of a block, without variables, and its exit code."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        code = re.search(r"# exit code (\d+)$", line)
        if words:
            yield words, int(code[1]) if code else 0


ALL_GUIDES = "EXPORTER_ALL_GUIDES"
LONG = {"budget", "images", "microcontroller"}


def by_page(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_commands_are_parsed_and_snippets_compile(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, text in blocks(page):
        if language == "python":
            compile(text, str(page), "exec")
        for words, _ in commands(text) if language in SHELL else ():
            for recipe in (Path(word) for word in words if word.endswith(".yaml")):
                recipe.parent.mkdir(parents=True, exist_ok=True)
                recipe.write_text("{}")
            if words[0] in {RUN, "exporter"}:
                parse(words[1:])
            elif words[0] == "scripts/train-cluster":
                parse(words[2:])
            elif words[0] == PYTHON:
                assert (ROOT / words[1]).is_file(), words
            elif words[0].startswith("scripts/"):
                assert (ROOT / words[0]).is_file(), words


def test_every_public_name_is_in_the_reference():
    names = re.findall(r"^::: exporter\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(names) == exporter.__all__


@pytest.mark.slow
def test_the_site_is_built_with_the_docstrings_and_no_page_is_left_out():
    subprocess.run([ROOT / "scripts" / "docs"], capture_output=True, check=True)
    api = (ROOT / "artifacts" / "site" / "docs" / "api.html").read_text()
    assert [name for name in exporter.__all__ if f'id="exporter.{name}"' not in api] == []


@pytest.fixture(scope="session")
def trained(run_each, tmp_path_factory):
    """The folder in which the first guide has trained its model."""
    folder = tmp_path_factory.mktemp("guides")
    run_each([next(text for language, text in blocks(START) if language == "python")], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in GUIDES if "```sh\n" in page.read_text()], ids=by_page
)
def test_what_a_guide_tells_works(page, trained, run_each, tmp_path):
    if page.stem in LONG and not os.environ.get(ALL_GUIDES):
        pytest.skip(f"takes a minute or two, which CI has not: {ALL_GUIDES}=1 runs it")
    for name in ("my_model.keras", "my_data.npz"):
        shutil.copy(trained / name, tmp_path)
    steps, expected = [], []
    for language, text in blocks(page)[1 if page == START else 0 :]:
        if language == "python":
            steps.append(text)
        for words, code in commands(text) if language == "sh" else ():
            if words[0] == RUN:
                steps.append(words[1:])
                expected.append(code)
            elif words[0] == PYTHON:
                steps.append(RUN_SCRIPT.format([str(ROOT / words[1]), *words[2:]]))
    done = run_each(steps, tmp_path)
    assert [each.returncode for each in done] == expected, [each.stderr[-500:] for each in done]
