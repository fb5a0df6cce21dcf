"""What is asked of a dataset, and refused before an image is read."""


def check_batch_size(batch_size: int, count: int) -> None:
    """Raises ValueError unless `count` training images hold a whole batch."""
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"batch_size must be between 1 and {count} training images. Received: {batch_size=}."
        )


def check_left(count: int, held_out: int, train_examples: int | None) -> int:
    """Number of training images that are left; ValueError if fewer than `train_examples` are."""
    left = count - held_out
    if left < (train_examples or 1):
        raise ValueError(
            f"validation_examples must leave {train_examples or 1} of {count} training"
            f" images. Received: validation_examples={held_out}."
        )
    return left
