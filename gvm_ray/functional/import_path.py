"""What a user names as `module:object`."""

import importlib
import os
import sys
from typing import Any


def import_object(path: str) -> Any:
    """The object at `module:name` (or `module:Class.attribute`).

    A module in the working folder is found even where a console script left that folder out of the import path.

    Raises:
        ImportError: the module or the name in it doesn't exist, or importing the module raised.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ImportError(
            f"{path!r} can't be imported: {type(error).__name__}: {error}; "
            "write 'module:name' of a module that Python finds from the folder the run is started in"
        ) from error
    return found
