"""Summary of a network: output shape, receptive field, parameters and FLOPs of each layer.

All operations of one run are traced, together with the receptive field of each tensor. Branches, layers that are called
several times and operations inside of a `forward` are therefore counted correctly, for any network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from detect.models.detector import Detector
from detect.models.receptive_field import ReceptiveField, initial_field, per_axis, propagate
from detect.structures import Images, Proposals

ROWS = 36
"""Maximum number of rows by default: single layers of AlexNet and VGG, blocks of ResNet and GoogLeNet."""
MULTIPLE = 32
"""Sides of a canvas are multiples of this, the coarsest stride of a backbone."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, or a block of layers taken together."""

    name: str
    kind: str
    calls: int
    """Number of calls, for an RPN's head one per level; `shapes` and `receptive_field` are of the first."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of all output tensors."""
    receptive_field: ReceptiveField | None
    """Receptive field of the first output; None if it does not depend on the input."""
    parameters: int
    """Number of parameters that no earlier row uses."""
    flops: int
    """FLOPs of all calls."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Layers in the order of their calls, and totals of the network."""

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    unused: int
    """Number of parameters that this run does not use, such as those of auxiliary classifiers."""
    bytes: int
    """Memory of the parameters in bytes."""
    flops: int
    """2 × the multiply-adds of convolutions and matrix products; other operations are not counted."""


def summarize(
    model: nn.Module, *inputs: Any, run: Callable[..., Any] | None = None, depth: int | None = None
) -> Summary:
    """Run a network once, in its current mode, and summarise its layers.

    On the meta device nothing is computed and no memory is used: create model and inputs under
    `torch.device("meta")`.

    Receptive fields assume that the last axes of a map are cells, as in [B, C, H, W]. Where branches meet, the largest
    field is reported. A matrix product with one row per cell counts as a 1×1 convolution. The field of every other
    matrix product, of attention, of a mean over the map and of an adaptive pool to one cell is the whole input.

    Args:
        model: any network.
        inputs: arguments of `run`; receptive fields are measured in cells of the tensors [B, C, …] among them.
        run: function to trace; by default the model itself.
        depth: depth of the modules that become rows: 1 for the children of the model, 2 for their children, and so on.
            By default the largest that gives at most `ROWS` rows.
    """
    trace = _Trace(model, inputs)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            # The network itself is the root, even if `run` is not its forward; a single layer is the only row.
            if name or not any(model.children()):
                enter = partial(trace.enter, name)
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(trace.leave).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(trace)
        (run or model)(*inputs)
    parameters = list(model.parameters())
    return Summary(
        layers=_layers(trace.root, depth),
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        unused=sum(trace.unused.values()),
        bytes=sum(parameter.nbytes for parameter in parameters),
        flops=trace.root.total("flops"),
    )


def summarize_on_image(
    model: nn.Module, height: int, width: int, proposals: int, depth: int | None = None
) -> tuple[Summary, int]:
    """Return the summary of a detector or a classifier on one image, and the number of regions a detector classifies.

    Args:
        model: on the meta device.
        height: pixels; a detector's canvas has the next multiple of 32.
        width: pixels, like the height.
        proposals: number of regions for a detector with given proposals.
        depth: as for `summarize`.
    """
    if not isinstance(model, Detector):
        return summarize(model, torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta"), depth=depth), 0
    canvas = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    regions = 0

    def detect(*inputs: Any) -> None:
        nonlocal regions
        proposals = model.detect(*inputs).proposals
        regions = 0 if proposals is None else proposals.valid.shape[1]

    with torch.device("meta"):
        images = Images(torch.empty(1, 3, *canvas, dtype=torch.uint8), torch.empty(1, 2, dtype=torch.int64))
        boxes, scores = torch.empty(1, proposals, 4), torch.empty(1, proposals)
        given = Proposals(boxes, scores, scores.bool()) if model.proposals == "given" else None
        return summarize(model, images, given, run=detect, depth=depth), regions


# ---- tracing ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """One call of a module, or its operations outside of its children (`own`)."""

    name: str
    kind: str
    own: bool = False
    input_shapes: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    receptive_field: ReceptiveField | None = None
    parameters: int = 0
    flops: int = 0
    steps: list[_Call] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.name.split(".")) if self.name else 0

    def total(self, name: str) -> int:
        return getattr(self, name) + sum(step.total(name) for step in self.steps)


class _Trace(TorchDispatchMode):
    """Records every operation under the module that runs it, according to the hooks."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.unused = {id(parameter): parameter.numel() for parameter in model.parameters()}
        self.root = _Call("", _kind(model))
        self.open = [self.root]
        self.fields = WeakTensorKeyDictionary()
        for tensor in _tensors(inputs):
            if tensor.ndim > 2:
                self.fields[tensor] = initial_field(tensor, axes=tensor.ndim - 2)

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Enter a module's call."""
        call = _Call(name, _kind(module), input_shapes=_shapes((args, kwargs)))
        self.open[-1].steps.append(call)
        self.open.append(call)

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Leave a module's call."""
        call = self.open.pop()
        call.shapes = _shapes(output)
        call.receptive_field = next((self.fields.get(tensor) for tensor in _tensors(output)), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = list(_tensors((args, kwargs)))
        outputs = list(_tensors(out))
        input_fields = {known for tensor in inputs if (known := self.fields.get(tensor))}
        output_field = propagate(func.overloadpacket.__name__, args, input_fields, outputs[0]) if outputs else None
        if output_field is not None:
            for tensor in outputs:
                self.fields[tensor] = output_field
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        parameters = sum(self.unused.pop(id(tensor), 0) for tensor in inputs)
        if flops or parameters:
            self._add(flops, parameters, out, output_field)
        return out

    def _add(self, flops: int, parameters: int, out: Any, output_field: ReceptiveField | None) -> None:
        call = self.open[-1]
        step = next((step for step in call.steps if step.own), None)
        if step is None:
            step = _Call(call.name, call.kind.partition(" ")[0], own=True)
            call.steps.append(step)
        step.flops += flops
        step.parameters += parameters
        step.shapes, step.receptive_field = _shapes(out), output_field


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, item.name) for item in fields(value)])


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in _tensors(value))


# ---- rows ------------------------------------------------------------------------------------------------------------


def _layers(root: _Call, depth: int | None) -> tuple[Layer, ...]:
    if depth is not None:
        return _rows(root, depth)
    deepest = max(_depths(root))
    tables = (_rows(root, depth) for depth in range(deepest, 0, -1))
    return next((rows for rows in tables if len(rows) <= ROWS), ()) or _rows(root, 1)


def _depths(call: _Call) -> Iterator[int]:
    yield call.depth
    for step in call.steps:
        yield from _depths(step)


def _rows(root: _Call, depth: int) -> tuple[Layer, ...]:
    """Return calls at this depth and leaves above it, grouped by name.

    Calls that keep the shape and have neither parameters nor FLOPs are left out.
    """
    groups: dict[str, list[_Call]] = {}
    for call in _calls_at(root, depth):
        groups.setdefault(call.name, []).append(call)
    return tuple(
        Layer(
            name,
            calls[0].kind,
            len(calls),
            calls[0].shapes,
            calls[0].receptive_field,
            sum(call.total("parameters") for call in calls),
            sum(call.total("flops") for call in calls),
        )
        for name, calls in groups.items()
        if any(map(_is_listed, calls))
    )


def _is_listed(call: _Call) -> bool:
    return call.own or call.shapes != call.input_shapes or call.total("parameters") + call.total("flops") > 0


def _calls_at(call: _Call, depth: int) -> Iterator[_Call]:
    for step in call.steps:
        if step.own or step.depth >= depth or all(inner.own for inner in step.steps):
            yield step
        else:
            yield from _calls_at(step, depth)


def _kind(module: nn.Module) -> str:
    """Return the class name of a module, with the window if it has a single convolution or pool."""
    name = type(module).__name__
    windows = [part for part in module.modules() if hasattr(part, "kernel_size") and hasattr(part, "stride")]
    single = len(windows) == 1 and not any(isinstance(part, nn.Linear) for part in module.modules())
    return f"{name} {_window(windows[0])}" if single else name


def _window(layer: Any) -> str:
    """Return a window such as 7×7/2, with dilation and groups unless they are 1."""
    axes = int(next((letter for letter in type(layer).__name__ if letter in "123"), 2))
    kernel, stride = per_axis(layer.kernel_size, axes), per_axis(layer.stride, axes)
    text = "×".join(map(str, kernel if axes > 1 else kernel[:1]))
    if set(stride) != {1}:
        text += f"/{stride[0]}" if len(set(stride)) == 1 else "/" + "×".join(map(str, stride))
    dilation, groups = per_axis(getattr(layer, "dilation", 1), axes), getattr(layer, "groups", 1)
    text += f", dilation {dilation[0]}" if set(dilation) != {1} else ""
    return text + (f", {groups} groups" if groups > 1 else "")
