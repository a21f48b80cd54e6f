import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from fedsim.report import figures


def draw(figure):
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o", label=r"$\frac{ <b>&amp;$")
    axes.legend()


def test_a_picture_is_an_element_and_its_text_is_text():
    picture = figures.svg("one", (3, 2), draw)
    assert picture.startswith("<svg") and picture.endswith("</svg>")
    texts = [e.text for e in ET.fromstring(picture).iter() if e.tag.endswith("text")]  # noqa: S314
    assert r"$\frac{ <b>&amp;$" in texts
    assert "<metadata>" not in picture and 'width="216pt"' not in picture


def test_ids_of_two_pictures_do_not_meet_and_references_hold():
    pictures = [figures.svg(name, (3, 2), draw) for name in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]*)"', picture)) for picture in pictures]
    assert ids[0] and not ids[0] & ids[1]
    for picture, known in zip(pictures, ids, strict=True):
        used = set(re.findall(r'href="#([^"]*)"', picture))
        used |= set(re.findall(r"url\(#([^)]*)\)", picture))
        assert used and used <= known


def test_equal_data_give_equal_bytes_whatever_the_readers_settings():
    before = figures.svg("one", (3, 2), draw)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.marker": "x"}):
        assert figures.svg("one", (3, 2), draw) == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb\0", "a?b?"), ("_hidden", " _hidden"), ("x" * 50, "x" * 39 + "…"), ("\ud800", "?")],
)
def test_names_from_files_fit_into_a_picture(name, shown):
    assert figures.label(name) == shown
