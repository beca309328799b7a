"""trainer/optimizers.py, trainer/schedules.py: groups, sharp steps, averages and schedules against formulas."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR, StepLR

from models import low_rank
from models_factory import MultiLabelModel
from trainer import optimizers, schedules
from trainer.schedules import Plan

STEPS_PER_EPOCH, NUM_EPOCHS = 5, 6


def make_model(backbone: nn.Module | None = None) -> MultiLabelModel:
    """A backbone with BatchNorm that gives (B, 4, 2, 2), and a linear head; in float64."""
    torch.manual_seed(0)
    backbone = backbone or nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    return MultiLabelModel(backbone, nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (0.5,) * 3, (0.5,) * 3).double()


def make_images(seed: int = 0) -> Tensor:
    return torch.randint(0, 255, (4, 3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def have_same_bits(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


# ---- optimizers ----

REFERENCES: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda *args, **options: torch.optim.SGD(*args, **options, momentum=0.9, nesterov=True),
    "radam": torch.optim.RAdam,
}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("decays_all", [True, False])
def test_every_optimizer_is_torchs_with_a_rate_for_each_part(name: str, decays_all: bool) -> None:
    model, reference_model = make_model(), make_model()
    optimizer = optimizers.make_optimizer(name, model, 0.01, 0.1, 0.5, decays_all)
    reference = REFERENCES[name](
        [
            {
                "params": [parameter],
                "lr": 0.01 if key.startswith("backbone") else 0.1,
                "weight_decay": 0.5 if decays_all or parameter.dim() > 1 else 0.0,
            }
            for key, parameter in reference_model.named_parameters()
        ]
    )
    for step in range(8):  # RAdam's first steps are plain momentum
        for each, each_model in ((optimizer, model), (reference, reference_model)):
            each.zero_grad()
            nn.functional.softplus(each_model(make_images(step))).mean().backward()
            each.step()
    for key, value in reference_model.state_dict().items():
        # the fused kernel for CPUs computes some factors in float32
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_moves_both_groups_and_leaves_a_frozen_backbone(name: str) -> None:
    model = make_model()
    optimizer = optimizers.make_optimizer(name, model, 0.1, 0.1, weight_decay=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]
    model.freeze_backbone(True)
    before = copy_state(model)

    def step() -> None:
        optimizer.zero_grad()
        model(make_images()).square().sum().backward()
        optimizer.step()

    step()
    after = model.state_dict()
    assert torch.equal(after["backbone.0.weight"], before["backbone.0.weight"])
    assert not torch.equal(after["head.1.weight"], before["head.1.weight"])
    model.freeze_backbone(False)
    step()
    assert not torch.equal(model.state_dict()["backbone.0.weight"], before["backbone.0.weight"])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_state_in_another_memory_order_goes_on(name: str) -> None:
    def make() -> tuple[MultiLabelModel, torch.optim.Optimizer]:
        model = make_model(nn.Conv2d(3, 4, 3, padding=1)).to(memory_format=torch.channels_last)
        return model, optimizers.make_optimizer(name, model, 0.1, 0.1)

    def step(model: MultiLabelModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        nn.functional.softplus(model(make_images(seed))).mean().backward()
        optimizer.step()

    (model, optimizer), (resumed, again) = make(), make()
    step(model, optimizer, 0)
    resumed.load_state_dict(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        values |= {key: value.contiguous() for key, value in values.items()}
    again.load_state_dict(state)
    optimizers.lay_out_state(again)
    step(model, optimizer, 1)
    step(resumed, again, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def list_groups(model: MultiLabelModel, optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    """The parameters' names by the name of their group."""
    keys = {id(parameter): key for key, parameter in model.named_parameters()}
    return {group["name"]: {keys[id(p)] for p in group["params"]} for group in optimizer.param_groups}


def test_norms_biases_and_what_a_timm_network_exempts_can_go_without_decay() -> None:
    network = VisionTransformer(img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=0, global_pool="")
    model = make_model(nn.Sequential(network))
    optimizer = optimizers.make_optimizer("adamw", model, 1e-4, 1e-3, 0.3, decays_norms_and_biases=False)
    groups = list_groups(model, optimizer)
    assert list(groups) == ["backbone", "head", "backbone, no decay", "head, no decay"]
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1e-4, 0.3), (1e-3, 0.3), (1e-4, 0.0), (1e-3, 0.0)
    ]  # fmt: skip
    block = "backbone.0.blocks.0."
    matrices = {f"{block}{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert groups["backbone"] == {"backbone.0.patch_embed.proj.weight"} | matrices
    assert {"backbone.0.pos_embed", "backbone.0.cls_token", f"{block}norm1.weight"} < groups["backbone, no decay"]
    assert (groups["head"], groups["head, no decay"]) == ({"head.1.weight"}, {"head.1.bias"})
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_exempt_names_may_hold_wildcards_as_xcits_do() -> None:
    backbone = nn.ModuleDict({"pos_embed": nn.Linear(2, 2), "projection": nn.Linear(2, 2)})
    backbone.no_weight_decay = lambda: {"pos_embed.*"}
    assert optimizers.list_undecayed(make_model(backbone)) == {
        "backbone.pos_embed.weight", "backbone.pos_embed.bias", "backbone.projection.bias", "head.1.bias"
    }  # fmt: skip


def test_groups_without_parameters_and_the_heads_fixed_parameters_are_left_out() -> None:
    model = make_model(nn.Flatten())
    model.head[1].weight.requires_grad_(False)  # pyright: ignore[reportIndexIssue, reportCallIssue]
    optimizer = optimizers.make_optimizer("sgd", model, 1.0, 1.0, 0.1, decays_norms_and_biases=False)
    assert list_groups(model, optimizer) == {"head, no decay": {"head.1.bias"}}


def test_a_backbone_frozen_when_the_optimizer_is_made_is_in_it() -> None:
    model = make_model()
    model.freeze_backbone(True)
    groups = list_groups(model, optimizers.make_optimizer("sgd", model, 1.0, 1.0))
    assert groups["backbone"] == {key for key, _ in model.named_parameters() if key.startswith("backbone")}


def test_lower_layers_have_lower_rates_all_of_which_a_schedule_multiplies() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = make_model(backbone)
    optimizer = optimizers.make_optimizer("sgd", model, 0.1, 1.0, 0.3, False, layer_decay=0.5)
    lower, head = "backbone, 1 below the top", "head"
    assert list_groups(model, optimizer) == {
        "backbone": {"backbone.2.weight"},
        lower: {"backbone.0.weight"},
        head: {"head.1.weight"},
        "backbone, no decay": {"backbone.2.bias", "backbone.3.weight", "backbone.3.bias"},
        f"{lower}, no decay": {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias"},
        f"{head}, no decay": {"head.1.bias"},
    }
    schedule = schedules.make_schedule("cosine", optimizer, make_plan())
    optimizer.step()
    schedule.step()
    factor = optimizer.param_groups[0]["lr"] / 0.1
    assert 0.9 < factor < 1
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [r * factor for r in (0.1, 0.05, 1.0) * 2]
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3] * 3 + [0.0] * 3


def test_weights_beside_low_rank_parts_are_in_no_group() -> None:
    model = make_model()
    low_rank.adapt(model.backbone, 2)
    model.freeze_backbone(True)
    groups = list_groups(model, optimizers.make_optimizer("sgd", model, 1.0, 1.0))
    part = "backbone.0.parametrizations.weight.0"
    assert groups == {"backbone": {f"{part}.a", f"{part}.b"}, "head": {"head.1.weight", "head.1.bias"}}


# ---- sharpness ----


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**16])
def test_climb_goes_rho_along_the_gradient_and_comes_back_to_the_bit(loss_scale: float) -> None:
    model = make_model()
    (model(make_images()).square().sum() * loss_scale).backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    before = copy_state(model)
    with optimizers.climb(model, rho=0.05):
        assert all(parameter.grad is None for parameter in model.parameters())
        for key, parameter in model.named_parameters():
            expected = before[key].numpy() + 0.05 * gradients[key] / norm
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert all(have_same_bits(value, before[key]) for key, value in model.state_dict().items())


def test_a_sharpness_aware_step_is_the_formula() -> None:
    """w <- w - lr * 2 A (w + rho g / |g|) with g = 2 A w, for the loss w A w."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    model = nn.ParameterList([weight])
    curvature = torch.tensor([3.0, 1.0, 0.2])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    expected = weight.detach().double().numpy()
    for _ in range(4):
        gradient = 2 * curvature.double().numpy() * expected
        above = expected + 0.3 * gradient / np.sqrt((gradient**2).sum())
        expected = expected - 0.1 * 2 * curvature.double().numpy() * above
        optimizer.zero_grad()
        (curvature * weight.square()).sum().backward()
        with optimizers.climb(model, rho=0.3):
            (curvature * weight.square()).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5)


def test_climb_leaves_batchnorm_statistics_to_the_first_pass() -> None:
    model, once = make_model(), make_model()
    once(make_images())
    model(make_images()).sum().backward()
    with optimizers.climb(model, rho=1.0):
        model(make_images()).sum().backward()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in once.state_dict().items())
    model(make_images())
    assert model.state_dict()["backbone.1.num_batches_tracked"] == 2  # noted again afterwards


def test_climb_normalises_as_training_does_and_a_frozen_backbone_by_its_statistics() -> None:
    model = make_model()
    for frozen in (False, True):
        model.freeze_backbone(frozen)
        model(make_images()).square().sum().backward()
        before = copy_state(model)
        with optimizers.climb(model, rho=0.5):
            inside = model(make_images())
            moved = make_model()
            moved.load_state_dict(model.state_dict())
            moved.freeze_backbone(frozen)
            torch.testing.assert_close(inside, moved(make_images()))
        key = "backbone.0.weight"
        assert torch.equal(moved.state_dict()[key], before[key]) == frozen
        model.zero_grad()


def test_climb_stays_where_all_gradients_are_zero_and_comes_back_from_an_error() -> None:
    model = make_model()
    before = copy_state(model)
    (model(make_images()) * 0).sum().backward()
    with optimizers.climb(model, rho=0.05):
        assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
    model(make_images()).sum().backward()
    with pytest.raises(KeyboardInterrupt), optimizers.climb(model, rho=0.05):
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())


# ---- averages ----


def change(model: nn.Module, step: int) -> None:
    """Other weights and statistics, drawn from `step`, in all but the convolution."""
    generator = torch.Generator().manual_seed(step)
    for key, value in model.state_dict().items():
        if not key.startswith("backbone.0."):
            random = torch.randn(value.shape, generator=generator)
            value.copy_(random if value.is_floating_point() else torch.tensor(1000 + step))


def test_average_is_the_warmed_up_exponential_one_also_when_resumed() -> None:
    model = make_model()
    average = optimizers.MovingAverage(model, decay=0.4)
    before = copy_state(model)
    expected: dict[str, np.ndarray] = {}
    for step in range(8):
        change(model, step)
        average.update_parameters(model)
        decay = min(0.4, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, ... 0.4 from the sixth on
        for key, value in model.state_dict().items():
            new = value.double().numpy().copy()
            blended = expected[key] * decay + new * (1 - decay) if step else new
            expected[key] = blended if value.is_floating_point() else new
        if step == 3:
            file = io.BytesIO()
            torch.save(average.state_dict(), file)
            average = optimizers.MovingAverage(make_model(), decay=0.4)
            average.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    averaged = average.module.state_dict()
    for key, value in averaged.items():
        np.testing.assert_allclose(value.numpy(), expected[key], rtol=1e-9, atol=1e-12)
    assert averaged["backbone.1.num_batches_tracked"] == 1007
    assert not np.allclose(averaged["backbone.1.running_var"], model.state_dict()["backbone.1.running_var"])
    for key in ("backbone.0.weight", "backbone.0.bias"):  # frozen: not moved in the last bit
        assert have_same_bits(averaged[key], before[key])


# ---- schedules ----


def make_plan(**options: Any) -> Plan:
    return Plan([STEPS_PER_EPOCH] * NUM_EPOCHS, **options)


def run_schedule(name: str, plan: Plan) -> list[float]:
    """The backbone's rate, 0.5 at a factor of 1, at each of the plan's steps."""
    optimizer = optimizers.make_optimizer("sgd", make_model(), 0.5, 1.0)
    schedule = schedules.make_schedule(name, optimizer, plan)
    rates = []
    for _ in range(plan.num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(2 * rates[-1])
        optimizer.step()
        schedule.step()
    return rates


def run_torchs(make: Any, repeat: int = 1) -> list[float]:
    """The rate at each step of a schedule of torch's, each held for `repeat` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    reference: LRScheduler = make(optimizer)
    rates: list[float] = []
    for _ in range(STEPS_PER_EPOCH * NUM_EPOCHS // repeat):
        rates += [optimizer.param_groups[0]["lr"]] * repeat
        optimizer.step()
        reference.step()
    return rates


def test_multistep_is_torchs_counted_in_epochs() -> None:
    expected = run_torchs(lambda optimizer: MultiStepLR(optimizer, [2, 4], gamma=0.3), STEPS_PER_EPOCH)
    assert run_schedule("multistep", make_plan(milestones=(2, 4), decay_factor=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("step_epochs", [1, 2, 4, 40])
def test_step_is_torchs_counted_in_epochs(step_epochs: int) -> None:
    expected = run_torchs(lambda optimizer: StepLR(optimizer, step_epochs, gamma=0.3), STEPS_PER_EPOCH)
    assert run_schedule("step", make_plan(step_epochs=step_epochs, decay_factor=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("peak", [0.3, 0.31, 0.9, 0.02])
def test_onecycle_is_torchs(peak: float) -> None:
    total = STEPS_PER_EPOCH * NUM_EPOCHS
    expected = run_torchs(lambda optimizer: OneCycleLR(optimizer, 0.5, total, pct_start=peak, cycle_momentum=False))
    assert run_schedule("onecycle", make_plan(onecycle_peak=peak)) == pytest.approx(expected, rel=1e-9)


def test_onecycle_may_begin_at_its_peak() -> None:
    """Where torch divides by zero: a peak at the first step of all."""
    rates = run_schedule("onecycle", Plan([5, 5], onecycle_peak=0.1))
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)


def test_cosine_rises_in_a_line_and_falls_to_zero() -> None:
    rates = run_schedule("cosine", make_plan(warmup_epochs=1.0))
    assert rates[:6] == pytest.approx([0.5 * (step + 1) / 6 for step in range(5)] + [0.5])
    assert rates[5:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 25)) for step in range(25)])


def test_cosine_may_warm_up_to_the_end() -> None:
    rates = run_schedule("cosine", make_plan(warmup_epochs=5.99))  # rounded, all 30 steps: one must be left
    assert rates == pytest.approx([0.5 * (step + 1) / 30 for step in range(30)])


@pytest.mark.parametrize(
    ("num_epochs", "warmup_epochs", "lengths"),  # of x .1, x 1, x .1, x .01, x .001, in epochs
    [(85, 5, (5, 30, 20, 20, 10)), (10, 2, (2, 3, 2, 2, 1)), (3, 0, (0, 1, 0, 1, 1))],
)
def test_warmup_steps_is_system_2s_rule(num_epochs: int, warmup_epochs: int, lengths: tuple[int, ...]) -> None:
    rates = run_schedule("warmup_steps", Plan([2] * num_epochs, warmup_epochs=warmup_epochs))
    factors = (0.1, 1, 0.1, 0.01, 0.001)
    expected = [0.5 * factor for factor, length in zip(factors, lengths, strict=True) for _ in range(2 * length)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_schedule_resumes(name: str) -> None:
    plan = make_plan(milestones=(2, 4), step_epochs=2, warmup_epochs=1)
    rates = run_schedule(name, plan)
    assert len(set(rates)) > 2
    optimizer = optimizers.make_optimizer("sgd", make_model(), 0.5, 1.0)
    schedule = schedules.make_schedule(name, optimizer, plan)
    for _ in range(13):
        optimizer.step()
        schedule.step()
    state = copy.deepcopy({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
    resumed = optimizers.make_optimizer("sgd", make_model(), 0.5, 1.0)
    again = schedules.make_schedule(name, resumed, plan)
    resumed.load_state_dict(state["optimizer"])
    again.load_state_dict(state["schedule"])
    for rate in rates[13:]:
        assert resumed.param_groups[0]["lr"] == rate
        resumed.step()
        again.step()
