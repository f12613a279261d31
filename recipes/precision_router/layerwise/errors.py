"""What a user did not expect."""

__all__ = ["RecipeError"]


class RecipeError(Exception):
    """What was found, and which option to change; programs print it and end with 1."""
