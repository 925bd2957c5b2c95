"""What stands around the demo's file-type model: bytes of a file in, a name out.

In: a file's content and the model's own configuration. Out: the model's input, and the name of the
type. Invariant: follows the configuration that ships beside the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["file_input", "name_type"]


def file_input(content: bytes, config: dict[str, Any]) -> Array:
    """First and last bytes without white space around them, padded: int32 [1, begin + end]."""
    import numpy as np

    block, padding = config["block_size"], config["padding_token"]
    begin_size, end_size = config["beg_size"], config["end_size"]
    begin = content[:block].lstrip()[:begin_size]
    end = content[-block:].rstrip()[-end_size:]
    tokens = np.full(begin_size + end_size, padding, np.int32)
    tokens[: len(begin)] = np.frombuffer(begin, np.uint8)
    tokens[begin_size + end_size - len(end) :] = np.frombuffer(end, np.uint8)
    return tokens[None]


def name_type(scores: Array, config: dict[str, Any]) -> tuple[str, float]:
    """The name of the best type, or `unknown` where the model is not sure, and its score."""
    labels = config["target_labels_space"]
    place = int(scores.argmax())
    label, score = labels[place], float(scores[place])
    if score < config["thresholds"].get(label, config["medium_confidence_threshold"]):
        return "unknown", score
    return config["overwrite_map"].get(label, label), score
