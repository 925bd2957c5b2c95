"""What stands around the demo's picture models: pixels in, boxes and text out.

In: an image, and a function that runs a model on one array. Out: lines of text, or a score.
Invariant: plain NumPy and Pillow; no other framework is imported, so all inference is ours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Box", "decode_text", "find_boxes", "line_images", "page_input"]
__all__ += ["photo_input", "read_page"]

LINE_HEIGHT = 48
_MULTIPLE = 32  # the detector halves its input five times
_PROBABILITY, _BOX_SCORE, _UNCLIP, _SMALLEST = 0.3, 0.5, 1.6, 5
# Means of the pictures that the photograph's model was trained on, blue green red.
_MEAN_BGR = (104.0, 117.0, 123.0)


@dataclass(frozen=True)
class Box:
    """A rectangle of text in the detector's pixels."""

    left: int
    top: int
    right: int
    bottom: int


def page_input(data: bytes, enlarge: int) -> tuple[Array, Any]:
    """A scanned page, enlarged: the detector's input [1, 3, H, W] in -1..1, and the picture."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    width = _round(image.width * enlarge)
    height = _round(image.height * enlarge)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None, ::-1]), image


def _round(size: int) -> int:
    return max(_MULTIPLE, round(size / _MULTIPLE) * _MULTIPLE)


def _runs(mask: Array) -> list[list[tuple[int, int]]]:
    """Per row the half-open intervals that are set."""
    import numpy as np

    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows = []
    for row in steps:
        starts, ends = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        rows.append([(int(a), int(b)) for a, b in zip(starts, ends, strict=True)])
    return rows


def _components(mask: Array) -> list[tuple[int, int, int, int]]:
    """Bounding boxes (left, top, right, bottom) of the 8-connected regions."""
    parent: list[int] = []
    boxes: list[list[int]] = []

    def find(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    above: list[tuple[int, int, int]] = []
    for y, runs in enumerate(_runs(mask)):
        here = []
        for start, end in runs:
            label = len(parent)
            parent.append(label)
            boxes.append([start, y, end, y + 1])
            for other_start, other_end, other in above:
                if other_start <= end and start <= other_end:
                    root, mine = find(other), find(label)
                    if root != mine:
                        parent[mine] = root
                        kept, gone = boxes[root], boxes[mine]
                        kept[0], kept[1] = min(kept[0], gone[0]), min(kept[1], gone[1])
                        kept[2], kept[3] = max(kept[2], gone[2]), max(kept[3], gone[3])
            here.append((start, end, label))
        above = here
    return [
        (box[0], box[1], box[2], box[3]) for label, box in enumerate(boxes) if find(label) == label
    ]


def find_boxes(probability: Array) -> list[Box]:
    """Lines of text from the detector's map [H, W], in reading order.

    The map shows the shrunken core of each line; a box grows back by its area over its perimeter.
    """
    height, width = probability.shape
    boxes = []
    for left, top, right, bottom in _components(probability > _PROBABILITY):
        if min(right - left, bottom - top) < 3:
            continue
        if probability[top:bottom, left:right].mean() < _BOX_SCORE:
            continue
        area, around = (right - left) * (bottom - top), 2 * (right - left + bottom - top)
        grow = math.ceil(area * _UNCLIP / around)
        box = Box(
            max(0, left - grow),
            max(0, top - grow),
            min(width, right + grow),
            min(height, bottom + grow),
        )
        if min(box.right - box.left, box.bottom - box.top) >= _SMALLEST:
            boxes.append(box)
    return _reading_order(boxes)


def _reading_order(boxes: list[Box]) -> list[Box]:
    ordered: list[Box] = []
    line: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.top + box.bottom):
        if line and box.top + box.bottom > 2 * line[0].bottom - 6:
            ordered += sorted(line, key=lambda box: box.left)
            line = []
        line.append(box)
    return ordered + sorted(line, key=lambda box: box.left)


def line_images(image: Any, boxes: list[Box]) -> Array:
    """The recognizer's inputs [lines, 3, 48, W], all padded to the width of the longest."""
    import numpy as np
    from PIL import Image

    widths = [
        max(1, round(LINE_HEIGHT * (box.right - box.left) / (box.bottom - box.top)))
        for box in boxes
    ]
    full = max(320, -(-max(widths, default=1) // _MULTIPLE) * _MULTIPLE)
    batch = np.zeros((len(boxes), 3, LINE_HEIGHT, full), np.float32)
    for place, (box, width) in enumerate(zip(boxes, widths, strict=True)):
        crop = image.crop((box.left, box.top, box.right, box.bottom))
        crop = crop.resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR)
        pixels = np.asarray(crop, np.float32) / np.float32(127.5) - np.float32(1.0)
        batch[place, :, :, :width] = pixels.transpose(2, 0, 1)[::-1]
    return batch


def decode_text(scores: Array, characters: list[str]) -> str:
    """The text of scores [T, classes]: the best class per step, without repeats and blanks."""
    best = scores.argmax(-1)
    text = []
    last = 0
    for index in best.tolist():
        if index not in (0, last):
            text.append(characters[index - 1] if index - 1 < len(characters) else " ")
        last = index
    return "".join(text)


def read_page(
    data: bytes,
    enlarge: int,
    detect: Callable[[Array], Array],
    recognize: Callable[[Array], Array],
    characters: list[str],
) -> list[str]:
    """The lines of text of a scanned page."""
    pixels, image = page_input(data, enlarge)
    boxes = find_boxes(detect(pixels)[0, 0])
    lines = line_images(image, boxes)
    return [decode_text(recognize(line[None])[0], characters) for line in lines]


def photo_input(data: bytes) -> Array:
    """The photograph's model wants [1, 224, 224, 3] blue green red less the mean.

    Its training pictures had been through a JPEG encoder at 256x256; so goes this one.
    """
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    small = image.resize((256, 256), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG")
    buffer.seek(0)
    pixels = np.asarray(Image.open(buffer).convert("RGB"), np.float32)[16:240, 16:240, ::-1]
    return np.ascontiguousarray((pixels - np.asarray(_MEAN_BGR, np.float32))[None])
