"""trainer/step.py: parts add up to the batch, a bad step leaves no trace, a full memory halves the parts."""

from __future__ import annotations

import csv
import json
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import config
import distributed
import models_factory
import overrides
import training
from dataset import batches
from dataset.batches import Batch
from dataset.table import Table
from models import recomputation
from trainer import build
from trainer.build import Trainer
from trainer.step import Statistics, TakenStep
from utils import InputError

TARGETS = np.array(
    [[1, 0, 0], [0, 1, -1], [1, 1, 0], [-1, -1, -1], [0, 0, 1], [1, 0, 1], [0, -1, 1], [1, 1, 1]], dtype=np.int8
)


def make_trainer(line: str = "") -> Trainer:
    """In float64, and without BatchNorm unless `line` names another model, so that parts add up exactly."""
    overrides.apply(
        "--MODEL_NAME squeezenet1_1 --HEAD linear --PRETRAINED_WEIGHTS None --FREEZE_BACKBONE 0 --IMAGE_SIZE 64 "
        f"--OPTIMIZER sgd --HEAD_BASE_LR 0.1 --BACKBONE_BASE_LR 0.1 {line}".split(),
        config,
    )
    torch.manual_seed(0)
    table = Table([f"{i}.jpg" for i in range(8)], TARGETS, ("a", "b", "c"))
    trainer = build.make_trainer(table, torch.device("cpu"))
    trainer.model.double().train()
    if trainer.average:
        trainer.average.double()
    return trainer


def make_batch(num_images: int = 8) -> Batch:
    images = torch.randint(0, 256, (num_images, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator())
    return Batch(images, batches.as_float_targets(TARGETS[:num_images]), torch.linspace(0.5, 2, num_images))


def take_step(trainer: Trainer, network: nn.Module, batch: Batch, epoch: int, step: int) -> TakenStep:
    """A step of a process that is alone."""
    return training.take_step(trainer, network, batch, epoch, step, len(batch.images))


def copy_state(trainer: Trainer) -> dict[str, Tensor]:
    parts = {"model": trainer.model, "objective": trainer.objective, "average": trainer.average}
    return {f"{n}.{k}": v.clone() for n, p in parts.items() if p for k, v in p.state_dict().items()}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sam", [0, 0.05])
def test_parts_add_up_to_the_batch(reduction: str, sam: float) -> None:
    """Parts of 3, 3 and 2 images, with unlike numbers of known labels, move the weights as the whole batch does."""
    states, losses = [], []
    for size in (0, 3):
        trainer = make_trainer(f"--LOSS_REDUCTION {reduction} --MICRO_BATCH_SIZE {size} --SAM_RHO {sam}")
        before = copy_state(trainer)
        losses.append(take_step(trainer, trainer.model, make_batch(), 1, 0).loss)
        states.append(copy_state(trainer))
    assert any(not torch.equal(states[0][name], before[name]) for name in before)
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-10, rtol=1e-8)
    targets, weights = make_batch().targets, make_batch().weights
    torch.testing.assert_close(*losses)
    trainer = make_trainer()
    known = (~targets.isnan()) * weights[:, None]
    entries = nn.functional.binary_cross_entropy_with_logits(
        trainer.model(make_batch().images),
        targets.nan_to_num(),
        pos_weight=trainer.objective.loss.state_dict()["pos_weight"],
        reduction="none",
    )
    torch.testing.assert_close(losses[0], (entries * known).sum() / known.sum())


def test_no_part_has_one_image() -> None:
    trainer, sizes = make_trainer("--MICRO_BATCH_SIZE 3"), list[int]()
    trainer.model.register_forward_pre_hook(partial(note_size, sizes))
    take_step(trainer, trainer.model, make_batch(7), 1, 0)
    assert sizes == [3, 2, 2]


def note_size(sizes: list[int], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    sizes.append(len(inputs[0]))


@pytest.mark.parametrize(("num_images", "expected"), [(15, 3), (16, 3), (13, 2), (9, 2), (5, 1)])
def test_processes_agree_on_the_parts_of_a_step_without_an_exchange(
    num_images: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes the second may have an image less. A step exchanges the number of entries alone."""
    trainer, exchanged = make_trainer("--MICRO_BATCH_SIZE 3"), []
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **options: exchanged.append(tensor.numel()))
    for share in (math.ceil(num_images / 2), num_images // 2):
        sizes: list[int] = []
        hook = trainer.model.register_forward_pre_hook(partial(note_size, sizes))
        training.take_step(trainer, trainer.model, make_batch(share), 1, 0, num_images)
        hook.remove()
        assert len(sizes) == expected
        assert min(sizes) >= 2
        assert sum(sizes) == share
    assert exchanged == [1, 1]


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_a_gradient_is_shortened_to_the_limit(limit: float) -> None:
    """The step of plain SGD's first momentum step: 1.9 x rate x gradient."""
    trainer, free = make_trainer(f"--CLIP_GRADIENT_NORM {limit}"), make_trainer()
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    for one in (trainer, free):
        take_step(one, one.model, make_batch(), 1, 0)
    moved, expected = (
        torch.cat([(new - old).flatten() for new, old in zip(one.model.parameters(), before, strict=True)])
        for one in (trainer, free)
    )
    length = expected.norm() / 0.19
    assert (length > limit) == (limit < 1)
    torch.testing.assert_close(
        moved, expected * min(1, limit / length), atol=1e-12, rtol=1e-6
    )  # torch adds 1e-6 to the length


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "radam"])
def test_a_step_that_is_not_finite_leaves_no_trace_but_in_the_schedule(name: str) -> None:
    """Neither in the middle of a run nor at its start, where the optimizer has no state yet."""
    line = f"--MODEL_NAME mobilenet_v2 --HEAD linear_bn --EMA_DECAY 0.9 --ENTRY_WEIGHTS ghm --OPTIMIZER {name}"
    trainer, plain = make_trainer(line), make_trainer(line)  # whose rates are the same for six steps
    bad = make_batch()
    bad = bad._replace(images=bad.images.float().index_fill(0, torch.tensor([2]), torch.inf))
    for step, is_good in enumerate((False, True, True, False, True)):
        before = copy_state(trainer)
        taken = take_step(trainer, trainer.model, make_batch() if is_good else bad, 1, step)
        assert taken.is_finite == is_good
        assert trainer.schedule.last_epoch == step + 1
        after = copy_state(trainer)
        same = [key for key in before if torch.equal(after[key], before[key])]
        assert len(same) == len(before) if not is_good else len(same) < len(before)
        if is_good:
            take_step(plain, plain.model, make_batch(), 1, step)
    expected = copy_state(plain)
    assert expected["objective.entry_weights.ghm.counts"].sum() > 0
    assert any("running_mean" in key for key in expected)
    for key, value in copy_state(trainer).items():
        assert torch.equal(value, expected[key]), key
    momenta, expected_momenta = (one.optimizer.state_dict()["state"] for one in (trainer, plain))
    for index, values in momenta.items():
        for key, value in values.items():
            assert torch.equal(value, expected_momenta[index][key]), key


def test_statistics_are_kept_and_put_back_together() -> None:
    """Buffers of several types and shapes become views of one tensor a type, keep their values, and come back."""
    buffers = [torch.arange(5.0), torch.tensor(7), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    buffers += [torch.randn(3, 200)[:, ::2], torch.tensor([1.0, 2.0]).expand(40, 2)]  # parts of other tensors
    before = [buffer.clone() for buffer in buffers]
    statistics = Statistics(buffers)
    assert len(statistics.current) == 2
    assert len({buffer.untyped_storage().data_ptr() for buffer in buffers}) == 2
    statistics.keep()
    for buffer in buffers:
        buffer.add_(1)
    statistics.put_back(torch.tensor(False))
    assert all(torch.equal(new, old + 1) for new, old in zip(buffers, before, strict=True))
    statistics.put_back(torch.tensor(True))
    assert all(torch.equal(new, old) for new, old in zip(buffers, before, strict=True))


WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
    "aten::bincount",
}


@pytest.mark.parametrize("loss", build.losses.LOSSES)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_reads_nothing_back(loss: str, frozen: bool) -> None:
    """On a GPU each of the operations in WAITS would let the processor wait for it."""
    line = (
        f"--MODEL_NAME resnet18 --HEAD linear_bn --LOSS {loss} --CLIP_GRADIENT_NORM 1 --EMA_DECAY 0.9 --OPTIMIZER adam"
    )
    line += " --ENTRY_WEIGHTS ghm,ohem,threshold" if loss == "bce_with_logits" else ""
    trainer = make_trainer(f"{line} {'--HEAD cosine' if loss == 'asymmetric_angular' else ''}")
    trainer.model.freeze_backbone(frozen)
    for step in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            taken = take_step(trainer, trainer.model, make_batch(), 1, step)
        events = profiled.events()
        assert events is not None
        waits = [list_callers(event) for event in events if event.name in WAITS]
        # the optimizer's kernel for CPUs reads the number of its step, which lies on the CPU
        assert [callers for callers in waits if "aten::_fused_adam_" not in callers] == []
        assert taken.is_finite


def test_little_is_done_beside_forward_backward_and_optimizer() -> None:
    """A ResNet-50 has 161 buffers: to keep each by itself would be as many operations."""
    trainer = make_trainer("--MODEL_NAME resnet50 --HEAD linear_bn --OPTIMIZER adam")
    take_step(trainer, trainer.model, make_batch(), 1, 0)  # the first one prepares
    for module in (trainer.model, trainer.objective):
        module.forward = name_range("forward", module.forward)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        take_step(trainer, trainer.model, make_batch(), 1, 1)
    events = profiled.events()
    assert events is not None
    assert count_beside(events) < 40


def name_range(name: str, function: Any) -> Any:
    """`function`, whose operations the profiler shows as a part of `name`."""

    def call(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return call


def count_beside(events: Any) -> int:
    """How many operations no forward or backward pass, no optimizer and no other operation called."""
    count = 0
    for event in events:
        callers = list_callers(event)
        is_called = any(name.startswith(("aten::", "forward", "autograd::", "Optimizer.step")) for name in callers)
        count += event.name.startswith("aten::") and not is_called
    return count


def list_callers(event: Any) -> list[str]:
    """The names of the operations and ranges that an event of the profiler is a part of, the innermost first."""
    callers, caller = [], event.cpu_parent
    while caller is not None:
        callers.append(caller.name)
        caller = caller.cpu_parent
    return callers


def test_steps_that_overflow_are_said_and_counted(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scale of 2^60 makes any gradient infinite in half precision, and two steps halve it to 2^58 only."""
    make_scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **named: make_scaler(*a, **named, init_scale=2.0**60))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's, of a schedule that moves before the optimizer
        training.main([*small_run, "--NUM_EPOCHS=1", "--TRAIN_BATCH_SIZE=16", "--MIXED_PRECISION=fp16"])
    printed = capsys.readouterr()
    assert "epoch   1 all     no step: all 2 overflowed in half precision  val loss " in printed.out
    (log,) = tmp_path.glob("trained_models/*/*/log.csv")
    (row,) = csv.DictReader(log.open())
    shown = [row[name] for name in ("train_loss", "steps", "steps_left_out", "steps_overflowed")]
    assert shown == ["", "0", "2", "2"]
    result = json.loads((log.parent / "train_result.json").read_text())
    assert result["steps_left_out"] == 2
    findings = " ".join(result["findings"])
    assert "no step of an epoch was taken, since all 2 overflowed in half precision" in findings
    assert "nothing was learned: no step of the run was taken" in findings
    last = torch.load(log.parent / "last.pt", weights_only=True)["training_state"]
    assert last["engine"]["schedule"]["last_epoch"] == 2
    assert last["engine"]["scaler"]["scale"] == 2.0**58


def test_the_schedule_counts_steps_that_are_left_out_at_the_start() -> None:
    """Rates after two left-out steps and a taken one are those of the third step."""
    trainer, plain = make_trainer("--SCHEDULE onecycle"), make_trainer("--SCHEDULE onecycle")
    bad = make_batch()
    bad = bad._replace(images=bad.images.float() * torch.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in range(3):
            taken = take_step(trainer, trainer.model, make_batch() if step == 2 else bad, 1, step)
            assert taken.is_finite == (step == 2)
            take_step(plain, plain.model, make_batch(), 1, step)
    assert trainer.schedule.last_epoch == plain.schedule.last_epoch == 3
    assert trainer.read_rates() == plain.read_rates()
    assert trainer.read_rates() != make_trainer("--SCHEDULE onecycle").read_rates()


def test_a_full_memory_halves_the_parts_and_changes_nothing_else() -> None:
    trainer, plain = make_trainer(), make_trainer("--MICRO_BATCH_SIZE 2")
    sizes = []

    def run_out(_: nn.Module, inputs: Any) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.model.register_forward_pre_hook(run_out)
    for one in (trainer, plain):
        take_step(one, one.model, make_batch(), 1, 0)
        take_step(one, one.model, make_batch(), 1, 1)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    for one, two in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
    trainer.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(InputError, match="memory is full with two images: lower IMAGE_SIZE"):
        take_step(trainer, trainer.model, make_batch(), 1, 2)


def test_so_many_bad_steps_end_the_run_and_keep_the_batch(
    small_run: list[str],
    tmp_path: Path,
    fails: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no = torch.tensor(False)
    monkeypatch.setattr(training, "take_step", lambda *arguments: TakenStep(torch.tensor(torch.nan), no, no))
    message = fails(training.main, [*small_run, "--NON_FINITE_LIMIT=3"])
    assert "3 steps had a loss or gradient that is not finite; the last batch is in " in message
    (path,) = tmp_path.glob("trained_models/*/*/non_finite_batch_0.pt")
    kept = torch.load(path, weights_only=True)
    assert (kept["epoch"], kept["step"], kept["images"].shape, kept["targets"].shape) == (1, 2, (8, 3, 32, 32), (8, 3))
    assert capsys.readouterr().err.count("the gradient is not finite, the step is left out") == 3


# ---- activation checkpointing ----


def test_an_average_runs_its_own_blocks() -> None:
    """A copy of a model whose blocks forget computes with the copy's weights."""
    trainer = make_trainer("--MODEL_NAME resnet18 --ACTIVATION_CHECKPOINTING 1 --EMA_DECAY 0.9")
    assert trainer.average
    images, average = make_batch().images, trainer.average.module.eval()
    before = average(images)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
    assert torch.equal(average(images), before)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "timm/vit_tiny_patch16_224", "densenet121"])
def test_forgetting_activations_changes_neither_gradients_nor_statistics(name: str) -> None:
    """And keeps less: what backward needs is measured in bytes that autograd saves."""
    results = []
    for forgets in (False, True):
        torch.manual_seed(0)
        model = models_factory.make_model(name, 3, "linear", image_size=64)
        if forgets:
            recomputation.checkpoint_activations(model.backbone)
        model.train()
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator())).square().sum()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        held = sum(size for place, size in kept.items() if place not in own)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((held, gradients, [buffer.clone() for buffer in model.buffers()]))
    (held, gradients, buffers), (held_less, same_gradients, same_buffers) = results
    assert held_less < 0.6 * held
    assert len(gradients) == len(same_gradients) > 10
    for one, two in zip([*gradients, *buffers], [*same_gradients, *same_buffers], strict=True):
        torch.testing.assert_close(one, two)
