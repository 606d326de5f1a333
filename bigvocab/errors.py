"""The two exceptions of the package: bad values, and files that are not what they say."""


class BigvocabError(ValueError):
    """A value is wrong: the message names the argument or file, what came, what was expected and the first bad row."""


class FormatError(BigvocabError):
    """A file is not what it says: truncated, of an unknown type, or with a header that contradicts its size."""
