"""Where images and labels come from."""

from typing import Annotated

from pydantic import Field

from pipelines.sources.ade20k import Ade20kSource
from pipelines.sources.base import Listing, Sample, Source
from pipelines.sources.camvid import CamVidSource
from pipelines.sources.cityscapes import CityscapesSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.imagenet import ImageNetSource
from pipelines.sources.lip import LipSource
from pipelines.sources.mapillary import MapillarySource
from pipelines.sources.pascal_context import PascalContextSource
from pipelines.sources.voc import VocSource

AnySource = Annotated[
    FolderSource
    | CamVidSource
    | ImageNetSource
    | CityscapesSource
    | Ade20kSource
    | VocSource
    | PascalContextSource
    | MapillarySource
    | LipSource,
    Field(discriminator="kind"),
]
"""Settings of any source; `kind` says which."""

__all__ = [
    "Ade20kSource",
    "AnySource",
    "CamVidSource",
    "CityscapesSource",
    "FolderSource",
    "ImageNetSource",
    "LipSource",
    "Listing",
    "MapillarySource",
    "PascalContextSource",
    "Sample",
    "Source",
    "VocSource",
]
