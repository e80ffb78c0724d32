"""What is known of the workers of one release since they were started for it."""

from collections.abc import Iterable
from typing import Final

from device.inference.latency import Latencies

_CRASHES_KEPT: Final = 16  # the first ones tell why; a loop of crashes must not fill memory


class Evidence:
    """Counts and latencies; the update machine's verdict stands on them."""

    def __init__(self, models: Iterable[str]) -> None:
        self.inferences = 0
        self.errors = 0
        self.unreadable = 0
        self.given_up = 0
        self.crashes: tuple[str, ...] = ()
        self.crash_count = 0
        self.last_error = ""
        self._latencies = {model: Latencies() for model in models}

    def inferred(self, model: str, latency_ms: float) -> None:
        """An inference finished with a finding."""
        self.inferences += 1
        self._latencies[model].add(latency_ms)

    def failed(self, model: str, latency_ms: float, message: str) -> None:
        """An inference finished without one, by the model's fault."""
        self.inferences += 1
        self.errors += 1
        self.last_error = f"{model}: {message}"
        self._latencies[model].add(latency_ms)

    def crashed(self, ending: str) -> None:
        """A worker ended by itself, or was ended because it hung."""
        self.crash_count += 1
        if len(self.crashes) < _CRASHES_KEPT:
            self.crashes = (*self.crashes, ending)

    def latency_ms(self, percent: float) -> dict[str, float]:
        """The percentile of the last inferences by model; models without any are left out."""
        return {model: kept.percentile(percent) for model, kept in self._latencies.items() if len(kept)}
