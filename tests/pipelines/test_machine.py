"""Which machines may work on a label set; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from pipelines.autolabel_worker import TeacherPlan, make_teacher_plan
from pipelines.labels import LabelSpace
from pipelines.machine import check_machine
from pipelines.pssl_plan import LabelPlan, make_plan
from pipelines.pssl_plan import check_machine as check_pssl_machine
from pipelines.pssl_spec import PsslSpec
from pipelines.published import Checkpoint
from seg_models.predictor import PredictorSpec

Device = Literal["cpu", "cuda"]


def pssl_plan(device: Device) -> LabelPlan:
    return make_plan(PsslSpec(), (), images="x", device=device)


def teacher_plan(device: Device) -> TeacherPlan:
    teacher = Checkpoint("nowhere", "0" * 64, LabelSpace(names=("a", "b")), "pspnet", {})
    return make_teacher_plan(teacher, predictor=PredictorSpec(), device=device, threads=1, images="x")


KINDS = pytest.mark.parametrize(
    ("plan_for", "check"), [(pssl_plan, check_pssl_machine), (teacher_plan, check_machine)], ids=["pssl", "autolabel"]
)


def on_cpu(monkeypatch: pytest.MonkeyPatch, name: str, *, gpu: bool, units: tuple[str, ...] = ()) -> None:
    """Be a machine with this CPU, with or without a GPU."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(units, True))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)


@KINDS
def test_another_cpu_than_the_drivers_is_refused_when_labels_are_made_on_the_cpu(
    plan_for: Callable[[Device], Any], check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu(monkeypatch, "AVX512", gpu=False)
    plan = plan_for("cpu")
    check(plan)
    on_cpu(monkeypatch, "AVX2", gpu=True)
    with pytest.raises(ValueError, match=r"cannot follow the label plan \(instruction_set is AVX2, .* says AVX512\)"):
        check(plan)


@KINDS
def test_another_cpu_than_the_drivers_is_accepted_when_labels_are_made_on_gpus(
    plan_for: Callable[[Device], Any], check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu(monkeypatch, "AVX512", gpu=False)  # a head node often has no GPU
    plan = plan_for("cuda")
    on_cpu(monkeypatch, "AVX2", gpu=True)
    check(plan)
    # A driver with another CPU continues the label set: it is the same plan.
    assert plan_for("cuda") == plan


@KINDS
def test_a_machine_without_a_gpu_is_refused_when_labels_are_made_on_gpus(
    plan_for: Callable[[Device], Any], check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu(monkeypatch, "AVX512", gpu=False)
    with pytest.raises(ValueError, match=r"cannot follow the label plan \(no GPU, the plan says cuda\)"):
        check(plan_for("cuda"))


def test_the_plan_of_a_cpu_label_set_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "AVX2", gpu=True)
    assert pssl_plan("cpu").instruction_set == teacher_plan("cpu").instruction_set == "AVX2"


def test_a_cpu_without_the_drivers_bfloat16_units_is_another_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "AVX512", gpu=False, units=("avx512_bf16",))
    plan = pssl_plan("cpu")
    assert plan.instruction_set == "AVX512+avx512_bf16"
    on_cpu(monkeypatch, "AVX512", gpu=False)
    with pytest.raises(ValueError, match=r"instruction_set is AVX512, the plan says AVX512\+avx512_bf16"):
        check_pssl_machine(plan)
