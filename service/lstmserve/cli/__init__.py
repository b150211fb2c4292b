"""The `lstmserve` command."""


def main() -> None:
    """Console script."""
