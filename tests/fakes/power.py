"""A power switch before each effect on the disk, and around each transaction."""

import functools
import threading

NEVER = 1 << 30


class PowerCut(BaseException):
    """No code of ours may catch it."""


class Fuse:
    """Cuts the power at the n-th effect and leaves it off.

    Args:
        at: Counted from 0.
    """

    def __init__(self, at):
        self.effects = []
        self.at = at
        self.blown = False
        self.lock = threading.Lock()
        self.synced = {}

    def before(self, effect, path=None):
        """As `signing.durable.Before`."""
        with self.lock:
            if self.blown or len(self.effects) >= self.at:
                self.blown = True
                raise PowerCut
            self.effects.append(effect)
            if path is not None and path.suffix == ".result":
                if effect == "fsync" and path.exists():
                    self.synced[path] = path.stat().st_size
                elif effect == "append":
                    self.synced.setdefault(path, path.stat().st_size)

    def around(self, method):
        """A method of the database that may be cut before its transaction and after it."""

        @functools.wraps(method)
        def cut(database, *arguments, **more):
            what = f"{method.__name__} {getattr(arguments[0], 'state', '')}".rstrip()
            self.before(f"before {what}")
            done = method(database, *arguments, **more)
            self.before(f"after {what}")
            return done

        return cut

    def lose_what_was_not_synced(self):
        """Appended bytes that nobody synced come back as something else after a cut."""
        for path, length in self.synced.items():
            if path.exists() and (unsynced := path.stat().st_size - length) > 0:
                with path.open("r+b") as file:
                    file.seek(length)
                    file.write(b"?" * unsynced)
