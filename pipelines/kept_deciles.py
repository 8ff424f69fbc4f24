"""Deciles kept beside pseudo-labels: with them another rule for the label needs no new explanations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codecs import LABEL_CODECS, best_decile_codec, check_decile_codec, encode_deciles
from pipelines.tables import Dataset
from seg_models.ranks import deciles


def codecs_of_pssl(dataset: Dataset, labels: str, *, keep_deciles: bool) -> dict[str, str]:
    """Codecs of a label set of pseudo-labels; one that was begun keeps the codec of its deciles.

    Raises:
        ValueError: the label set has a codec that this version does not know, or this machine has not.
    """
    if not keep_deciles:
        return dict(LABEL_CODECS)
    begun = dataset.labels(labels).info["codecs"] if labels in dataset.label_sets() else {}
    codec = begun.get("deciles") or best_decile_codec()
    check_decile_codec(codec)
    return {**LABEL_CODECS, "deciles": codec}


class KeptDeciles:
    """The deciles of the images of a shard.

    Args:
        codec: None keeps none.
    """

    def __init__(self, codec: str | None) -> None:
        if codec is not None:
            check_decile_codec(codec)
        self._codec = codec
        self._codes: dict[str, bytes] = {}

    def keep(self, image_id: str, scores: NDArray[np.floating[Any]]) -> None:
        """Keep the deciles of an image's scores (H, W)."""
        if self._codec is not None:
            self._codes[image_id] = encode_deciles(deciles(scores), codec=self._codec)

    def column(self, ids: Sequence[str]) -> list[bytes | None]:
        """The codes of a shard's images, None where an image has none; the next shard begins anew."""
        codes, self._codes = self._codes, {}
        return [codes.get(image_id) for image_id in ids]
