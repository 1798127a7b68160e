"""The page of a film: play, pause and a slider, in one file of HTML that needs nothing else.

In come pictures as text and what they show; out comes the page. The room exists because a film is understood by
stopping it, and neither GIF nor WebP can be.
"""

import html
import json
from collections.abc import Sequence

from matplotlib import rcParams
from matplotlib.colors import to_hex

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{said}</title>
<style>
body {{ margin: 8px; background: {ground}; color: {text}; font: 15px/1.4 system-ui, sans-serif; }}
img {{ display: block; max-width: 100%; height: auto; }}
form {{ display: flex; gap: 12px; align-items: center; max-width: {width}px; }}
button {{ font: inherit; min-width: 5em; padding: 4px 12px; }}
input {{ flex: 1; min-width: 0; }}
output {{ min-width: 7em; text-align: right; font-variant-numeric: tabular-nums; }}
</style></head><body>
<img id="picture" alt="{said}">
<form onsubmit="return false">
<button id="play" type="button">Play</button>
<input id="frame" type="range" min="0" max="{last}" value="0" aria-label="frame">
<output id="epoch" for="frame"></output>
</form>
<script>
const frames = {frames}, epochs = {epochs}, pause = {pause};
const [picture, play, frame, epoch] = ["picture", "play", "frame", "epoch"].map(id => document.getElementById(id));
let timer = null;
function show(k) {{
  frame.value = k;
  picture.src = "data:image/webp;base64," + frames[k];
  epoch.textContent = "epoch " + epochs[k];
  frame.setAttribute("aria-valuetext", epoch.textContent);
}}
function stop() {{ clearInterval(timer); timer = null; play.textContent = "Play"; }}
function start() {{
  if (+frame.value === frames.length - 1) show(0);
  play.textContent = "Pause";
  timer = setInterval(() => +frame.value < frames.length - 1 ? show(+frame.value + 1) : stop(), pause);
}}
play.addEventListener("click", () => timer === null ? start() : stop());
frame.addEventListener("input", () => {{ stop(); show(+frame.value); }});
show(0);
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
</script>
</body></html>
"""


def page(frames: Sequence[str], said: str, pause: int, epochs: Sequence[int], width: int = 900) -> str:
    """Returns the page, in the colours of the style that is in force.

    Args:
        frames: WebP pictures in Base64.
        said: What they show, for those who cannot see them.
        pause: Milliseconds from one to the next.
        epochs: The number of epochs of each.
        width: Pixels that the controls take at most.
    """
    ground, text = (to_hex(rcParams[name]) for name in ("figure.facecolor", "text.color"))
    parts = {"frames": json.dumps(list(frames)), "epochs": json.dumps(list(epochs)), "pause": pause}
    return PAGE.format(said=html.escape(said), ground=ground, text=text, last=len(frames) - 1, width=width, **parts)
