"""The real Cityscapes and VOC networks beside the project, published as checkpoints so that they can be teachers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.real_teachers.espnetv2 import ESPNetv2Spec, width_of
from benchmarks.real_teachers.tflite_graph import GraphSpec
from pipelines.labels import LabelSpace
from seg_models.checkpoints import save_model
from seg_models.outputs import SegModel
from seg_models.spec import ModelSpec

CITYSCAPES = LabelSpace(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )
)  # fmt: skip
VOC = LabelSpace(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    background=0,
)  # fmt: skip

CAMVID_OF_CITYSCAPES = {
    "road": "Road", "sidewalk": "Pavement", "building": "Building", "wall": "Building", "fence": "Fence",
    "pole": "Pole", "traffic light": "SignSymbol", "traffic sign": "SignSymbol", "vegetation": "Tree",
    "terrain": "Tree", "sky": "Sky", "person": "Pedestrian", "rider": "Bicyclist", "car": "Car", "truck": "Car",
    "bus": "Car", "train": "Car", "motorcycle": "Bicyclist", "bicycle": "Bicyclist",
}  # fmt: skip


def teachers_folder(shared_data: Path) -> Path:
    """Where the weights lie."""
    return shared_data / "weights" / "segmentation-teachers"


def publish_graph(folder: Path, *, name: str, shared_data: Path, space: LabelSpace) -> str:
    """Publish a DeepLab graph; returns the checkpoint's folder."""
    weights = load_file(teachers_folder(shared_data) / f"{name}.safetensors")
    graph = json.loads((teachers_folder(shared_data) / f"{name}.graph.json").read_text())
    spec = GraphSpec(
        input=graph["input"],
        size=tuple(graph["shape"][1:3]),
        ops=tuple(graph["ops"]),
        shapes={key: tuple(value.shape) for key, value in weights.items()},
    )
    model = spec.build(space.num_classes)
    model.load_state_dict({f"layers.{key}": value.float() for key, value in weights.items()})
    return _publish(folder, model, spec, space)


def publish_espnet(folder: Path, *, name: str, shared_data: Path, space: LabelSpace) -> str:
    """Publish an ESPNetv2; returns the checkpoint's folder."""
    state = load_file(teachers_folder(shared_data) / f"{name}.safetensors")
    spec = ESPNetv2Spec(width=width_of(state), num_outputs=len(state["bu_dec_l4.merge_layer.3.bias"]))
    model = spec.build(space.num_classes)
    model.load_state_dict(state)
    return _publish(folder, model, spec, space)


def _publish(folder: Path, model: SegModel, spec: ModelSpec, space: LabelSpace) -> str:
    save_model(folder, model=model, spec=spec, label_space=space.model_dump(mode="json"))
    return str(folder)


def camvid_of_cityscapes(camvid: LabelSpace) -> NDArray[np.uint8]:
    """CamVid's index of every Cityscapes index, as a lookup table."""
    return np.array([camvid.names.index(CAMVID_OF_CITYSCAPES[name]) for name in CITYSCAPES.names], np.uint8)
