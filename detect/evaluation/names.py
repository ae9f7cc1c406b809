"""Results of `detect predict` for a ground truth with other ids: images and classes are matched by their names.

`detect predict` numbers images by their order and writes `images.json` beside the results, with the path of each image
and the name of each class. A ground truth numbers the same images in its own way and knows their paths on another
machine, so paths are compared from their end: the longest common end decides, if it is the only one of that length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from detect.errors import UserError, class_names


def match_names(
    results: Sequence[Mapping[str, Any]], file: Path, predicted: Mapping[str, Any], ground_truth: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the results with the image and category ids of a ground truth, and notes on images without a partner.

    Args:
        results: content of a COCO results file.
        file: the results file, for messages.
        predicted: content of `images.json`: `images` with `file_name`, and `categories`.
        ground_truth: content of a COCO annotation file.

    Raises:
        UserError: no image or several images fit a name, or a class of the results is not in the ground truth.
    """
    images = _match_images(file, predicted["images"], ground_truth["images"])
    categories = _match_categories(file, results, predicted["categories"], ground_truth["categories"])
    listed = {image["id"] for image in predicted["images"]}
    if unknown := [result["image_id"] for result in results if result["image_id"] not in listed]:
        raise UserError(f"{file}: a result has image_id {unknown[0]}, which is not in {file.with_name('images.json')}")
    renumbered = [
        {**result, "image_id": images[result["image_id"]], "category_id": categories[result["category_id"]]}
        for result in results
        if result["image_id"] in images
    ]
    notes = []
    if extra := len(predicted["images"]) - len(images):
        notes.append(f"{file}: ignored {extra} images that the ground truth does not list")
    if missing := len(ground_truth["images"]) - len(images):
        notes.append(
            f"{file}: has no predictions on {missing} images of the ground truth, whose objects count as missed"
        )
    return renumbered, tuple(notes)


def _match_images(
    file: Path, predicted: Sequence[Mapping[str, Any]], ground_truth: Sequence[Mapping[str, Any]]
) -> dict[int, int]:
    """Return the ground truth's id of each predicted image that it lists."""
    by_end: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, image in enumerate(ground_truth):
        parts = _parts(image.get("file_name", str(image["id"])))
        for length in range(1, len(parts) + 1):
            by_end[parts[-length:]].append(number)
    claims: dict[int, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for image in predicted:
        parts = _parts(image.get("file_name", str(image["id"])))
        length = next((length for length in range(len(parts), 0, -1) if parts[-length:] in by_end), 0)
        if not length:
            continue
        numbers = by_end[parts[-length:]]
        if len(numbers) > 1:
            names = " and ".join(str(ground_truth[number].get("file_name")) for number in numbers[:2])
            problem = f"{image.get('file_name')} may be {names} of the ground truth"
            raise UserError(f"{file}: {problem}; predict again on a folder in which the paths end like these")
        claims[numbers[0]].append((length, image))
    matched = {}
    for number, claimants in claims.items():
        best = max(length for length, _ in claimants)
        images = [image for length, image in claimants if length == best]
        if len(images) > 1:
            names = " and ".join(str(image.get("file_name")) for image in images[:2])
            problem = f"{names} are both {ground_truth[number].get('file_name')} of the ground truth"
            raise UserError(f"{file}: {problem}; predict again on each image once")
        matched[images[0]["id"]] = ground_truth[number]["id"]
    if predicted and ground_truth and not matched:
        problem = f"none of its images, such as {predicted[0].get('file_name')}, has a name of the ground truth"
        raise UserError(
            f"{file}: {problem}, such as {ground_truth[0].get('file_name')}; give the ground truth of these images"
        )
    return matched


def _parts(name: str) -> tuple[str, ...]:
    r"""Return the parts of a path in one spelling: of `\` and `/`, upper and lower case, composed and decomposed."""
    return tuple(
        part for part in normalize("NFC", name).casefold().replace("\\", "/").split("/") if part not in ("", ".")
    )


def _match_categories(
    file: Path,
    results: Sequence[Mapping[str, Any]],
    predicted: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
) -> dict[int, int]:
    """Return the ground truth's id of each category of the results."""
    id_of = {category["name"]: category["id"] for category in ground_truth}
    name_of = {category["id"]: category["name"] for category in predicted}
    matched = {}
    for id in {result["category_id"] for result in results}:
        if name_of.get(id) not in id_of:
            problem = f"detects {name_of.get(id, f'category {id}')!r}, and the ground truth has {class_names([*id_of])}"
            raise UserError(f"{file}: {problem}; predict only classes of the ground truth with --classes")
        matched[id] = id_of[name_of[id]]
    return matched
