"""Tells the server, once for each, that a model runs on something else than its variant asked for.

`headland-device status` shows it to who stands beside the machine; a fleet's managers hear of it through an alert. What
was told is kept, so that a machine that is switched on each morning does not say it each morning.
"""

import contextlib
from collections.abc import Callable
from typing import Final

from device.inference.workers import WorkersStatus
from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Digest, Millis, Token
from protocol.messages import Alert
from protocol.wire import Message, decode, encode

KEY: Final = "fallbacks-told"
KIND: Final = "accelerator-fallback"


class _Told(Message):
    why: dict[Digest, str] = {}  # by the model's digest


class Fallbacks:
    """Remembers what was told. `changed` never blocks; `tell` does.

    Args:
        state: Where alerts wait for the next contact.
        draw_token: 128 random bits in hexadecimal, for the ids of alerts.
    """

    def __init__(self, state: StateDb, draw_token: Callable[[], Token]) -> None:
        self._state = state
        self._draw_token = draw_token
        self._told: dict[Digest, str] = {}
        kept = state.get(KEY)
        with contextlib.suppress(Refused):  # written by another version of the agent: then it is told once more
            self._told = {} if kept is None else dict(decode(kept, _Told, limit=limits.SYNC_BYTES).why)

    def changed(self, status: WorkersStatus) -> bool:
        """Whether there is something to tell or to forget. A worker that is not up yet says neither."""
        return self._after(status) != self._told

    def tell(self, status: WorkersStatus, at_ms: Millis) -> None:
        """Queues an alert for each fall-back that is new; durable on return.

        Args:
            status: Of the workers.
            at_ms: The time for the alerts, sure or not.

        Raises:
            StateError: The disk is full; it may be called again.
        """
        after = self._after(status)
        for name, model in sorted(status.models.items()):
            why = after.get(model.model_digest, "")
            if why and why != self._told.get(model.model_digest):
                detail = f"{name}, variant {model.variant}, runs on {model.accelerator}: {why}"
                self._state.add_alert(Alert(id=self._draw_token(), kind=KIND, at_ms=at_ms, detail=detail[:2000]))
        # After the alerts: a cut in between tells one of them twice, never not at all.
        self._state.put(KEY, encode(_Told(why=after)))
        self._told = after

    def _after(self, status: WorkersStatus) -> dict[Digest, str]:
        if not status.serving:
            return self._told
        after = {}
        for model in status.models.values():
            why = model.fallback if model.accelerator else self._told.get(model.model_digest, "")
            if why:
                after[model.model_digest] = why
        return after
