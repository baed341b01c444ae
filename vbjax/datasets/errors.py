"""The two ways in which a dataset is refused; each message says what to do next."""


class UnknownDataset(ValueError):  # noqa: N818 - it reads as the answer that it is
    """No dataset has this name; the message lists the names and the closest one."""


class DatasetUnavailable(RuntimeError):  # noqa: N818 - it reads as the answer that it is
    """The data are not here, or not the published data; the message names the flag or the folder that helps."""
