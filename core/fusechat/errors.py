"""The errors that end a process with an exit code of their own, each message one sentence for a person.

Raised by core and the stages, turned into exit codes by `entry` and `cli`. Knows nothing of where they arise.
The codes are those of sysexits.h; 69 and 75 are worth another attempt, the others are not.
"""

from __future__ import annotations

from typing import ClassVar


class FusechatError(Exception):
    """Base of all errors that a person can act on; `str(error)` says what, where and what to do."""

    exit_code: ClassVar[int] = 70


class UsageError(FusechatError):
    """The command line or the environment is wrong (64)."""

    exit_code = 64


class BadData(FusechatError, ValueError):
    """A spec, a model or a dataset is not what it must be (65); the same input fails again."""

    exit_code = 65


class MissingInput(FusechatError):
    """An artifact, or a file of one, is not in the store (66); the step that makes it must run again."""

    exit_code = 66


class CorruptInput(MissingInput):
    """A stored file's bytes are not those its manifest names (66); the step that makes it must run again."""


class Unavailable(FusechatError):
    """The store cannot be used: refused, absent or failing (69); trying later or mending it helps."""

    exit_code = 69


class TemporaryFailure(FusechatError):
    """Trouble outside that is likely to pass: a timeout, a cut connection, a full disk (75)."""

    exit_code = 75
