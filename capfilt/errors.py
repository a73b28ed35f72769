"""Everything that can go wrong in a way the user can answer.

    CapfiltError                 base: one readable line, exit code 1
    ├── RecipeError              the recipe is wrong; lists every problem at once        exit 2
    ├── MissingDependencyError   an optional package is needed; names the command        exit 1
    ├── PlanError                the run folder was made with other settings; shows both exit 1
    ├── StorageError             a file cannot be read, written or trusted               exit 1
    │   └── DeterminismError     the same plan gave other bytes                          exit 1
    ├── ShardError               one shard cannot be processed; the others go on         exit 1
    ├── AccountingError          rows in are not rows out plus rows dropped              exit 1
    ├── CheckpointError          a model directory is not what it should be              exit 1
    ├── CollapseError            a round is not worth training on; its tables stay       exit 1
    └── Stopped                  stopped on request (SIGTERM, Ctrl-C); resumable         exit 75

A bad *sample* is never an exception: it is a row with a reason.
"""

from __future__ import annotations


class CapfiltError(Exception):
    """Base of every error a user can answer; its text is the one line they see."""

    exit_code = 1


class RecipeError(CapfiltError):
    """The recipe breaks one or more rules.

    Args:
        source: the recipe's path, as the user named it.
        problems: one line each: field path, what was found, what is allowed.
    """

    exit_code = 2

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(source, problems)
        self.source = source
        self.problems = problems

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n".join([f"{self.source}: {count}", *(f"  {line}" for line in self.problems)])


class MissingDependencyError(CapfiltError):
    """A package that only some uses need is not installed."""


class PlanError(CapfiltError):
    """The run folder holds results of other settings than the recipe now asks for."""


class StorageError(CapfiltError):
    """A stored file is missing, damaged, or could not be written."""


class DeterminismError(StorageError):
    """The same plan produced different bytes for a shard that is already committed."""


class ShardError(CapfiltError):
    """One shard cannot be processed; the other shards are not touched by it."""


class StoreAwayError(ShardError):
    """A store does not answer, time after time. It may answer later."""


class AccountingError(CapfiltError):
    """A stage lost or invented rows: rows in differ from rows kept plus rows dropped."""


class CheckpointError(CapfiltError):
    """A model directory is missing, incomplete, or of another kind than asked for."""


class CollapseError(CapfiltError):
    """A round broke a limit of the guard: it is not trained on."""


class Stopped(CapfiltError):
    """The run was asked to stop; what is committed stays, and the same command resumes it."""

    exit_code = 75
