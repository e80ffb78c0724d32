"""What only people read does not stay for ever: the audit trail, machines' statuses and alerts, loss records.

Nothing is counted from them: outcomes stand in rollouts, what was lost in ranges and totals.
"""

from typing import Final

from server.settings import Retention
from server.storage.catalog import Catalog

DAY_MS: Final = 86_400_000
AT_ONCE: Final = 5_000
"""Of each kind: nobody waits long for the lock, and an hour in which the clock is ten years ahead costs no more."""


def forget(catalog: Catalog, settings: Retention, now_ms: int) -> int:
    """Removes the oldest of what is older than the settings say; what is left over goes the next time. Blocks.

    Returns:
        How many records went.
    """
    trail_ms = now_ms - round(settings.events_days * DAY_MS)
    reports_ms = now_ms - round(settings.reports_days * DAY_MS)
    with catalog.write() as session:
        return (
            session.events.forget(trail_ms, AT_ONCE)
            + session.devices.forget_reports(reports_ms, AT_ONCE)
            + session.results.forget_losses(reports_ms, AT_ONCE)
        )
