"""NMS of many lists by two Triton kernels, without waiting for the GPU.

boxes [l, n, 4] ─ `_compare`: bit j of row i is set if box i suppresses the later box j → bits [l, n, ⌈n/32⌉] int32
                └ `_select`:  one program for each list walks down the rows, 32 at a time → keep [l, n]

The bits of 12,000 boxes take 18 MB; the boxes that suppress each other may form chains of any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

WORD = 32
"""Boxes of a block: one bit of an int32 for each."""
ROWS, WORDS = 32, 4
"""Rows and words that a program of `_compare` fills, and at most as many rows that one of `_select` reads at once."""
TILE = 16384
"""Maximum number of words that a program of `_select` holds in registers."""


@triton.jit(do_not_specialize=["n", "words"])
def _compare(
    boxes, groups, bits, n, words, threshold, grouped: tl.constexpr, tile_rows: tl.constexpr, tile_words: tl.constexpr
):
    first_row, first_word = tl.program_id(0) * tile_rows, tl.program_id(1) * tile_words
    row, word = first_row + tl.arange(0, tile_rows), first_word + tl.arange(0, tile_words)
    first = tl.program_id(2).to(tl.int64) * n
    if (first_word + tile_words) * 32 > first_row:  # otherwise all columns are before all rows
        bit = tl.arange(0, 32)
        column = word[:, None] * 32 + bit[None, :]
        a, b = boxes + (first + row) * 4, boxes + (first + column) * 4
        in_rows, in_columns = row < n, column < n
        ax1, ay1 = tl.load(a, in_rows, 0.0)[:, None, None], tl.load(a + 1, in_rows, 0.0)[:, None, None]
        ax2, ay2 = tl.load(a + 2, in_rows, 0.0)[:, None, None], tl.load(a + 3, in_rows, 0.0)[:, None, None]
        bx1, by1 = tl.load(b, in_columns, 0.0)[None], tl.load(b + 1, in_columns, 0.0)[None]
        bx2, by2 = tl.load(b + 2, in_columns, 0.0)[None], tl.load(b + 3, in_columns, 0.0)[None]
        width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
        height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
        shared = width * height
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
        suppresses = tl.div_rn(shared, union) > threshold
        suppresses = suppresses & (column[None] > row[:, None, None]) & in_columns[None]
        if grouped:
            of_rows = tl.load(groups + first + row, in_rows, 0)
            of_columns = tl.load(groups + first + column, in_columns, 0)
            suppresses = suppresses & (of_rows[:, None, None] == of_columns[None])
        packed = tl.sum(suppresses.to(tl.int32) << bit[None, None, :], axis=2)
        places = bits + (first + row)[:, None] * words + word[None, :]
        tl.store(places, packed, in_rows[:, None] & (word < words)[None, :])


@triton.jit
def _or(a, b):
    return a | b


@triton.jit(do_not_specialize=["n", "words"])
def _select(bits, valid, keep, n, words, tile_words: tl.constexpr, tile_rows: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * n
    word, bit = tl.arange(0, tile_words), tl.arange(0, 32)
    removed = tl.zeros([tile_words], tl.int32)
    for block in range(words):
        row = block * 32 + bit
        within = tl.load(bits + (first + row) * words + block, row < n, 0)
        usable = tl.sum(tl.load(valid + first + row, row < n, 0).to(tl.int32) << bit)
        candidates = usable & ~tl.sum(tl.where(word == block, removed, 0))
        # A box is kept unless a kept box suppresses it: the only fixpoint, reached after at most 32 steps.
        kept, before = candidates, ~candidates
        while kept != before:
            before = kept
            kept = candidates & ~tl.reduce(tl.where(((before >> bit) & 1) != 0, within, 0), 0, _or)
        tl.store(keep + first + row, (kept >> bit) & 1, row < n)
        for part in range(32 // tile_rows):
            among = part * tile_rows + tl.arange(0, tile_rows)
            box = block * 32 + among
            places = bits + (first + box)[:, None] * words + word[None, :]
            rows = tl.load(places, (box < n)[:, None] & ((word > block) & (word < words))[None, :], 0)
            removed = removed | tl.reduce(tl.where((((kept >> among) & 1) != 0)[:, None], rows, 0), 0, _or)


def launch(
    boxes: Float[Tensor, "l n 4"], valid: Bool[Tensor, "l n"], iou_threshold: float, groups: Int[Tensor, "l n"] | None
) -> Bool[Tensor, "l n"]:
    """Run the kernels; see `detect.ops.nms.nms`."""
    lists, n = valid.shape
    keep = torch.empty_like(valid, memory_format=torch.contiguous_format)
    if keep.numel() == 0:
        return keep
    boxes, valid = boxes.contiguous(), valid.contiguous()
    groups = None if groups is None else groups.contiguous()
    words = triton.cdiv(n, WORD)
    bits = torch.empty(lists, n, words, dtype=torch.int32, device=boxes.device)
    grid = triton.cdiv(n, ROWS), triton.cdiv(words, WORDS), lists
    bytes_of_keep, bytes_of_valid = keep.view(torch.uint8), valid.view(torch.uint8)
    padded = max(triton.next_power_of_2(words), 2)
    with torch.cuda.device_of(boxes):
        # Products must not be fused with sums: the IoU is then rounded as on the CPU.
        _compare[grid](
            boxes,
            boxes if groups is None else groups,
            bits,
            n,
            words,
            iou_threshold,
            grouped=groups is not None,
            tile_rows=ROWS,
            tile_words=WORDS,
            enable_fp_fusion=False,
        )
        _select[(lists,)](
            bits,
            bytes_of_valid,
            bytes_of_keep,
            n,
            words,
            tile_words=padded,
            tile_rows=max(1, min(ROWS, TILE // padded)),
            num_warps=8 if padded >= 256 else 4,
        )
    return keep
