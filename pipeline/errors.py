"""The one exception a user may meet: a clear sentence that says what, where and what to do."""


class UserError(Exception):
    """Bad input from the user. Jobs print it without a traceback and exit with status 2."""

    passing = False  # a fault that may be gone at the next try, which a stage runner therefore makes
