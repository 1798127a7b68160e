"""The page of a film."""

import html.parser

import matplotlib.pyplot as plt

from kohort.plot.player import page


class Reader(html.parser.HTMLParser):
    """Collects the tags of a page, and complains of one that is closed and not open."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_says_what_it_shows():
    reader = Reader()
    text = page(["QQ==", "Qg=="], "XOR <64> & more", 150, [0, 75])
    reader.feed(text)

    assert reader.open == []
    image = next(attributes for tag, attributes in reader.tags if tag == "img")
    assert image["alt"] == "XOR <64> & more"
    slider = next(attributes for tag, attributes in reader.tags if tag == "input")
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "1")
    assert 'frames = ["QQ==", "Qg=="], epochs = [0, 75], pause = 150;' in text


def test_the_page_has_the_colours_of_the_style():
    with plt.style.context("dark_background"):
        dark = page([], "", 100, [])

    assert "background: #000000; color: #ffffff" in dark
    assert "background: #ffffff; color: #000000" in page([], "", 100, [])
