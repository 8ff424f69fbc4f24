"""Where images and labels come from."""

from typing import Annotated

from pydantic import Field

from pipelines.sources.base import Listing, Sample, Source
from pipelines.sources.camvid import CamVidSource
from pipelines.sources.cityscapes import CityscapesSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.imagenet import ImageNetSource
from pipelines.sources.voc import VocSource

AnySource = Annotated[
    FolderSource | CamVidSource | ImageNetSource | CityscapesSource | VocSource,
    Field(discriminator="kind"),
]
"""Settings of any source; `kind` says which."""

__all__ = [
    "AnySource",
    "CamVidSource",
    "CityscapesSource",
    "FolderSource",
    "ImageNetSource",
    "Listing",
    "Sample",
    "Source",
    "VocSource",
]
