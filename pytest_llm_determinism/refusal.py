"""How the plugin says no in the middle of a call."""


class Refusal(BaseException):
    """A call is not made, or its answer cannot be kept; the test ends `inconclusive` with this message.

    Not an `Exception`: SDKs catch those, retry with sleeps and raise them again as connection errors.
    """
