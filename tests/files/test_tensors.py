"""State dicts in the training checkpoints of other programs."""

import pytest
import torch

from detect.files.tensors import find_state_dict

STATE = {"conv.weight": torch.ones(2), "conv.bias": torch.zeros(1)}
AVERAGE = {key: value + 5 for key, value in STATE.items()}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        *({key: STATE, "epoch": 3} for key in ("model", "state_dict", "model_state_dict", "network", "net")),
        {"model": {"state_dict": {"model": STATE}}},
        *(prefixed(prefix) for prefix in ("module.", "model.", "_orig_mod.", "module.model._orig_mod.")),
        {"conv._orig_mod.weight": STATE["conv.weight"], "conv.bias": STATE["conv.bias"]},
        {"state_dict": prefixed("model."), "optimizer_states": []},
        {"model": {}, "state_dict": STATE},
        {"model": STATE, "ema": None},
    ],
)
def test_wrappers_and_prefixes_are_looked_through(content):
    assert find_state_dict(content) == STATE


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE, "model_ema": prefixed("module.", AVERAGE) | {"n_averaged": torch.tensor(9)}},
        {"state_dict": STATE, "ema_state_dict": AVERAGE},
        {"ema": {"module": AVERAGE, "updates": 3}, "model": STATE},
    ],
)
def test_averaged_weights_are_preferred(content):
    assert find_state_dict(content) == AVERAGE


def test_a_prefix_that_some_keys_lack_stays():
    state = STATE | {"module.weight": torch.ones(1)}
    assert find_state_dict(state) == state


def test_content_without_a_state_dict_is_returned():
    assert find_state_dict([1]) == [1] and find_state_dict({}) == {} and find_state_dict({3: 1}) == {3: 1}
    ring = {}
    ring["model"] = ring
    assert find_state_dict(ring) == {"model": ring}
