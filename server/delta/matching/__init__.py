"""Aligns two byte buffers: finds the covers under an aligned binary difference, as bsdiff does, in numpy alone.

Seeds of exact strings, grown with mismatches allowed, each pass looking only where the one before explains badly.
"""

from server.delta.matching.limits import MatchLimits
from server.delta.matching.search import find_covers

__all__ = ["MatchLimits", "find_covers"]
