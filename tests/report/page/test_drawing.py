"""The page as those read it who have a browser, a screen reader, or a text editor."""

import html.parser
import itertools
import json
import re

import jsonschema
import pytest

from exporter.report.manifest import manifest_schema
from exporter.report.page.drawing import draw_report
from exporter.report.page.pictures import Pictures

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """What a page refers to, its headings, and whether all elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids, self.headings, self.images, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        names = ("href", "src", "xlink:href")
        self.targets += [attributes[name] for name in names if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" or attributes.get("role") == "img":
            self.images.append(attributes.get("alt") or attributes.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def manifest_of(report):
    return json.loads((report.output / "manifest.json").read_text(encoding="utf-8"))


def page_of(report):
    return (report.output / "report.html").read_text(encoding="utf-8")


def test_page_is_whole_in_itself(drawn):
    page = Page(page_of(drawn))
    assert not page.open
    local = {target for target in page.targets if target.startswith("#")}
    assert not [t for t in page.targets if t not in local and not t.startswith("data:")]
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in local} <= set(page.ids)
    assert "url(http" not in page_of(drawn)


def test_page_can_be_heard(drawn):
    page = Page(page_of(drawn))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(page.headings))
    assert len(page.images) > 12
    assert all(page.images)


def test_page_tells_what_the_manifest_knows(drawn):
    text, manifest = page_of(drawn), manifest_of(drawn)
    for file in manifest["files"]:
        listed = file["sha256"] in text
        assert listed != file["path"].startswith("report"), file["path"]
    for layer in manifest["layers"]:
        assert layer["reason"] in text
        if layer["rank"] is not None:
            assert layer["measured_error"] > 0
            assert f"{layer['measured_error']:.2%}" in text
    for artifact in manifest["artifacts"]:
        assert f"Load {artifact['file']['path']}" in text
    for part in ("baseline W", "product U S V", "Fine-tuning after the cut", "Confusion matrix"):
        assert part in text


def test_names_of_others_are_text(drawn):
    text = page_of(drawn)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>zero" not in text
    assert "<script>alert" not in (drawn.output / "report.md").read_text()


def test_markdown_has_the_head_that_hubs_read_and_figures_that_are_there(drawn):
    text = (drawn.output / "report.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert '- "tflite"' in head
    assert '    - type: "accuracy"' in head
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", body)
    assert figures
    for figure in figures:
        content = (drawn.output / figure).read_text()
        assert content.startswith('<svg color="')
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9, 4}


def test_manifest_lists_the_report_and_follows_its_schema(drawn):
    manifest = manifest_of(drawn)
    jsonschema.validate(manifest, manifest_schema())
    names = {"report.html", "report.md", "report.npz", "report_figures"}
    assert names <= set(manifest["entries"])
    assert names <= {file["path"] for file in manifest["files"]}


@pytest.mark.parametrize(
    ("kind", "badge", "told"),
    [
        ("rejected", "failed", "must not be shipped"),
        ("unconverted", "failed", "could not be converted"),
        pytest.param("accepted", "passed", "", marks=pytest.mark.slow),
        pytest.param("finetuned", "passed", "", marks=pytest.mark.slow),
        pytest.param("adapted", "passed", "", marks=pytest.mark.slow),
        pytest.param("quantized", "passed", "", marks=pytest.mark.slow),
    ],
)
def test_any_run_has_a_report_without_pictures_too(kind, badge, told, request, tmp_path):
    manifest = manifest_of(request.getfixturevalue(kind))
    draw_report(manifest, Pictures(), tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert re.search(r'class="badge \w+">([^<]*)<', text)[1].startswith(badge)
    verdict = re.search(r'class="verdict">([^<]*)<', text)[1]
    assert told in verdict
    assert verdict.endswith(".")
    assert re.search(r"<ol>\s*<li>", text)


def test_the_same_run_gives_the_same_bytes(drawn, tmp_path):
    manifest, pictures = manifest_of(drawn), Pictures.load(drawn.output / "report.npz")
    draw_report(manifest, pictures, tmp_path)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8
    for path in written:
        assert (tmp_path / path).read_bytes() == (drawn.output / path).read_bytes(), path


def test_nothing_is_written_elsewhere_whatever_the_names_are(drawn, tmp_path):
    evil = "../../evil"
    counts = Pictures.load(drawn.output / "report.npz").confusion["probabilities"]["baseline"]
    (tmp_path / "deep" / "run").mkdir(parents=True)
    pictures = Pictures(confusion={evil: {evil: counts}})
    draw_report(manifest_of(drawn), pictures, tmp_path / "deep" / "run")
    assert evil in (tmp_path / "deep" / "run" / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]


@pytest.mark.slow
def test_in_a_browser(drawn, browse):
    browse(drawn.output / "report.html")
