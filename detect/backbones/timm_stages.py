"""Stages of timm's networks, so that only the last ones are trained.

timm assigns each parameter of a whole network to a group (`group_matcher(coarse=True)`), such as the stem, each stage
and the classifier, and names the module that computes each feature map (`feature_info`). A stage ends with the group
of a map.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from operator import itemgetter

from torch import nn

from detect.backbones.backbone import Network, Stages

MOST = 5
"""Most stages of a network, as `TrainStages` counts them; maps beyond these are in the first stage."""


def flat(name: str) -> str:
    """Return the name of a module or parameter in the form that whole and `features_only` networks share.

    timm flattens its names (`stages.0` becomes `stages_0`) or nests the network one level deeper, as `model`.
    """
    return name.replace(".", "_").removeprefix("model_")


def stage_of_parameters(network: Network, classifier_keys: tuple[str, ...]) -> dict[str, str]:
    """Return the name of the stage of each parameter but the classifier's, by the parameter's flat name.

    A stage has the name of its map and all groups after the map before. Groups after the last map belong to the last
    stage. The result is in the order of the stages.

    Args:
        network: a whole network with its classifier.
        classifier_keys: prefixes of the classifier's parameters.
    """
    groups = _groups(network)
    maps = [level["module"] for level in network.feature_info]
    ends = _last_groups(network, groups, maps)
    if len(ends) < len(maps):  # HRNet's maps are no modules; its groups before the classifier's are its stages
        ends = dict(zip(reversed(maps), sorted(set(groups.values()))[-2::-1], strict=False))
    stages = sorted({group: flat(name) for name, group in ends.items()}.items())[-MOST:]
    limits, names = [group for group, _ in stages[:-1]], [name for _, name in stages]
    numbers = {
        flat(name): bisect_left(limits, group) for name, group in groups.items() if not name.startswith(classifier_keys)
    }
    return {name: names[number] for name, number in sorted(numbers.items(), key=itemgetter(1))}


def cut(network: nn.Module, stage_of: Mapping[str, str]) -> Stages:
    """Return the layers of a network as stages, of the whole one or of its `features_only` form.

    Parameters beside submodules, such as the scale of a ConvNeXt block, are in lists of their own.

    Args:
        network: a network of timm.
        stage_of: result of `stage_of_parameters`.
    """
    layers: dict[str, list[nn.Module]] = {stage: [] for stage in stage_of.values()}
    for path, module in network.named_modules():
        own = {flat(name): one for name, one in module.named_parameters(path, recurse=False)}
        own = {name: one for name, one in own.items() if name in stage_of}
        if len(own) == len(list(module.parameters())) > 0:
            layers[stage_of[next(iter(own))]].append(module)
        else:
            for name, parameter in own.items():
                layers[stage_of[name]].append(nn.ParameterList([parameter]))
    return OrderedDict((stage, nn.Sequential(*modules)) for stage, modules in layers.items())


def _groups(network: Network) -> dict[str, int]:
    """Return timm's group of each parameter, from the pixels on; without a matcher each parameter is a group."""
    names = [name for name, _ in network.named_parameters()]
    if not hasattr(network, "group_matcher"):
        return {name: place for place, name in enumerate(names)}
    group_parameters = importlib.import_module("timm.models").group_parameters
    groups = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    return {name: groups[name] for name in names}


def _last_groups(network: Network, groups: Mapping[str, int], maps: Sequence[str]) -> dict[str, int]:
    """Return the last group up to each module that computes a map; activations are in the group before them."""
    ends, last = {}, 0
    for path, module in network.named_modules():
        last = max((groups[name] for name, _ in module.named_parameters(path, recurse=False)), default=last)
        for name in maps:
            if path == name or path.startswith(f"{name}."):
                ends[name] = last
    return ends
