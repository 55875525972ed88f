import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jepa_vl.report import curves, figures, pca, smooth, words, wrap
from jepa_vl.report.page import Section, Widget, render_page

PNG = b"\x89PNG\r\n\x1a\n"
RNG = np.random.default_rng(0)
GRID, SIDE = 4, 32


def pictures(*lead):
    return RNG.integers(0, 256, (*lead, SIDE, SIDE, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Collects the tags, and the text of each script and of everything else."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.open_tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags and self.open_tags[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_curves_draw_only_groups_with_data():
    rows = [{"step": i, "loss": 1.0 / (1 + i)} for i in range(100)]
    rows[7]["loss"] = float("nan")
    rows[50]["text_gain"] = 0.1
    groups = {"loss": ["loss", "loss/sparse"], "text": ["text_gain"], "kNN": ["knn/target"]}
    assert len(figures.curves(rows, groups).axes) == 2
    fig = figures.curves(rows, groups, [{"step": 10, "knn/target": 0.3}])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["loss", "text", "kNN"]
    assert figures.to_png(fig).startswith(PNG)
    assert figures.to_png(figures.curves([], groups)).startswith(PNG)


def test_a_legend_names_the_lines_only_where_there_are_several():
    rows = [{"step": i, "a": i, "b": -i, "c": 1.0} for i in range(5)]
    two, one = figures.curves(rows, {"ab": ["a", "b"], "c": ["c", "absent"]}).axes
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "b"]
    assert one.get_legend() is None and one.get_ylabel() == "c"


def test_of_a_step_logged_twice_the_later_value_counts():
    rows = [{"step": 0, "a": 1.0}, {"step": 1, "a": 9.0}, {"step": 1, "a": 2.0}]
    line = figures.curves(rows, {"a": ["a"]}).axes[0].lines[-1]
    assert line.get_xydata().tolist() == [[0, 1], [1, 2]]


def test_of_one_run_a_panel_has_a_group_of_metrics_and_of_several_one_metric_of_each_run():
    rows = [{"step": i, "loss": 1 / 3 + i, "loss/sparse": 0.5} for i in range(3)]
    rows[1]["loss"] = float("nan")
    (panel,) = curves.panels({"": rows})
    first, second = panel["lines"]
    assert first == {"name": "loss", "colour": 0, "dash": 0, "x": [0, 2], "y": [0.333333, 2.33333]}
    assert (second["name"], second["colour"], second["dash"]) == ("loss/sparse", 1, 1)
    first, second = curves.panels({"a": rows, "b": rows[:1], "c": [{"step": 0, "loss": 1.0}]})
    assert (first["title"], first["more"]) == ("loss", False)
    assert (second["title"], second["more"]) == ("loss/sparse", True)
    told = [(line["name"], line["colour"], line["dash"], len(line["x"])) for line in first["lines"]]
    assert told == [("a", 0, 0, 2), ("b", 1, 1, 1), ("c", 2, 2, 1)]
    # A run keeps its colour where another one has nothing to show.
    only = curves.panels({"a": [], "b": rows})[0]["lines"]
    assert [(line["name"], line["colour"]) for line in only] == [("b", 1)]
    assert curves.panels({"": []}) == []


def test_levels_to_compare_with_go_across_the_whole_run():
    rows = [{"step": 0, "knn/target": 0.3, "knn/pixels": 0.2}, {"step": 9, "knn/target": 0.7}]
    (panel,) = curves.panels({"": curves.with_levels(rows)})
    found = {line["name"]: (line["x"], line["y"]) for line in panel["lines"]}
    assert found["knn/target"] == ([0, 9], [0.3, 0.7])
    assert found["knn/untrained"] == ([0, 9], [0.3, 0.3])
    assert found["knn/pixels"] == ([0, 9], [0.2, 0.2])


def test_long_lines_are_thinned_and_keep_their_ends_and_spikes():
    values = np.sin(np.arange(100_000) / 5000)
    values[31_234], values[77_777] = 40.0, -40.0
    kept = curves.thin(values, 1500)
    assert len(kept) <= 1500 and (np.diff(kept) > 0).all()
    assert {0, 31_234, 77_777, 99_999} <= set(kept.tolist())
    assert curves.thin(values[:1500], 1500).tolist() == list(range(1500))


def test_a_widget_brings_its_script_once_and_keeps_the_picture_for_who_has_none():
    png = figures.to_png(figures.curves([], {}))
    part = Section("c", figures=[(png, "still")], widget=Widget("curves", {"</script>": "<b>"}))
    found = Page(render_page("t", [], [part, part]))
    assert found.open_tags == [] and len(found.all("img")) == 2
    kinds = [script.get("type") for script in found.all("script")]
    assert kinds == ["application/json"] * 3 + [None]
    assert json.loads(found.scripts[0]) == {"</script>": "<b>"}


def test_smoothing_keeps_lines_and_halves_noise():
    line = np.linspace(0, 5, 400)
    np.testing.assert_allclose(smooth(line), line, atol=1e-9)
    noise = RNG.normal(size=400)
    assert smooth(noise).shape == (400,) and smooth(noise).std() < 0.5 * noise.std()
    assert smooth(noise[:39]) is not None and (smooth(noise[:39]) == noise[:39]).all()


def test_masks_show_image_context_and_targets_of_each_row():
    images, ctx_idx = pictures(2), np.array([[0, 1], [5, -1]])
    tgt_idx = np.array([[[10, 11], [14, 15]], [[2, 3], [-1, -1]]])
    fig = figures.masks(images, ctx_idx, tgt_idx, GRID)
    assert len(fig.axes) == 6 and figures.to_png(fig).startswith(PNG)
    context = np.asarray(fig.axes[1].images[0].get_array())
    assert (context[:8, :16] == images[0, :8, :16]).all()
    assert len(np.unique(context[8:])) == 1
    with pytest.raises(ValueError, match="ctx_idx"):
        figures.masks(images, ctx_idx[:1], tgt_idx, GRID)


def test_coverage_has_two_maps_with_colour_bars_and_the_row_means():
    fig = figures.coverage(RNG.random((GRID, GRID)), np.zeros((GRID, GRID)))
    assert len(fig.axes) == 5 and len(fig.axes[2].patches) == 2 * GRID
    assert figures.to_png(fig).startswith(PNG)


def test_word_maps_share_a_scale_and_a_map_of_zeros_is_no_patch():
    words, maps = ["a", "$5 red", "cube"], RNG.random((3, GRID, GRID))
    maps[0], maps[2] = 0.0, maps[2] / 2
    fig = figures.word_maps(pictures(), words, maps, "a $5 red cube", 3, [None, (2, 2, 9, 9), None])
    panels = fig.axes[1:4]
    assert [ax.get_title() for ax in panels] == words and len(fig.axes) == 5
    assert panels[0].get_xlabel() == "no patch" and len(panels[0].images) == 1
    assert panels[1].get_xlabel() == f"max {maps[1].max():.2g}"
    heat = [ax.images[1].get_clim() for ax in panels[1:]]
    # From the least to the greatest similarity of the words that look anywhere.
    assert heat[0] == heat[1] == pytest.approx((maps[1:].min(), maps.max()))
    assert figures.to_png(fig).startswith(PNG)
    silent = figures.word_maps(pictures(), ["a"], np.zeros((1, GRID, GRID)), "a")
    assert figures.to_png(silent).startswith(PNG)


def test_maps_of_words_keep_their_values_to_a_two_hundredth_and_no_patch_stays_none():
    maps = RNG.random((2, 3, GRID, GRID)) + 0.5
    maps[:, 1] = 0.0
    caption = words.Caption(
        "a red box", ["a", "red", "box"], maps, [None, (1.0, 2.0, 9.0, 9.0), None]
    )
    found = words.widget([("one", pictures(), [caption]), ("none", pictures(), [])])
    assert found is not None and found.data["layers"] == ["all 2, averaged", "1", "2"]
    (image,) = found.data["images"]
    (told,) = image["captions"]
    assert (told["words"], told["boxes"][1], image["width"]) == (
        ["a", "red", "box"],
        (1, 2, 9, 9),
        SIDE,
    )
    for layer, wanted in zip(told["layers"], [maps.mean(0), *maps], strict=True):
        levels = np.frombuffer(base64.b64decode(layer["maps"]), np.uint8).reshape(3, GRID, GRID)
        assert (levels[1] == 0).all() and levels[[0, 2]].min() == 1 and levels.max() == 255
        values = layer["low"] + (levels[[0, 2]] - 1.0) / 254 * (layer["high"] - layer["low"])
        np.testing.assert_allclose(values, wanted[[0, 2]], atol=0.5 / 254)
    flat = words.quantised(np.full((1, 2, 2), 0.7))
    assert flat["high"] == pytest.approx(0.7) and flat["low"] < 0.7
    assert words.widget([("none", pictures(), [])]) is None


def test_images_whose_maps_do_not_fit_are_left_to_the_pictures(monkeypatch):
    caption = words.Caption("a", ["a"], np.ones((1, 1, GRID, GRID)), [None])
    monkeypatch.setattr(words, "LIMIT", 2.5 * GRID**2 * 2 * 4 / 3)
    found = words.widget([(str(i), pictures(), [caption]) for i in range(5)])
    assert found is not None and [image["name"] for image in found.data["images"]] == ["0", "1"]


def test_patches_of_like_features_get_like_colours():
    kinds = RNG.normal(size=(3, 16))
    place = RNG.integers(0, 3, (2, GRID * GRID))
    colours, shares = pca.components(kinds[place] + 0.01 * RNG.normal(size=(2, GRID**2, 16)))
    assert colours.shape == (2, GRID, GRID, 3) and 0.9 < shares.sum() <= 1.0001
    assert shares[0] >= shares[1] >= shares[2]
    flat = colours.reshape(-1, 3)[:, :2]  # three kinds lie in a plane
    means = [flat[place.ravel() == kind].mean(0) for kind in range(3)]
    spread = max(flat[place.ravel() == kind].std(0).max() for kind in range(3))
    apart = min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert spread < 0.1 * apart
    fig = pca.figure(pictures(2), colours)
    assert len(fig.axes) == 4 and figures.to_png(fig).startswith(PNG)
    five = pca.figure(pictures(5), colours[[0, 1, 0, 1, 0]])
    drawn = [len(ax.images) for ax in five.axes]
    assert drawn == [1, 1, 1, 1] * 2 + [1, 0, 0, 0] * 2


def test_neighbours_carry_a_sign_besides_the_colour():
    labels = [["cat", "dog"], ["cat", "cat"]]
    scores = np.array([[0.9, 0.8], [0.7, 0.6]])
    fig = figures.neighbours(pictures(2), pictures(2, 2), ["cat", ""], labels, scores)
    below = [ax.get_xlabel().split("\n")[0] for ax in fig.axes]
    assert below == ["cat", "✓ cat", "✗ dog", "", "cat", "cat"]
    assert figures.to_png(fig).startswith(PNG)


def test_batch_sheet_has_one_panel_an_image_and_plain_dollars():
    fig = figures.batch_sheet(
        pictures(5), [["costs $3 or $4_", "x " * 200], [], ["a"], ["b"], [""]]
    )
    assert len(fig.axes) == 5 and fig.axes[0].get_xlabel().count("\n") == 3
    assert "…" in fig.axes[0].get_xlabel()
    assert figures.to_png(fig).startswith(PNG)


def test_wrap_cuts_long_words_and_long_texts():
    assert wrap("internationalisation", 10) == "internati…"
    assert wrap("one two three", 8) == "one two…"
    assert wrap("", 8) == ""
    assert max(map(len, wrap("W" * 50, 20, lines=9).split("\n"))) < 20


@pytest.fixture(scope="module")
def page():
    png = figures.to_png(figures.coverage(np.ones((GRID, GRID)), np.ones((GRID, GRID))))
    parts = [
        Section(
            "Curves & <b>", 'One.\n\nTwo "quoted".', [(png, "<script>alert('x')</script> \"it\"")]
        ),
        Section("Table", table=(["name", "kNN"], [["<i>a</i>", 0.123456], ["b", np.float64(2)]])),
    ]
    data = {"</script><b>": ["<!--", float("nan"), np.float32(0.5), np.arange(2)], "path": SIDE}
    return Page(render_page("Run <1>", [("steps", "10 & more")], parts, data))


def test_page_is_whole_and_semantic(page):
    assert page.open_tags == []
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == len(page.all("section")) == 2
    assert [a["href"] for a in page.all("a")] == ["#" + s["id"] for s in page.all("section")]
    assert "Run <1>" in page.text and "10 & more" in page.text and "0.1235" in page.text


def test_page_requests_nothing(page):
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(name) or "#").startswith(("data:", "#")), (tag, name)
    assert not re.search(r"url\(|@import|https?:", page.text)


def test_page_escapes_what_it_is_given(page):
    assert len(page.all("script")) == 1 and not page.all("b") and not page.all("i")
    assert "<script>alert('x')</script> \"it\"" in page.text


def test_every_image_has_a_text_and_its_size(page):
    (image,) = page.all("img")
    assert image["alt"] == "<script>alert('x')</script> \"it\""
    assert (image["width"], image["height"]) == ("1155", "385")


def test_page_carries_the_results_for_machines(page):
    assert page.all("script") == [{"type": "application/json", "id": "run"}]
    expected = {"</script><b>": ["<!--", None, 0.5, [0, 1]], "path": SIDE}
    assert json.loads("".join(page.scripts)) == expected


def test_what_is_no_png_is_refused():
    with pytest.raises(ValueError, match="not a PNG"):
        render_page("t", [], [Section("s", figures=[(b"GIF89a", "caption")])])
