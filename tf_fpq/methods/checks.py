"""Checks of arguments that several methods have."""


def check_not_negative(name: str, value: float) -> None:
    """Raises ValueError if `value`, the argument `name`, is negative or NaN."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative. Received: {name}={value}.")
