"""Finds the tensors of two model files, and which of the old ones explains each of the new ones."""

from server.delta.tensors.find import find_tensors
from server.delta.tensors.found import MIN_BYTES, Element, File, Tensor
from server.delta.tensors.pair import pair_tensors
from server.delta.tensors.pairs import Match, Pair

__all__ = ["MIN_BYTES", "Element", "File", "Match", "Pair", "Tensor", "find_tensors", "pair_tensors"]
