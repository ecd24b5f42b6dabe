"""Pure mathematics on numpy and torch; imports nothing of the project."""
