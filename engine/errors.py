"""Errors that end a start-up, each with the exit code of the command line.

    QuireError
    ├── UsageError      exit 2   a flag, a key of config.yaml, a combination of them
    ├── ModelError      exit 3   a model folder that cannot be served
    ├── BindError       exit 4   the address cannot be listened on
    └── CapacityError   exit 5   weights or KV cache do not fit into memory

Every message says what, where, why and what to do. Errors of a single request are `quire.engine.messages.Failure`
values, not exceptions, because they cross the process line.
"""


class QuireError(Exception):
    """The base of all start-up errors; `str(error)` is the one line that the user sees after `error: `."""

    exit_code = 1


class UsageError(QuireError):
    """A flag, an environment variable or a key of config.yaml that cannot be honoured."""

    exit_code = 2


class ModelError(QuireError):
    """A model folder that cannot be served.

    `what` names the fault, `file` the file inside the folder (never a full path), `why` what was found against what
    was expected, `fix` what the user can do.
    """

    exit_code = 3

    def __init__(self, model: str, what: str, file: str, why: str, fix: str) -> None:
        super().__init__(f"model {model}: {what} ({file}): {why}; fix: {fix}")
        self.model, self.what, self.file, self.why, self.fix = model, what, file, why, fix


class BindError(QuireError):
    """The address cannot be listened on."""

    exit_code = 4


class CapacityError(QuireError):
    """Weights or KV cache do not fit into the memory that there is."""

    exit_code = 5
