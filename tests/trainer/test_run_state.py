"""trainer/run_state.py: what a file says about an interrupted run has the types of a run's state, or is refused."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch

from trainer.run_state import RunState, read_state, require_alike

RECORD = {"epoch": 1, "frozen": False, "train_loss": math.nan, "lr_head": 0.1, "seconds": 2.0}
STATE = RunState(
    epoch=1,
    seconds=2.0,
    history=[RECORD],
    best_f1=0.5,
    threshold=0.25,
    rates={"lr_head": 0.1},
    logger_ids={"wandb": "a"},
)


def test_a_state_comes_back_as_it_was_saved() -> None:
    assert read_state(asdict(STATE)) == STATE
    assert read_state(asdict(RunState())) == RunState()


@pytest.mark.parametrize("name", [field.name for field in fields(RunState)])
def test_another_type_is_refused(name: str) -> None:
    text = 5 if name == "closed" else "text"  # the one field that is a text
    texts = {"a": 1} if name == "logger_ids" else {"a": "b"}  # of which that field is made
    for value in (text, [1], texts, 1j, torch.zeros(2), [{"epoch": "one"}], [{"loss": 1.0}], b"x"):
        with pytest.raises(ValueError, match=f"'{name}' of the run's state is not "):
            read_state(asdict(STATE) | {name: value})


@pytest.mark.parametrize("values", [{"other": 1}, None, [1, 2], "text"])
def test_another_kind_of_state_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="of the run's state is not known"):
        read_state(values)


def test_values_of_another_form_are_refused() -> None:
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    expected = {"optimizer": optimizer.state_dict(), "average": {"weight": torch.zeros(3)}, "scaler": {}}
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = {"optimizer": optimizer.state_dict(), "average": {"weight": torch.ones(3)}, "scaler": {"scale": 2.0}}
    require_alike(found, expected, "state")
    group = found["optimizer"]["param_groups"][0]
    for name, value in (
        ("lr", "high"),
        ("lr", None),
        ("betas", (0.9,)),
        ("params", [0]),
        ("amsgrad", 0.5),
        ("eps", []),
    ):
        changed = found["optimizer"] | {"param_groups": [group | {name: value}]}
        with pytest.raises(ValueError, match=rf"^state, optimizer, param_groups, 0, {name}"):
            require_alike(found | {"optimizer": changed}, expected, "state")
    for value in (torch.ones(4), torch.ones(3, dtype=torch.int64), [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match=r"^state, average, weight is a \w+ of another form"):
            require_alike(found | {"average": {"weight": value}}, expected, "state")
    with pytest.raises(ValueError, match="has other names"):
        require_alike({"optimizer": found["optimizer"]}, expected, "state")
