import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedsim.report.heatmap import label_heatmap
from fedsim.report.shown import shown_clients


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def spy(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures


def parts(figure):
    bars, cells = figure.axes[:2]
    image = cells.images[0].get_array()
    heights = [bar.get_height() for bar in bars.patches]
    return figure.get_suptitle(), heights, image, cells


def test_few_clients_show_every_number(drawn, tmp_path):
    histogram_NC = np.array([[3, 0], [1, 5], [0, 2]])
    label_heatmap(histogram_NC, tmp_path / "who.png", ["cat", "dog"])
    title, heights, image, cells = parts(drawn[0])
    assert title == "Who holds what: 3 clients"
    assert heights == [3, 6, 2]
    assert np.ma.filled(image, 0).tolist() == [[3, 1, 0], [0, 5, 2]]
    assert image.mask.tolist() == [[False, False, True], [True, False, False]]
    assert sorted(text.get_text() for text in cells.texts) == ["1", "2", "3", "5"]
    assert [label.get_text() for label in cells.get_yticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in cells.get_xticklabels()] == ["0", "1", "2"]
    assert imread(tmp_path / "who.png").shape[2] == 4


def test_many_clients_are_sampled_evenly_and_it_says_so(drawn):
    histogram_NC = np.arange(1000)[:, None] * np.ones((1, 3), int)
    label_heatmap(histogram_NC, io.BytesIO())
    title, heights, image, cells = parts(drawn[0])
    assert title == "Who holds what: 1000 clients (200 of 1000 shown)"
    assert image[0, 1:4].tolist() == [5, 10, 15] and len(heights) == 200
    ticks = zip(cells.get_xticks(), cells.get_xticklabels(), strict=True)
    assert [(x, label.get_text()) for x, label in ticks][:3] == [
        (0, "0"),
        (20, "100"),
        (40, "200"),
    ]
    assert not cells.texts


def test_a_large_population_needs_only_the_shown_rows(drawn):
    clients = shown_clients(10**7)
    assert len(clients) == 200 and clients[-1] == 9_950_000
    label_heatmap(np.ones((200, 4), int), io.BytesIO(), num_clients=10**7)
    title, _, _, cells = parts(drawn[0])
    assert title.endswith("10000000 clients (200 of 10000000 shown)")
    assert cells.get_xticklabels()[1].get_text() == "1000000"


def test_many_classes_have_few_ticks(drawn):
    label_heatmap(np.ones((5, 100), int), io.BytesIO())
    labels = [label.get_text() for label in parts(drawn[0])[3].get_yticklabels()]
    assert labels[:3] == ["0", "5", "10"] and len(labels) <= 40


def test_colours_are_an_ordered_colour_blind_safe_map_and_zero_is_white(drawn):
    label_heatmap(np.array([[0, 1000], [1, 10]]), io.BytesIO())
    image = parts(drawn[0])[3].images[0]
    assert image.get_cmap().name == "cividis_r"
    white, one, ten, most = (image.to_rgba(np.ma.masked_equal([[n]], 0)) for n in (0, 1, 10, 1000))
    assert white.flatten()[:3].tolist() == [1, 1, 1]
    grey = [rgba.flatten()[:3] @ [0.299, 0.587, 0.114] for rgba in (white, one, ten, most)]
    assert grey == sorted(grey, reverse=True) and grey[0] - grey[1] > 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (200, 1)])
def test_small_shapes_and_nobody_holding_anything(shape):
    buffer = io.BytesIO()
    label_heatmap(np.zeros(shape, int), buffer)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_equal_data_give_equal_bytes_and_no_global_state():
    before = dict(matplotlib.rcParams)
    one, two = io.BytesIO(), io.BytesIO()
    label_heatmap(np.array([[1, 2]]), one)
    label_heatmap(np.array([[1, 2]]), two)
    assert one.getvalue() == two.getvalue()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0, 3), {}),
        ((3, 0), {}),
        ((3, 2), {"class_names": ["one"]}),
        ((3, 2), {"num_clients": 4}),
    ],
)
def test_shapes_that_do_not_fit(shape, options):
    with pytest.raises(ValueError, match=r"fit|class names"):
        label_heatmap(np.zeros(shape, int), io.BytesIO(), **options)
