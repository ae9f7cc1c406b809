from dataclasses import replace

import pytest
import torch
from torch import nn

from detect.config import TrainingOptions, config_from_dict
from detect.errors import UserError
from detect.training.optimization import make_optimizer, schedule

OPTIONS = TrainingOptions(
    epochs=4,
    learning_rate=0.1,
    weight_decay=0.01,
    bias_lr_factor=2.0,
    warmup_steps=0,
    schedule="constant",
    milestones=(2, 3),
)


def rates(steps: int, **options) -> list[float]:
    """The learning rate of each of the first steps; an epoch has ten."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = schedule(optimizer, replace(OPTIONS, **options), steps_per_epoch=10)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_weights_biases_and_norms_are_three_groups():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    group = {
        id(parameter): group for group in make_optimizer(model, OPTIONS).param_groups for parameter in group["params"]
    }
    settings = {name: (group[id(p)]["lr"], group[id(p)]["weight_decay"]) for name, p in model.named_parameters()}
    weight, scale, bias = (0.1, 0.01), (0.1, 0.0), (0.2, 0.0)
    assert settings == {
        "0.weight": weight, "0.bias": bias, "1.weight": scale, "1.bias": bias,
        "2.weight": scale, "2.bias": bias, "3.weight": weight, "3.bias": bias,
    }  # fmt: skip


def test_what_is_frozen_is_in_no_group():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    parameters = [parameter for group in make_optimizer(model, OPTIONS).param_groups for parameter in group["params"]]
    assert {id(one) for one in parameters} == {id(one) for one in model[1].parameters()}


def test_one_step_by_hand():
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 3.0), nn.init.constant_(layer.bias, 1.0)
    optimizer = make_optimizer(layer, OPTIONS)
    layer(torch.tensor([2.0])).backward()  # d/dw = 2, d/db = 1
    optimizer.step()
    assert layer.weight.item() == pytest.approx(3 - 0.1 * (2 + 0.01 * 3))
    assert layer.bias.item() == pytest.approx(1 - 0.2 * 1)


KINDS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.7, "nesterov": False}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.7}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_optimizer_is_torchs_of_its_name(name):
    kind, values = KINDS[name]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = make_optimizer(model, replace(OPTIONS, optimizer=name, momentum=0.7))
    assert type(optimizer) is kind
    # `fused` changes how a step is computed, not its result.
    chosen = {"lr", "params", "weight_decay", "fused", *values}
    default = {key: value for key, value in kind([nn.Parameter(torch.zeros(()))]).defaults.items() if key not in chosen}
    for group in optimizer.param_groups:
        assert {key: group[key] for key in (*values, *default)} == values | default
    decays = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert decays == [(1, 0.01), (2, 0.0), (1, 0.0)]  # the weight; two biases; the norm's scale


@pytest.mark.parametrize("name", KINDS)
def test_one_step_lowers_a_loss(name):
    layer = nn.Linear(3, 1)
    values = torch.tensor([[1.0, -2.0, 3.0]])
    optimizer = make_optimizer(layer, replace(OPTIONS, optimizer=name, learning_rate=1e-3))
    before = (layer(values) - 5).square().sum()
    before.backward()
    optimizer.step()
    assert (layer(values) - 5).square().sum() < before


def test_nesterovs_momentum_is_torchs():
    optimizer = make_optimizer(nn.Linear(1, 1), replace(OPTIONS, nesterov=True))
    assert all(group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize("training", [{"momentum": 0}, {"optimizer": "adam"}])
def test_nesterov_needs_sgd_with_momentum(training):
    with pytest.raises(UserError, match=r"^a\.yaml: training: .*nesterov is for sgd with momentum; leave it out"):
        config_from_dict({"training": {"nesterov": True, **training}}, "a.yaml")


def test_warm_up_rises_by_equal_steps():
    seen = rates(7, warmup_steps=4, warmup_start=0.2)
    assert seen == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_warm_up_can_be_given_in_epochs():
    assert rates(7, warmup_epochs=0.4, warmup_start=0.2) == rates(7, warmup_steps=4, warmup_start=0.2)


def test_quadratic_warm_up_by_hand():
    seen = rates(5, warmup_steps=4, warmup_start=0.0, warmup_curve="quadratic")
    assert seen == pytest.approx([1 / 16, 4 / 16, 9 / 16, 1.0, 1.0])


def test_steps_divide_by_ten_at_the_milestones():
    seen = rates(40, schedule="steps", milestones=(2, 3.5))
    assert seen == pytest.approx([1.0] * 20 + [0.1] * 15 + [0.01] * 5)


def test_cosine_falls_from_one_to_zero():
    seen = rates(41, schedule="cosine")
    assert [seen[place] for place in (0, 10, 20, 30, 40)] == pytest.approx(
        [1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0.0], abs=1e-12
    )


def test_cosine_stays_at_its_end_in_closing_epochs():
    """Of four epochs one is a closing one: the middle of the cosine is step 15 of 30."""
    seen = rates(40, schedule="cosine", final_lr_factor=0.2, closing_epochs=1)
    assert [seen[place] for place in (0, 15)] == pytest.approx([1.0, 0.6])
    assert seen[30:] == pytest.approx([0.2] * 10) and min(seen[:30]) > 0.2


def test_not_all_epochs_are_closing_ones():
    message = r"^a\.yaml: training: .*of 4 epochs, 4 are closing ones; give fewer closing_epochs, or more epochs"
    with pytest.raises(UserError, match=message):
        config_from_dict({"training": {"epochs": 4, "closing_epochs": 4}}, "a.yaml")
    assert replace(OPTIONS, closing_epochs=3).closing_from == 1 and OPTIONS.closing_from == 4


def test_a_constant_rate_stays():
    assert rates(40) == [1.0] * 40
