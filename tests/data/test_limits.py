"""Limits that the annotations decide, found before the first step."""

from dataclasses import replace

import pytest

from detect.data.dataset import Defect
from detect.data.limits import refuse_crowded, refuse_losses, unused_classes
from detect.errors import UserError

BOX = (10, 10, 50, 50)


def test_an_image_with_too_many_boxes_is_named(dataset_of):
    dataset = dataset_of({1: [(BOX, 0, "")], 2: [(BOX, 0, "")] * 4, 3: [(BOX, 0, "")] * 3, 4: []})
    refuse_crowded(dataset, 4)
    with pytest.raises(UserError, match=r"^/data/images/2.jpg: 4 boxes, but data.max_objects is 3; raise it with "):
        refuse_crowded(dataset, 3)
    problem = r"2.jpg: 4 boxes, but data.max_objects is 2 \(2 images of the split val have too many\); raise it with "
    with pytest.raises(UserError, match=problem + "--data.max_objects 4"):
        refuse_crowded(dataset, 2)
    refuse_crowded(dataset_of({}), 1)
    refuse_crowded(dataset, 20, combined=5)
    with pytest.raises(UserError, match=r"4 boxes, 20 with mosaic or mixup, but data.max_objects is 19; .* 20, which"):
        refuse_crowded(dataset, 19, combined=5)


@pytest.mark.parametrize(("lost", "kept", "refused"), [(0, 3, False), (5, 4, True), (5, 5, False), (4, 1, False)])
def test_a_split_that_lost_most_of_its_boxes(dataset_of, tmp_path, lost, kept, refused):
    defects = (Defect("outside-image", tmp_path / "a.json", "annotation 7"),) * lost
    dataset = replace(dataset_of({1: [(BOX, 0, "")] * kept}), repaired=defects)
    if not refused:
        refuse_losses(dataset)
        return
    problem = r"5 of 9 boxes of the split val cannot be used: 5 × outside-image, first .*a.json: annotation 7"
    with pytest.raises(UserError, match=rf"^/data: {problem} .*; correct them; detect data check shows all$"):
        refuse_losses(dataset)


def test_classes_without_boxes_are_named(dataset_of):
    assert unused_classes(dataset_of({1: [(BOX, 0, ""), (BOX, 1, "")]})) is None
    text = "1 class has no box in the split val and cannot be learned: dog"
    assert unused_classes(dataset_of({1: [(BOX, 0, ""), (BOX, 1, "crowd")]})) == text
    many = dataset_of({1: [(BOX, 0, "")]}, tuple(f"c{n}" for n in range(30)), tuple(range(30)))
    assert unused_classes(many).startswith("29 of 30 classes have no box") and "and 9 more" in unused_classes(many)
