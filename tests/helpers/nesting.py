"""Objects that are nested deeply, without PyTorch."""


def deep():
    value = []
    for _ in range(400):
        value = [value]
    return value


def doubled():
    """Exponentially large when each occurrence is visited."""
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    return value
