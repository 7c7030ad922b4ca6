"""The two kinds of failure that are not bugs: what a user can mend, and what a scheduler can."""


class InputError(ValueError):
    """Bad input: a flag, a file, a checkpoint or a mesh that does not fit. One line: what, where, what to do."""


class Retryable(Exception):
    """Work was interrupted (preemption, a lost peer) and the same command may simply be run again."""
