"""What a machine that lost `state.db` and its seal must hear before it installs anything.

Its floors and refusals are gone. The managers' floor of the product comes with the newest metadata; how far the
machine itself had come, the server knows from its last version report, and says so signed by the director, for the
nonce of this very request. Until both were verified in one contact, offers wait.
"""

from typing import Final

from device.state_db import StateDb
from device.trust.port import Terms, Verdict
from device.update.memory import floors_of
from device.update.states import Held
from protocol.objects import ReportedBody

FLOORS_DUE: Final = "trust/floors-due"
"""A fact of `state.db`: it was made anew, and floors are still to be raised to the stored metadata."""


class Recovery:
    """Of one machine. Blocking.

    Args:
        state: Its database.
    """

    def __init__(self, state: StateDb) -> None:
        self._state = state

    def hear(self, verdict: Verdict) -> bool:
        """Takes in what a contact's answer told, if it was enough; durable on return.

        Args:
            verdict: Of that answer.

        Returns:
            Whether nothing is missing any more.
        """
        if not self._state.is_recovering:
            return True
        if verdict.reported is None or verdict.terms is None or not verdict.may_install:
            return False
        held = _held(verdict.reported, verdict.terms)
        self._state.recover(floors_of(held) if held is not None else {})
        return True


def _held(reported: ReportedBody, terms: Terms) -> Held | None:
    """What the machine had committed. The managers' own listing says best which counter it has."""
    if reported.manifest is None:
        return None
    listed = terms.listed.get(reported.manifest)
    era, counter = (reported.era, reported.release_counter) if listed is None else (listed.era, listed.release_counter)
    return Held(digest=reported.manifest, version=reported.release, release_counter=counter, era=era)
