"""Pages: their tables and pictures are what the results say, their links and contents hold."""

import pathlib
import re
import sys
import xml.etree.ElementTree

import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "report"))
import drawing
import render_results

PAGES = [*render_results.PAGES, tiny.ROOT / "experiments" / "README.md", tiny.ROOT / "BUILD.md"]


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tiny.ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s=]*(?:#[^)\s]*)?)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
    for name in re.findall(r'(?:src|srcset)="([^"]+)"', text):
        assert (page.parent / name).exists(), name


def test_there_is_a_page_for_every_folder_of_results():
    folders = {path.parent.name for path in (tiny.ROOT / "experiments/results").glob("*/*.json")}
    expected = "movielens sequences funnel ranking indexes studies speed serving"
    assert folders == set(expected.split())
    assert {page.parent.name for page in render_results.PAGES[1:]} == folders


@pytest.mark.parametrize("page", render_results.PAGES[1:], ids=lambda page: page.parent.name)
def test_a_page_begins_with_its_contents_and_has_its_tables(page):
    text = page.read_text()
    listed = re.findall(r"^- \[([^\]]+)\]\(#", text, re.M)
    assert listed == re.findall(r"^## (.+)$", text, re.M)
    assert render_results.rendered(text) == text
    changed = re.sub(r"\| (\d)", r"| 9\1", text)  # a figure typed by hand is noticed
    assert changed != text and render_results.rendered(changed) == text


def test_every_table_stands_on_one_page():
    found = [
        name
        for page in render_results.PAGES
        for name in re.findall(r"<!-- results:(\w+) -->", page.read_text())
    ]
    assert sorted(found) == sorted(render_results.TABLES)


def test_a_table_that_is_none_is_named():
    text = "<!-- results:nothing -->\nx\n<!-- /results -->"
    with pytest.raises(ValueError, match="no table 'nothing'"):
        render_results.rendered(text)


def test_pictures_are_what_the_results_say():
    made = drawing.pictures()
    folder = render_results.PICTURES
    assert {path.name for path in folder.glob("*.svg")} == made.keys() and len(made) == 8
    for name, picture in made.items():
        assert (folder / name).read_text() == picture, name
        assert xml.etree.ElementTree.fromstring(picture).tag.endswith("svg")
    # The two of a pair differ in colours alone.
    colour = re.compile(r"#[0-9a-f]{6}")
    for name in ("towers", "badges", "measured", "stages"):
        light, dark = (made[f"{name}_{page}.svg"] for page in drawing.THEMES)
        assert light != dark and colour.sub("", light) == colour.sub("", dark)


def test_every_flag_file_is_listed():
    text = (tiny.ROOT / "experiments" / "README.md").read_text()
    for path in (tiny.ROOT / "experiments" / "flags").rglob("*.flags"):
        name = pathlib.PurePath(path.parent.name, path.name).as_posix()
        encoders = re.search(r"`sequences/\{([\w,]+)\}\.flags`", text)[1].split(",")
        assert f"`{name}`" in text or path.stem in encoders, name
