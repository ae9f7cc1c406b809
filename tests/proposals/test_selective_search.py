import subprocess
import sys
import zlib

import numpy as np
import pytest
from skimage.segmentation import felzenszwalb

import detect
from detect.errors import UserError
from detect.proposals.graph_segmentation import UNIT, compute_edges, segment
from detect.proposals.grouping import Regions, _neighbours, describe, group
from detect.proposals.selective_search import MAX_PIXELS, _channels, _ranked, _slopes, selective_search


def random_image(seed, height=60, width=80):
    """Return noisy patches, which give neither a single region nor one region per pixel."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (height // 10, width // 10, 3)).repeat(10, axis=0).repeat(10, axis=1)
    return (patches + random.integers(-20, 21, (height, width, 3))).clip(0, 255).astype(np.uint8)


# ---- graph segmentation ----------------------------------------------------------------------------------------------


def plain_segmentation(planes, k, min_size):
    """Segment with Felzenszwalb and Huttenlocher's loop over all edges, with integer weights."""
    _, height, width = planes.shape
    edges = []
    for y in range(height):
        for direction, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
            for x in range(width):
                if y + down < height and 0 <= x + right < width:
                    difference = planes[:, y, x].astype(np.float64) - planes[:, y + down, x + right]
                    scale = 1 if len(planes) == 3 else 3
                    weight = int(np.sqrt(scale * (difference**2).sum()) * UNIT + 0.5)
                    edges.append((weight, y, direction, x, y * width + x, (y + down) * width + x + right))
    region = list(range(height * width))
    members = {i: [i] for i in region}
    inner = dict.fromkeys(region, 0)

    def merge(a, b):
        for i in members[b]:
            region[i] = a
        members[a] += members.pop(b)

    edges.sort()
    for weight, *_, p, q in edges:
        a, b = region[p], region[q]
        if a != b and all(weight <= np.float32(inner[r] + k * UNIT / len(members[r])) for r in (a, b)):
            merge(a, b)
            inner[a] = weight
    for _, *_, p, q in edges:
        a, b = region[p], region[q]
        if a != b and min(len(members[a]), len(members[b])) < min_size:
            merge(a, b)
    return numbered(np.array(region).reshape(height, width))


def numbered(labels):
    """Renumber regions in row order."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape)


def planes_of(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)


def test_regions_by_hand():
    # Two flat halves with a difference of 10. Weights within them are 0; 10 exceeds 30 / 6 pixels but not 120 / 6.
    planes = np.zeros((1, 3, 4), np.float32)
    planes[0, :, 2:] = 10 / np.sqrt(3)
    halves, n = segment(compute_edges(planes), 30, 1)
    assert n == 2 and halves.tolist() == [[0, 0, 1, 1]] * 3
    assert segment(compute_edges(planes), 120, 1)[1] == 1
    assert segment(compute_edges(planes), 30, 6)[1] == 2 and segment(compute_edges(planes), 30, 7)[1] == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("k, min_size", [(5, 1), (50, 20), (100, 100), (0, 4)])
def test_regions_equal_those_of_the_plain_loop(channels, k, min_size):
    for seed, height, width in ((0, 40, 50), (1, 1, 70), (2, 70, 1), (3, 2, 2), (4, 30, 20)):
        image = random_image(seed, 70, 70)[:height, :width, :channels]
        labels, n = segment(compute_edges(planes_of(image)), k, min_size)
        assert np.array_equal(labels, plain_segmentation(planes_of(image), k, min_size))
        assert n == labels.max() + 1


def test_regions_equal_those_of_scikit_image():
    # Its conditions: no ties (their order is undefined there), no smoothing, values in 0 … 1 and 255 times our scale.
    compared = 0
    for seed in range(40):
        values = np.random.default_rng(seed).permutation(255 * UNIT)[:72].reshape(9, 8, 1)
        ramp = np.float32(values) / UNIT / np.sqrt(3, dtype=np.float32)
        weights = compute_edges(planes_of(ramp)).weights
        weights = weights[weights < 2**16 - 1]
        if len(np.unique(weights)) < len(weights):
            continue
        compared += 1
        for scale, min_size in ((20, 1), (100, 1), (300, 5)):
            theirs = felzenszwalb(values[..., 0] / (255.0 * UNIT), scale, sigma=0, min_size=min_size)
            ours, _ = segment(compute_edges(planes_of(ramp)), scale, min_size)
            assert np.array_equal(ours, numbered(theirs)), (seed, scale, min_size)
    assert compared > 5


# ---- regions ---------------------------------------------------------------------------------------------------------


FOUR = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 3]], np.uint32)


def four_regions():
    """Return regions with values 0, 0, 250 and 100 in one channel, without slopes: the texture is flat."""
    channel = np.array([0, 0, 250, 100], np.uint8)[FOUR][None]
    return describe(FOUR, 4, channel, 5, (np.empty(0, np.uint32), np.empty(0, np.uint16)), 10)


def test_four_regions_by_hand():
    regions = four_regions()
    assert regions.sizes.tolist() == [6, 6, 3, 1]
    assert regions.boxes.tolist() == [[0, 0, 2, 3], [2, 0, 4, 3], [0, 3, 3, 4], [3, 3, 4, 4]]
    assert regions.pairs.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert regions.histograms[:, :5].tolist() == [[1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    texture = regions.histograms[:, 5:].reshape(4, 8, 10)
    assert np.array_equal(texture[..., 0], np.full((4, 8), 1 / 8, np.float32)) and not texture[..., 1:].any()


@pytest.mark.parametrize(
    "similarity, order",
    [
        # |a| + |b|: 12, 9, 9, 7, 4 for the five pairs; 2+3 give 4; then 0+4 and 1+4 have 10, and 0 is older; then 1+5.
        ("S", [[0, 3, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]]),
        # Gaps in the joint box: 0, 12-9=3, 16-9=7, 8-7=1, 0: 0+1 and 2+3 have none, and 1 is older than 3.
        ("F", [[0, 0, 4, 3], [0, 3, 4, 4], [0, 0, 4, 4]]),
        # Only 0 and 1 share a colour; afterwards all pairs tie (2+3, 2+4, 3+4): the one with the older younger region.
        ("C", [[0, 0, 4, 3], [0, 3, 4, 4], [0, 0, 4, 4]]),
        # All textures are equal: 0+1, the oldest; then 2+3 before 2+4.
        ("T", [[0, 0, 4, 3], [0, 3, 4, 4], [0, 0, 4, 4]]),
        # C + T + S + F, times 16: 0+1: 16+16+4+16=52; 0+2: 0+16+7+13=36; 1+2: 0+16+7+9=32; 1+3: 0+16+9+15=40;
        # 2+3: 0+16+12+16=44. After 0+1=4: 2+3 stays 44; 2+4: 0+16+1+15=32 and 3+4: 0+16+3+13=32.
        ("CTSF", [[0, 0, 4, 3], [0, 3, 4, 4], [0, 0, 4, 4]]),
    ],
)
def test_merge_order_by_hand(similarity, order):
    regions = four_regions()
    assert group(regions, similarity)[4:].tolist() == order
    assert np.array_equal(group(regions, similarity)[:4], regions.boxes)


def test_histograms_are_merged_in_proportion_to_size():
    image = random_image(5)
    labels, n = segment(compute_edges(planes_of(image)), 60, 40)
    channels = _channels(image, "Lab")
    regions = describe(labels, n, channels, 25, _slopes(channels, 1.0, 10), 10)
    np.testing.assert_allclose(regions.histograms[:, :75].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(regions.histograms[:, 75:].sum(axis=1), 1, rtol=1e-5)
    assert (regions.histograms >= 0).all() and regions.sizes.sum() == labels.size
    # The histogram of a merged region equals that of an initial region of the same pixels.
    together = describe(np.zeros_like(labels), 1, channels, 25, _slopes(channels, 1.0, 10), 10)
    shares = regions.sizes / np.float32(labels.size)
    np.testing.assert_allclose(shares @ regions.histograms, together.histograms[0], atol=1e-6)


def test_texture_by_hand():
    # Levels rise by 32 per column: 3.1 tenths of the derivative of an ideal step, 255 / √(2π) = 101.7 with σ = 1.
    # The bin is 3 to the right (orientation 0), 2 on both diagonals (0.707 · 3.1), and 0 elsewhere.
    ramp = np.arange(0, 256, 32, dtype=np.uint8)
    channel = np.tile(ramp, (9, 1))[None]
    pixels, codes = _slopes(channel, 1.0, 10)
    inside = {int(code) for pixel, code in zip(pixels, codes, strict=True) if pixel % 8 in (3, 4)}
    assert inside == {0 * 10 + 3, 2 * 10 + 2, 7 * 10 + 2}  # right; down right; down left, whose slope is negative
    assert not len(_slopes(np.full((3, 9, 9), 77, np.uint8), 1.0, 10)[0])


# ---- grouping --------------------------------------------------------------------------------------------------------


def plain_grouping(regions: Regions, similarity: str):
    """Search all pairs of neighbours for the most similar one in each step."""
    one = np.float32(1)
    boxes, sizes = [list(box) for box in regions.boxes.tolist()], regions.sizes.tolist()
    histograms = list(regions.histograms)
    pixels = np.float32(regions.pixels)

    def score(a, b):
        total = np.float32(0)
        least = np.minimum(histograms[a], histograms[b])
        if "C" in similarity:
            total += least[: regions.colours].sum()
        if "T" in similarity:
            total += least[regions.colours :].sum()
        both = np.float32(sizes[a] + sizes[b])
        if "S" in similarity:
            total += one - both / pixels
        if "F" in similarity:
            x1, y1, x2, y2 = around(a, b)
            total += one - (np.float32((x2 - x1) * (y2 - y1)) - both) / pixels
        return total

    def around(a, b):
        return [min(boxes[a][i], boxes[b][i]) for i in (0, 1)] + [max(boxes[a][i], boxes[b][i]) for i in (2, 3)]

    scores = {(b, a): score(a, b) for a, b in regions.pairs.tolist()}
    while scores:
        b, a = min(scores, key=lambda pair: (-scores[pair], pair))
        new = len(boxes)
        boxes.append(around(a, b))
        sizes.append(sizes[a] + sizes[b])
        histograms.append((sizes[a] * histograms[a] + sizes[b] * histograms[b]) / np.float32(sizes[new]))
        touching = {i for pair in scores if {a, b} & set(pair) for i in pair} - {a, b}
        scores = {pair: value for pair, value in scores.items() if not {a, b} & set(pair)}
        scores |= {(new, i): score(i, new) for i in touching}
    return np.array(boxes)


@pytest.mark.parametrize("similarity", ["CTSF", "TSF", "F", "S", "C", "T"])
def test_grouping_equals_the_plain_loop(similarity):
    for seed in range(4):
        image = random_image(seed)
        channels = _channels(image, "HSV")
        labels, n = segment(compute_edges(channels.astype(np.float32)), 40, 15)
        assert n > 20
        regions = describe(labels, n, channels, 25, _slopes(channels, 1.0, 10), 10)
        assert np.array_equal(group(regions, similarity), plain_grouping(regions, similarity))


def test_neighbours_share_the_side_of_a_pixel():
    labels = numbered(np.random.default_rng(0).integers(0, 900, (50, 40)))
    expected = {(min(a, b), max(a, b)) for a, b in zip(labels[:, 1:].ravel(), labels[:, :-1].ravel(), strict=True)}
    expected |= {(min(a, b), max(a, b)) for a, b in zip(labels[1:].ravel(), labels[:-1].ravel(), strict=True)}
    pairs = _neighbours(labels.astype(np.uint32), labels.max() + 1)
    assert pairs.tolist() == sorted([int(a), int(b)] for a, b in expected if a != b)


# ---- selective search ------------------------------------------------------------------------------------------------


def test_boxes_are_ranked_from_the_end_without_duplicates():
    hierarchy = np.array([[0, 0, 30, 30], [0, 0, 19, 40], [0, 0, 50, 40]], np.int32)
    other = np.array([[0, 0, 50, 40], [5, 0, 50, 40], [0, 0, 50, 40]], np.int32)
    random = np.random.default_rng(3).random(6)
    ranks = np.array([3, 2, 1, 3, 2, 1]) * random
    best = {(0, 0, 30, 30): ranks[0], (0, 0, 50, 40): min(ranks[[2, 3, 5]]), (5, 0, 50, 40): ranks[4]}
    boxes = _ranked([hierarchy, other], 20, 3)
    assert boxes.dtype == np.float32 and boxes.tolist() == [list(box) for box in sorted(best, key=best.get)]
    assert len(_ranked([hierarchy, other], 0, 3)) == 4


@pytest.mark.parametrize("mode, strategies", [("single", 1), ("fast", 8), ("quality", 80)])
def test_boxes_lie_in_the_image(mode, strategies):
    image = random_image(0, 90, 120)
    boxes = selective_search(image, mode)
    assert boxes.dtype == np.float32 and boxes.shape[1] == 4 and len(boxes) > 10
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [120, 90]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes) and [0, 0, 120, 90] in boxes.tolist()


def test_an_object_has_a_proposal():
    image = np.full((100, 140, 3), 90, np.uint8)
    image[30:70, 40:90] = (200, 30, 60)
    nearest = np.abs(selective_search(image) - [40, 30, 90, 70]).max(axis=1).min()
    assert nearest <= 1


def test_boxes_are_deterministic():
    image = random_image(1, 80, 100)
    boxes = selective_search(image, threads=1)
    for threads in (1, 2, 5, None):
        assert np.array_equal(selective_search(image, threads=threads), boxes)
    assert np.array_equal(selective_search(np.asfortranarray(image)), boxes)
    assert np.array_equal(selective_search(image[::-1][::-1]), boxes)
    other = selective_search(image, seed=1)
    assert not np.array_equal(other, boxes) and set(map(tuple, other)) == set(map(tuple, boxes))


def test_boxes_are_equal_in_another_process():
    program = (
        "import sys, zlib, numpy as np, detect\n"
        "image = np.frombuffer(bytes.fromhex(sys.stdin.read()), np.uint8).reshape(60, 80, 3)\n"
        "print(zlib.crc32(detect.selective_search(image).tobytes()))"
    )
    image = random_image(2)
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, input=image.tobytes().hex(), capture_output=True, text=True, check=True).stdout
    assert int(output) == zlib.crc32(selective_search(image).tobytes())


def test_a_mode_equals_its_strategies():
    image = random_image(3)
    single = selective_search(image, "fast", colour_spaces=["HSV"], k=[100], similarities=["CTSF"])
    assert np.array_equal(single, selective_search(image, "single"))
    for space in ("HSV", "Lab", "rgI", "H", "I", "RGB", "rgb"):
        assert len(selective_search(image, "single", colour_spaces=[space]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 2), (19, 300), (19, 300, 3), (3, 3, 3)])
def test_images_below_the_minimum_side_have_no_boxes(shape):
    assert selective_search(np.full(shape, 7, np.uint8), threads=1).shape == (0, 4)
    assert len(selective_search(np.full(shape, 7, np.uint8), min_side=1)) == 1


def test_an_image_of_one_colour_has_one_box():
    assert selective_search(np.full((40, 60, 3), 200, np.uint8), "quality").tolist() == [[0, 0, 60, 40]]


def test_grey_equals_rgb_with_equal_channels():
    grey = random_image(4)[..., 0]
    assert np.array_equal(selective_search(grey), selective_search(np.stack([grey] * 3, axis=-1)))


@pytest.mark.parametrize(
    "image, message",
    [
        ([[1, 2], [3, 4]], "a list"),
        (np.zeros((4, 4, 3), np.float32), r"float32 of shape \[4, 4, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((3,), np.uint8), r"\[3\]"),
        (np.zeros((0, 5, 3), np.uint8), "5×0 pixels"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS // 1000 + 1, 1000, 3)), "shrink it"),
        (np.broadcast_to(np.uint8(0), (2, 2**16)), "shrink it"),
    ],
)
def test_arrays_that_are_not_images_are_refused(image, message, unchecked):
    with pytest.raises(UserError, match=message) as caught:
        selective_search(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "best"}, "single, fast, quality"),
        ({"colour_spaces": ["hsv"]}, "HSV, Lab"),
        ({"colour_spaces": []}, "HSV, Lab"),
        ({"k": [-1]}, "k"),
        ({"k": [float("nan")]}, "k"),
        ({"similarities": ["CX"]}, "CTSF"),
        ({"similarities": [""]}, "CTSF"),
        ({"min_size": -1}, "min_size is -1"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"colour_bins": 257}, "colour_bins is 257"),
        ({"texture_sigma": 0.0}, "texture_sigma is 0.0"),
        ({"texture_bins": 0}, "texture_bins is 0"),
        ({"min_side": -1}, "min_side is -1"),
        ({"seed": -1}, "seed -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_a_wrong_option_raises_a_one_line_error(options, message, unchecked):
    with pytest.raises(UserError, match=message) as caught:
        selective_search(random_image(0), **options)
    assert "\n" not in str(caught.value)


def test_selective_search_is_public():
    assert detect.selective_search is selective_search
