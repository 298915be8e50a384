"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can mend: the message names the input and says what to do.

    The command line prints it without a traceback; nodes raise it as it is.
    """
