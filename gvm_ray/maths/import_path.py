"""What a user names as `module:object`."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any


def create_from_path(path: str, *arguments: Any, parameters: Mapping[str, Any], protocol: type) -> Any:
    """`module:Class` called with the arguments and parameters, checked for the methods of a runtime protocol.

    Raises:
        ImportError: it can't be imported, called like that, or lacks a method.
    """
    try:
        made = import_object(path)(*arguments, **parameters)
    except TypeError as error:
        raise ImportError(f"{path!r} can't be called with {sorted(parameters)}: {error}") from error
    if not isinstance(made, protocol):
        raise ImportError(f"{path!r} doesn't offer all methods of {protocol.__module__}.{protocol.__qualname__}")
    return made


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
