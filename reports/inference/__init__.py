"""Inference over runs, questions and benchmarks: arrays in, numbers out. Nothing here reads a file."""
