"""The one exception that means "your input is wrong", as opposed to "our code is wrong"."""


class BadInput(ValueError):
    """A file, an option or a name that cannot be used. The message, one line, names it and says what is right.

    The command line prints the message and exits with status 2; every other exception is a bug and keeps its traceback.
    """
