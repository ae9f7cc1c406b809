"""The R-CNN family as one pipeline: train, evaluate, compare, predict, export."""
