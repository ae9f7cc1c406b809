"""The network as a table: what each layer gives, what a cell of it sees, what it costs.

    r ← r + (k - 1) · d · s        the receptive field: pixels of the input along a side that one cell depends on
    s ← s · stride                 pixels of the input from one cell to the next

hold from layer to layer, k cells being the kernel and d its dilation (Araujo, Norris and Sim 2019, "Computing Receptive
Fields of Convolutional Neural Networks": the same as F(i) = (F(i+1) - 1) · stride + k, read from the input on). One
run of the network is watched, operation by operation, and each tensor carries its r and s along; so branches, layers
that are called several times and whatever a `forward` does by itself are seen as they are, for any network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from detect.models.detector import Detector
from detect.structures import Images, Proposals

ROWS = 36
"""A table is as deep as fits into so many rows: single layers of AlexNet and VGG, blocks of ResNet and GoogLeNet."""
MULTIPLE = 32
"""Sides of the canvas are multiples of the coarsest stride of a backbone."""


@dataclass(frozen=True, slots=True)
class View:
    """What a cell of a map sees, along each axis of the map; both are `inf` where it sees everything."""

    field: tuple[float, ...]
    """Pixels of the input along a side of what the cell depends on."""
    stride: tuple[float, ...]
    """Pixels of the input from one cell to the next."""
    cells: int
    """How many there are, in all maps of the batch."""
    of_region: bool = False
    """After region pooling both begin anew, and count cells of the region; for R-CNN these are pixels of the crop."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: a layer, or a block of layers taken together."""

    name: str
    kind: str
    calls: int
    """How often it runs, as the head of an RPN once a level; `shapes` and `view` are of the first time."""
    shapes: tuple[tuple[int, ...], ...]
    """Of all tensors that it gives."""
    view: View | None
    """Of the first of them; None where that does not depend on the input."""
    parameters: int
    """Those that no earlier row has used."""
    flops: int
    """Of all calls."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The rows in the order in which they run, and the totals of the whole network."""

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    unused: int
    """Parameters that this run had no use for, as those of a classifier that serves training alone."""
    bytes: int
    """Memory of the parameters."""
    flops: int
    """2 × the multiply-adds of convolutions and matrix products; what else is computed is not counted."""


def summarize(
    model: nn.Module, *inputs: Any, run: Callable[..., Any] | None = None, depth: int | None = None
) -> Summary:
    """Runs the network once and tells what its layers did.

    It runs as it is set, for training or evaluation. On the meta device nothing is computed, and no memory is taken:
    make model and inputs under `torch.device("meta")`.

    Receptive fields assume that cells lie in the last axes of a map, as in [B, C, H, W]. Where branches meet, the
    largest counts. A matrix product with a row for each cell is a 1×1 convolution; any other sees everything, and so do
    attention, a mean over the map and an adaptive pool to one cell.

    Args:
        model: any network.
        inputs: what `run` takes; receptive fields are counted in cells of the tensors [B, C, …] among them.
        run: what is asked of the model; its `forward` by default.
        depth: how far down modules are told apart: 1 has a row for each child of the model, 2 for their children, and
            so on. By default as far as fits into `ROWS` rows.
    """
    watch = _Watch(model, inputs)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            # A network is open already, also where `run` is not its forward; a layer by itself is its own only row.
            if name or not any(model.children()):
                enter = partial(watch.enter, name)
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(watch.leave).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        (run or model)(*inputs)
    parameters = list(model.parameters())
    return Summary(
        layers=_layers(watch.root, depth),
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        unused=sum(watch.unused.values()),
        bytes=sum(parameter.nbytes for parameter in parameters),
        flops=watch.root.total("flops"),
    )


def summarize_on_image(
    model: nn.Module, height: int, width: int, proposals: int, depth: int | None = None
) -> tuple[Summary, int]:
    """A detector or a classifier on the meta device, on one image; and how many regions it judged, if it is a detector.

    Args:
        model: takes RGB of 8 bits.
        height, width: pixels; a detector's canvas has the next multiples of 32.
        proposals: regions for a detector without an RPN.
        depth: as for `summarize`.
    """
    if not isinstance(model, Detector):
        return summarize(model, torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta"), depth=depth), 0
    canvas = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    regions = 0

    def detect(*inputs: Any) -> None:
        nonlocal regions
        proposals = model(*inputs).proposals
        regions = 0 if proposals is None else proposals.valid.shape[1]

    with torch.device("meta"):
        images = Images(torch.empty(1, 3, *canvas, dtype=torch.uint8), torch.empty(1, 2, dtype=torch.int64))
        boxes, scores = torch.empty(1, proposals, 4), torch.empty(1, proposals)
        given = Proposals(boxes, scores, scores.bool()) if model.Options.proposals == "given" else None
        return summarize(model, images, given, run=detect, depth=depth), regions


# ---- watching --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """One run of a module, or the part of it that is not in its children (`own`)."""

    name: str
    kind: str
    own: bool = False
    given: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    view: View | None = None
    parameters: int = 0
    flops: int = 0
    steps: list[_Call] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.name.split(".")) if self.name else 0

    def total(self, figure: str) -> int:
        return getattr(self, figure) + sum(step.total(figure) for step in self.steps)


class _Watch(TorchDispatchMode):
    """Sees every operation, and knows by the hooks in which module it is."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.unused = {id(parameter): parameter.numel() for parameter in model.parameters()}
        self.root = _Call("", _kind(model))
        self.open = [self.root]
        self.views = WeakTensorKeyDictionary()
        for tensor in _tensors(inputs):
            if tensor.ndim > 2:
                self.views[tensor] = _pixels(tensor, axes=tensor.ndim - 2)

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a module runs."""
        call = _Call(name, _kind(module), given=_shapes((args, kwargs)))
        self.open[-1].steps.append(call)
        self.open.append(call)

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """After it."""
        call = self.open.pop()
        call.shapes = _shapes(output)
        call.view = next((self.views.get(tensor) for tensor in _tensors(output)), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = list(_tensors((args, kwargs)))
        made = list(_tensors(out))
        seen = {view for tensor in given if (view := self.views.get(tensor))}
        view = _after(func.overloadpacket.__name__, args, seen, made[0]) if made else None
        if view is not None:
            for tensor in made:
                self.views[tensor] = view
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        parameters = sum(self.unused.pop(id(tensor), 0) for tensor in given)
        if flops or parameters:
            self._add(flops, parameters, out, view)
        return out

    def _add(self, flops: int, parameters: int, out: Any, view: View | None) -> None:
        call = self.open[-1]
        step = next((step for step in call.steps if step.own), None)
        if step is None:
            step = _Call(call.name, call.kind.partition(" ")[0], own=True)
            call.steps.append(step)
        step.flops += flops
        step.parameters += parameters
        step.shapes, step.view = _shapes(out), view


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors within lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, part.name) for part in fields(value)])


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in _tensors(value))


# ---- what a cell sees ------------------------------------------------------------------------------------------------

_REGION_POOLING = {"roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "roi_align_cpu"}
_TAPS = {"nearest": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}
"""Cells along a side that an interpolated value depends on."""


def _after(name: str, args: Any, views: set[View], out: Tensor) -> View | None:
    """The view of an operation's output, from those of what it was given."""
    if name in _REGION_POOLING:
        return _pixels(out, axes=2, of_region=True)
    view = _meeting(views)
    if view is None:
        return None
    axes = len(view.field)
    if name == "convolution":
        return _slide(view, *_convolution(*args[1:7]), out)
    if name.startswith(("max_pool", "avg_pool")):
        return _slide(view, *_pool(name, args, axes), out)
    if "adaptive" in name:
        return _slide(view, *_adaptive(args[0].shape[-axes:], out.shape[-axes:]), out)
    if "upsample" in name:
        taps = _TAPS[next(word for part in name.split("_") if (word := part.rstrip("123d")) in _TAPS)]
        ratios = [before / after for before, after in zip(args[0].shape[-axes:], out.shape[-axes:], strict=True)]
        return _slide(view, [taps] * axes, ratios, out)
    if name in ("mean", "sum", "amax", "amin") and _over_map(args, axes):
        return _everything(view)
    if name in ("mm", "addmm"):
        rows = out.shape[0]
        return view if rows == view.cells else _everything(view)
    return _everything(view) if name in ("bmm", "baddbmm") or "attention" in name else view


def _pixels(maps: Tensor, axes: int, of_region: bool = False) -> View:
    """Each cell sees itself: so receptive fields begin."""
    return View((1,) * axes, (1,) * axes, _cells(maps, axes), of_region)


def _everything(view: View) -> View:
    forever = (math.inf,) * len(view.field)
    return replace(view, field=forever, stride=forever)


def _meeting(views: set[View]) -> View | None:
    """Where branches meet: the largest field, and the finest stride, for what is coarser was spread over its cells."""
    axes = max((len(view.field) for view in views), default=0)
    alike = [view for view in views if len(view.field) == axes]
    if len(alike) < 2:
        return alike[0] if alike else None
    return View(
        tuple(max(sides) for sides in zip(*(view.field for view in alike), strict=True)),
        tuple(min(sides) for sides in zip(*(view.stride for view in alike), strict=True)),
        max(view.cells for view in alike),
        any(view.of_region for view in alike),
    )


def _slide(view: View, spans: Sequence[float], strides: Sequence[float], out: Tensor) -> View:
    """What a window that spans so many cells sees, moved by so many: the formula at the head of this file."""
    seen = zip(view.field, view.stride, spans, strict=True)
    return View(
        tuple(field + (span - 1) * step if span > 1 else field for field, step, span in seen),
        tuple(step * stride for step, stride in zip(view.stride, strides, strict=True)),
        _cells(out, len(spans)),
        view.of_region,
    )


def _cells(maps: Tensor, axes: int) -> int:
    return math.prod((len(maps), *maps.shape[-axes:]))


def _convolution(
    weight: Tensor, _bias: Any, stride: Sequence[int], _padding: Any, dilation: Sequence[int], transposed: bool
) -> tuple[list[float], list[float]]:
    """Cells that a window spans, and by how many it moves, along each axis."""
    kernel = weight.shape[2:]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, _each(dilation, len(kernel)), strict=True)]
    strides = _each(stride, len(kernel))
    if transposed:  # the cells lie `stride` apart, and the window finds so many of them
        return [math.ceil(span / s) for span, s in zip(spans, strides, strict=True)], [1 / s for s in strides]
    return [*spans], [*strides]


def _pool(name: str, args: Any, axes: int) -> tuple[list[float], list[float]]:
    """The same of max_pool(x, kernel, stride, padding, dilation, …) and avg_pool(x, kernel, stride, …)."""
    kernel = _each(args[1], axes)
    stride = _each(args[2], axes) if len(args) > 2 and args[2] else kernel
    dilation = _each(args[4] if name.startswith("max") and len(args) > 4 else 1, axes)
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)], [*stride]


def _adaptive(before: Sequence[int], after: Sequence[int]) -> tuple[list[float], list[float]]:
    """The same of an adaptive pool, whose cell i of m is made from the cells ⌊i · n / m⌋ … ⌈(i + 1) · n / m⌉ of n."""
    spans, strides = [], []
    for n, m in zip(before, after, strict=True):
        everything = m == 1 < n
        spans.append(math.inf if everything else max(-(-(i + 1) * n // m) - i * n // m for i in range(m)))
        strides.append(math.inf if everything else n / m)
    return spans, strides


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number an axis, of the last axes: torch pools a line as a plane of height 1."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values[-axes:]


def _over_map(args: Any, axes: int) -> bool:
    """Whether a reduction goes over all axes of the map."""
    dims = args[1] if len(args) > 1 else None
    ndim = args[0].ndim
    return not dims or {dim % ndim for dim in dims} >= set(range(ndim - axes, ndim))


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
    """The calls at that depth, and leaves above it, those of one name together; what changes nothing is left out."""
    together: dict[str, list[_Call]] = {}
    for call in _cut(root, depth):
        together.setdefault(call.name, []).append(call)
    return tuple(
        Layer(
            name,
            calls[0].kind,
            len(calls),
            calls[0].shapes,
            calls[0].view,
            sum(call.total("parameters") for call in calls),
            sum(call.total("flops") for call in calls),
        )
        for name, calls in together.items()
        if any(map(_changes, calls))
    )


def _changes(call: _Call) -> bool:
    return call.own or call.shapes != call.given or call.total("parameters") + call.total("flops") > 0


def _cut(call: _Call, depth: int) -> Iterator[_Call]:
    for step in call.steps:
        if step.own or step.depth >= depth or all(inner.own for inner in step.steps):
            yield step
        else:
            yield from _cut(step, depth)


def _kind(module: nn.Module) -> str:
    """The class of a module, with the window of a convolution or a pool, also where a norm or a ReLU is beside it."""
    name = type(module).__name__
    windows = [part for part in module.modules() if hasattr(part, "kernel_size") and hasattr(part, "stride")]
    alone = len(windows) == 1 and not any(isinstance(part, nn.Linear) for part in module.modules())
    return f"{name} {_window(windows[0])}" if alone else name


def _window(layer: Any) -> str:
    """As 7×7/2, with dilation and groups where there are such."""
    axes = int(next((letter for letter in type(layer).__name__ if letter in "123"), 2))
    kernel, stride = _each(layer.kernel_size, axes), _each(layer.stride, axes)
    words = "×".join(map(str, kernel if axes > 1 else kernel[:1]))
    if set(stride) != {1}:
        words += f"/{stride[0]}" if len(set(stride)) == 1 else "/" + "×".join(map(str, stride))
    dilation, groups = _each(getattr(layer, "dilation", 1), axes), getattr(layer, "groups", 1)
    words += f", dilation {dilation[0]}" if set(dilation) != {1} else ""
    return words + (f", {groups} groups" if groups > 1 else "")


# ---- the table -------------------------------------------------------------------------------------------------------

_PREFIXES = ("", "k", "M", "G", "T", "P")


def print_summary(summary: Summary, title: str, console: Console | None = None) -> None:
    """Prints the rows and the totals for a terminal of 100 columns.

    Args:
        summary: what `summarize` returns.
        title: a line above the table.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    first = next((layer for layer in summary.layers if layer.view and layer.view.of_region), None)
    of_these = [f"{summary.trainable:,} trainable"]
    if summary.unused:
        of_these.append(f"{summary.unused:,} not used in this run")
    exponent = min((len(str(summary.flops)) - 1) // 3, len(_PREFIXES) - 1)
    flops = f"{summary.flops / 1000**exponent:.3g} {_PREFIXES[exponent]}FLOP"
    lines = [
        f"{summary.parameters:,} parameters ({', '.join(of_these)}), {summary.bytes / 2**20:,.1f} MiB",
        f"{flops}: 2 for each multiply-add of convolutions and matrix products",
        "stride, field: pixels of the input from cell to cell, and along a side of what a cell sees",
    ]
    if any(layer.calls > 1 for layer in summary.layers):
        lines.append("n ×: it runs n times; output, stride and field are of the first time, the cost is of all")
    if first is not None:
        lines.append(f"from {first.name} on: all regions together, and stride and field in cells of a region")
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(summary, first))
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


def _table(summary: Summary, first_of_region: Layer | None) -> Table:
    # The unit leaves the total four to six digits before the point: no layer that counts is then nothing.
    exponent = max(0, (len(str(summary.flops)) - 1) // 3 - 1)
    unit, decimals = 1000**exponent, 1 if exponent else 0
    made = Table(box=HORIZONTALS, pad_edge=False, collapse_padding=True, show_footer=True)
    made.add_column("layer", "total", overflow="fold")
    made.add_column("kind", overflow="fold")
    for head, foot in (
        ("output", ""),
        ("stride", ""),
        ("field", ""),
        ("parameters", f"{summary.parameters:,}"),
        (f"{_PREFIXES[exponent]}FLOP", f"{summary.flops / unit:,.{decimals}f}"),
    ):
        made.add_column(head, foot, justify="right", no_wrap=True)
    for layer in summary.layers:
        if layer is first_of_region:
            made.add_section()
        kind = f"{layer.calls} × {layer.kind}" if layer.calls > 1 else layer.kind
        sides = (_sides(layer.view.stride), _sides(layer.view.field)) if layer.view else ("–", "–")
        flops = f"{layer.flops / unit:,.{decimals}f}" if layer.flops else ""
        made.add_row(
            escape(layer.name),
            escape(kind),
            _shape(layer),
            *sides,
            f"{layer.parameters:,}" if layer.parameters else "",
            flops,
        )
    return made


def _shape(layer: Layer) -> str:
    """Without the batch where that is one image; … where more tensors follow."""
    if not layer.shapes:
        return "–"
    shape = layer.shapes[0]
    sides = shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape
    return "×".join(map(str, sides)) + (" …" if len(layer.shapes) > 1 else "")


def _sides(sides: Sequence[float]) -> str:
    """One number where the axes agree; "all" of the input, which leaves no next cell."""
    words = ["all" if math.isinf(side) else f"{side:g}" for side in sides]
    return words[0] if len(set(words)) == 1 else "×".join(words)
