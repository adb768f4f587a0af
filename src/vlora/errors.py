"""Everything VLoRA raises on purpose.

    VLoRAError
    ├── InputError            what the user gave cannot be used              (also ValueError)
    │   ├── ImageError        a file or object that is not a usable image
    │   ├── DataError         a sample or a data file that cannot be trained on
    │   └── ConfigError       a config file, with every wrong field at once
    ├── ModelNotFound         a model name or folder that does not exist     (also FileNotFoundError)
    ├── CheckpointError       weights missing, damaged, or of another model  (also ValueError)
    ├── UnsupportedModel      an architecture that cannot wear weights       (also ValueError)
    └── MissingDependency     an optional part that is not installed         (also ImportError)

Every message is one sentence that says what was given, what is allowed, and what to do.
The command line prints it and exits with code 2; nothing else is a user's mistake.
"""

from __future__ import annotations

from collections.abc import Sequence


class VLoRAError(Exception):
    """The root of this tree."""


class InputError(VLoRAError, ValueError):
    """Something the user gave cannot be used."""


class ImageError(InputError):
    """A file or object that is not a usable image."""


class DataError(InputError):
    """A sample or a data file that cannot be trained on; names the file and the line."""


class ConfigError(InputError):
    """A configuration with wrong fields; lists all of them, each with its path.

    Args:
        source: the file or object the configuration came from.
        problems: one line per wrong field, `path.to.field: what is wrong, what is allowed`.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        plural = "" if len(self.problems) == 1 else "s"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{source} has {len(self.problems)} wrong field{plural}:{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[str, ...]]]:
        """Travel between processes: an exception is made anew from its arguments, not from its message."""
        return type(self), (self.source, self.problems)


class ModelNotFound(VLoRAError, FileNotFoundError):
    """A model name or folder that does not exist."""


class CheckpointError(VLoRAError, ValueError):
    """Weights that are missing, damaged, or belong to another model."""


class UnsupportedModel(VLoRAError, ValueError):
    """An architecture that cannot wear perceptual weights."""


class MissingDependency(VLoRAError, ImportError):
    """An optional part that is not installed; names the command that installs it."""
