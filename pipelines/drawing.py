"""The stages of a pipeline as boxes and lines. Pure: what is drawn, in px."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import editing, graph

BOX_W, BOX_H, GAP_X, GAP_Y = 184, 62, 56, 22
LOOKS = {  # state of a step -> class of its colour, word
    "pending": ("waiting", "Waiting"),
    "running": ("running", "Running"),
    "succeeded": ("succeeded", "Succeeded"),
    "skipped": ("early", "Skipped"),
    "failed": ("failed", "Failed"),
    "not_run": ("cancelled", "Not run"),
    "cancelled": ("cancelled", "Cancelled"),
}


def drawn(
    stages: Sequence[Mapping[str, Any]],
    states: Mapping[str, str],
    *,
    faults: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Boxes and lines of an SVG: each stage right of all that it waits for.

    ``states``: of steps, by key. ``faults``: how much is wrong with a stage, by its place.
    Definitions that are still wrong can be drawn, too: what they wait for in vain, or in a circle,
    has no line.
    """
    placed = editing.acyclic(stages)
    columns = graph.layers(placed)
    tallest = max(map(len, columns), default=0)
    height = max(1, tallest) * (BOX_H + GAP_Y) - GAP_Y + 4
    boxes: dict[str, dict[str, Any]] = {}
    for column, places in enumerate(columns):
        top = (height - (len(places) * (BOX_H + GAP_Y) - GAP_Y)) / 2
        for row, place in enumerate(places):
            stage = stages[int(place)]
            key, known = stage["key"], graph.STAGES.get(stage["stage"])
            look, word = LOOKS.get(states.get(key, ""), ("", ""))
            x, y = 2 + column * (BOX_W + GAP_X), round(top + row * (BOX_H + GAP_Y))
            waits = [stages[int(one)]["key"] for one in placed[int(place)]["after"]]
            boxes[place] = {
                "place": int(place),
                "key": key if len(key) <= 20 else f"{key[:19]}…",
                "full": key,
                "title": known.title if known else stage["stage"],
                "look": look,
                "word": word,
                "faults": (faults or {}).get(int(place), 0),
                "waits": waits,
                "x": x,
                "y": y,
                "text_x": x + 12,
                "text_y": y + 24,
                "below_y": y + 45,
                "word_x": x + BOX_W - 12,
            }
    lines = []
    for stage in placed:
        to = boxes[stage["key"]]
        for place in stage["after"]:
            at = boxes[place]
            x1, y1 = at["x"] + BOX_W, at["y"] + BOX_H // 2
            x2, y2 = to["x"], to["y"] + BOX_H // 2
            half = (x1 + x2) // 2
            lines.append(f"M{x1},{y1} C{half},{y1} {half},{y2} {x2 - 6},{y2}")
    return {
        "boxes": list(boxes.values()),
        "lines": lines,
        "width": max(1, len(columns)) * (BOX_W + GAP_X) - GAP_X + 4,
        "height": height,
        "box_w": BOX_W,
        "box_h": BOX_H,
        "words": "; ".join(
            f"{one['full']} ({one['title']}){': ' + one['word'] if one['word'] else ''}"
            for one in boxes.values()
        ),
    }
