"""Where everything of one machine lies: the one place that spells the names in its state folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths in a state folder.

    Args:
        state: The folder that `--state` names.
    """

    state: Path

    @property
    def settings(self) -> Path:
        """Written at enrolment when absent; a person's from then on."""
        return self.state / "device.toml"

    @property
    def last_settings(self) -> Path:
        """What `device.toml` was when the agent last started with it."""
        return self.state / "device.toml.last"

    @property
    def identity(self) -> Path:
        """Key, certificate, CA, first roots, enrolment."""
        return self.state / "identity"

    @property
    def state_db(self) -> Path:
        """The update record, floors, refusals, and what waits to be told."""
        return self.state / "state.db"

    @property
    def outbox_db(self) -> Path:
        """Results on their way."""
        return self.state / "outbox.db"

    @property
    def store(self) -> Path:
        """Content-addressed artifacts."""
        return self.state / "store"

    @property
    def sets(self) -> Path:
        """What outside readers and containers see of releases: one folder a release, and `active`."""
        return self.state / "sets"

    @property
    def active(self) -> Path:
        """A link to the set that serves, beside the sets: where only `sets` is mounted, it leads there too."""
        return self.sets / "active"

    @property
    def shortcut(self) -> Path:
        """A link to `active`, for readers on the machine. It stays once a release has served here."""
        return self.state / "active"

    @property
    def data(self) -> Path:
        """Folders that outlive the containers that they are mounted into. Never deleted by us."""
        return self.state / "data"

    @property
    def run(self) -> Path:
        """What does not outlive the agent: its status, its sockets."""
        return self.state / "run"

    @property
    def link(self) -> Path:
        """The folder of the local socket, which containers have mounted: it stays, whatever is made anew in it."""
        return self.run / "link"

    @property
    def status(self) -> Path:
        """The running agent's own account of itself, renewed each second."""
        return self.run / "status.json"

    @property
    def page(self) -> Path:
        """The pairing code of the machine's page."""
        return self.state / "page.json"

    @property
    def desk(self) -> Path:
        """The socket on which a running agent is asked by commands."""
        return self.run / "desk.sock"

    @property
    def kits(self) -> Path:
        """Copies of what kits say of themselves, while they are judged."""
        return self.run / "kits"

    @property
    def lock(self) -> Path:
        """Held by the one agent that runs on this state folder."""
        return self.run / "agent.lock"
