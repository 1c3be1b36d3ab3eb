"""The documentation: its links lead somewhere, and its code runs."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import exporter
from exporter.arguments import parse

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("scripts/**/*.md")]
DEPLOYMENT = ROOT / "docs" / "deployment.md"
ONNXRUNTIME_WEB = "onnxruntime-web@1.30.0"
CALLER = """
import { readFileSync } from "node:fs";
import { classify } from "./classify.mjs";
const answers = [];
for (const pixels of JSON.parse(readFileSync("pixels.json"))) {
  answers.push(Array.from(await classify(pixels)));
}
console.log(JSON.stringify(answers));
"""


@pytest.mark.parametrize("document", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, target


def test_every_page_is_linked_from_the_readme():
    links = re.findall(
        r"\]\((docs/[\w/-]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert set(links) == {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")}


def test_commands_of_the_build_are_parsed():
    (job,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)
    commands = re.findall(r"- run: exporter (.*)", job)
    verbs = [parse(shlex.split(command)).verb for command in commands]
    assert verbs == ["run", "compare", "benchmark"]


def _anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.fixture
def page(tmp_path):
    """A folder that has onnxruntime-web."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", ONNXRUNTIME_WEB]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {ONNXRUNTIME_WEB}: {done.stderr[-200:]}")
    return tmp_path


@pytest.mark.slow
def test_the_browser_predicts_what_python_does(page, digits):
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(64, activation="relu", bias_initializer="normal", name="hidden"),
        keras.layers.Dense(10, activation="softmax", name="probabilities"),
    ]
    model = keras.Sequential([keras.Input((28, 28), name="image"), *layers])
    exporter.export(exporter.compress(model, rank=8), page, formats=["onnx"])
    (code,) = re.findall(r"```js\n(.*?)```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL)
    pixels = digits.test.inputs["x"][:20]
    (page / "classify.mjs").write_text(code)
    (page / "caller.mjs").write_text(CALLER)
    (page / "pixels.json").write_text(json.dumps(pixels.reshape(20, -1).tolist()))
    done = subprocess.run(
        ["node", "caller.mjs"], cwd=page, capture_output=True, text=True, check=True
    )
    session = onnxruntime.InferenceSession(str(page / "model.onnx"))
    (expected,) = session.run(["probabilities"], {"image": (pixels / 255).astype(np.float32)})
    answers = np.array(json.loads(done.stdout), np.float32)
    assert len(set(answers.argmax(axis=1))) > 1
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
