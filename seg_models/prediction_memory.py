"""How many looks may go through the network together within a limit of memory.

A prediction holds the images, the label maps, a tile of scores, and the cells of the looks that reach the rows which
are arg-maxed at the time; beside these the network works on some looks. Only the last depends on how many they are.

Shapes: N images of H W pixels, K classes, r c pixels of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seg_models.looks import View
from seg_models.parts.resample import strips
from seg_models.peak_memory import Forward, PassMemory, foresee

GB = 10**9
SLACK = 1.1
"""What allocators take beyond the tensors: blocks are rounded up, and freed ones do not fit the next (measured)."""
RESERVE_BYTES = 96 * 2**20
"""The same where little is held: code of the kernels, small buffers, holes of the heap (measured)."""
_TILE_COPIES = 6
"""Tiles of scores that exist at once: of one look, half enlarged, their probabilities, sums over looks and views, the
tile before."""
_PIXEL_BYTES = 4 + 4 + 2
"""Of a confidence, a label, and the label that is returned."""


class PredictionMemory:
    """Keeps a predictor within a limit.

    Args:
        model: in eval mode.
        forward: what is done with it and looks.
        device: where it computes.
        limit_gb: 10⁹ bytes that a prediction may take beside the weights.
    """

    def __init__(self, model: nn.Module, forward: Forward, *, device: torch.device, limit_gb: float) -> None:
        self._model, self._forward, self._device = model, forward, device
        self.limit_gb = limit_gb
        self._passes: dict[tuple[int, tuple[int, int], torch.dtype], PassMemory] = {}
        self._known: dict[tuple[torch.Size, torch.dtype], int] = {}

    def looks_per_pass(self, images: Tensor, views: Sequence[View], *, tile: tuple[int, int]) -> int:
        """The largest number of looks that stays under the limit.

        Args:
            images: (N, 3, H, W).
            views: of every image; the same for images of the same size.
            tile: largest rows and columns of a tile of scores (K, r, c).

        Raises:
            ValueError: one look alone takes more (the message tells the smallest limit that works), or the memory of
                the network cannot be foreseen.
        """
        key = (images.shape, images.dtype)
        if key not in self._known:
            self._known[key] = self._search(images, views, tile)
        return self._known[key]

    def needed_bytes(self, images: Tensor, views: Sequence[View], *, tile: tuple[int, int], num_looks: int) -> int:
        """What a prediction takes if so many looks go through the network together."""
        num_images, _, height, width = images.shape
        held = images.nbytes + num_images * height * width * _PIXEL_BYTES
        cells = max(self._cell_bytes(views, rows, images.dtype) for rows in strips(height, rows=tile[0]))
        num_classes = self._foreseen(1, views[0], images.dtype).scores_shape[1]
        tiles = _TILE_COPIES * 4 * num_classes * min(tile[0], height) * min(tile[1], width)
        network = max(
            self._foreseen(min(num_looks, num_images * len(view.columns)), view, images.dtype).peak_bytes
            for view in views
        )
        return math.ceil(SLACK * (held + num_images * cells + tiles + network)) + RESERVE_BYTES

    def _search(self, images: Tensor, views: Sequence[View], tile: tuple[int, int]) -> int:
        low, high = 1, len(images) * max(len(view.columns) for view in views)
        least = self.needed_bytes(images, views, tile=tile, num_looks=low)
        if least > self.limit_gb * GB:
            raise ValueError(self._too_little(views, least))
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.needed_bytes(images, views, tile=tile, num_looks=middle) <= self.limit_gb * GB
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _cell_bytes(self, views: Sequence[View], strip: slice, dtype: torch.dtype) -> int:
        """Bytes of the float32 scores of all looks at one image that reach a strip."""
        total = 0
        for view in views:
            num_rows = sum(part.covered.start < strip.stop and part.covered.stop > strip.start for part in view.rows)
            total += 4 * math.prod(self._foreseen(1, view, dtype).scores_shape) * num_rows * len(view.columns)
        return total

    def _foreseen(self, number: int, view: View, dtype: torch.dtype) -> PassMemory:
        """What a forward pass on some looks at images of a type takes."""
        dtype = torch.float32 if view.is_resized else dtype
        key = (number, view.size, dtype)
        if key not in self._passes:
            shape = (number, 3, *view.size)
            try:
                found = foresee(self._model, self._forward, shape=shape, dtype=dtype, device=self._device)
            except ValueError as error:
                raise ValueError(f"predictor.memory_gb: {error}; leave it out") from error
            self._passes[key] = found
        return self._passes[key]

    def _too_little(self, views: Sequence[View], least_bytes: int) -> str:
        largest = max(views, key=lambda view: math.prod(view.size))
        image = f"{largest.rows[0].pixels}×{largest.columns[0].pixels}"
        look = "the whole of it" if largest.num_looks == 1 else f"one window of {'×'.join(map(str, largest.size))}"
        return (
            f"predictor.memory_gb = {self.limit_gb:g} is too small for an image of {image} pixels, {look} at a time; "
            f"the smallest that works is {math.ceil(least_bytes / GB * 1000) / 1000:g}, less with a smaller "
            "predictor.window"
        )
