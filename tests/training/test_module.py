from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from detect.data.datamodule import DetectionData
from detect.models import Detector, build_detector
from detect.structures import Batch, Images, Targets
from detect.training.module import DetectorModule, allow_graphs


def made(config) -> tuple[DetectorModule, DetectionData]:
    data = DetectionData(config.data)
    return DetectorModule(build_detector(config.model, len(data.classes)), config.training, data.split("val")), data


def passes_through_the_backbone(model: Detector) -> list:
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_validation_has_losses_and_detections_from_one_pass(config):
    module, data = made(config)
    module.eval()
    passes = passes_through_the_backbone(module.model)
    (batch,) = [batch for batch in data.eval_loader(data.split("val")) if len(batch) == 1][:1]
    module.validation_step(batch, 0)
    assert len(passes) == 1
    assert set(module.evaluator.losses) == {"rpn_objectness", "rpn_boxes", "classification", "boxes"}
    assert [prediction.image_id for prediction in module.evaluator.predictions] == batch.ids.tolist()


def test_validation_detects_what_detect_does_and_loses_what_loss_does(config):
    module, data = made(config)
    model = module.model.eval()
    batch = next(iter(data.eval_loader(data.split("val"))))
    torch.manual_seed(1)
    losses, detections = model.validate(batch)
    torch.manual_seed(1)
    for name, loss in model.loss(batch).items():
        torch.testing.assert_close(losses[name], loss.detach())
    expected = model.detect(batch.images)
    torch.testing.assert_close(detections.boxes, expected.boxes)
    torch.testing.assert_close(detections.scores, expected.scores)


def test_the_proposer_is_neither_trained_nor_saved(config):
    data = DetectionData(config.data)
    model, proposer = (build_detector(config.model, len(data.classes)) for _ in range(2))
    module = DetectorModule(model, config.training, parts=["boxes"], proposer=proposer)
    module.log_dict = lambda *args, **kwargs: None
    assert {key.split(".")[0] for key in module.state_dict()} == {"model"}
    module.training_step(next(iter(data.train_dataloader())), 0)["loss"].backward()
    assert all(parameter.grad is None for parameter in proposer.parameters())
    assert all(parameter.grad is None for parameter in model.rpn.parameters())
    assert not any(part.training for part in proposer.modules())


def test_every_process_goes_on_with_its_own_random_numbers(config, monkeypatch):
    module, _ = made(config)
    first = {"cpu": torch.Generator().manual_seed(1).get_state()}

    def gather(states, own):
        states[:] = [first, own]

    for name, value in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    expected = torch.rand(3)
    module.on_load_checkpoint(checkpoint)
    assert torch.equal(torch.rand(3), expected)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    module.on_load_checkpoint(checkpoint)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_the_layout_in_memory_changes_no_loss(config, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    batch = next(iter(DetectionData(config.data).train_dataloader()))
    model = build_detector(config.model, 4)
    torch.manual_seed(0)
    expected = model.loss(batch)
    module = DetectorModule(model, config.training)
    last = capability == "AVX512"
    assert model.backbone.body.layer1[0].conv1.weight.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    torch.manual_seed(0)
    torch.testing.assert_close(module.loss(batch), expected, atol=1e-4, rtol=1e-4)


def test_each_shape_of_a_batch_is_one_static_graph(config, unchecked, monkeypatch):
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 2)
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    module, data = made(replace(config, training=replace(config.training, compile=True)))
    allow_graphs(replace(data.options, canvases=3))
    batch = next(iter(data.train_dataloader()))
    module.model.eval()
    for _ in range(2):
        for height, width in ((64, 96), (96, 64), (96, 96)):
            for count in (8, 32):
                module.loss(resized(batch, height, width, count))
    assert counter.frame_count == 6
    assert not any(isinstance(size, torch.SymInt) for graph in counter.graphs for size in sizes_in(graph))


def resized(batch: Batch, height: int, width: int, objects: int) -> Batch:
    """Return a batch of the same number of images, with pixels of another canvas and padding for more objects."""
    pixels = torch.zeros(len(batch), 3, height, width, dtype=torch.uint8)
    targets = Targets(
        *(
            torch.zeros(len(batch), objects, *value.shape[2:], dtype=value.dtype)
            for value in (batch.targets.boxes, batch.targets.labels, batch.targets.valid, batch.targets.crowd)
        )
    )
    return replace(batch, images=Images(pixels, torch.tensor([[height, width]] * len(batch))), targets=targets)


def sizes_in(graph: torch.fx.GraphModule) -> list[int | torch.SymInt]:
    """Return all sizes of the graph's values."""
    values = [node.meta.get("example_value") for node in graph.graph.nodes]
    return [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
