"""Tasks from a function that the user names by `module:function`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gvm_ray.config.prompts import FunctionSourceConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.settings import import_object
from gvm_ray.tasks.fields import row_reader
from gvm_ray.tasks.rows import Row, Task, tasks_from_rows


def function_tasks(config: FunctionSourceConfig) -> list[Task]:
    """The tasks of the rows that the function gives, in their order, at most `limit`.

    Raises:
        ConfigError: the function can't be imported, or isn't one.
        DataError: it raises, gives no rows, or a bad one (row and field are named).
    """
    tasks = tasks_from_rows(_rows(find_function(config.path), config=config), config=config)
    if not tasks:
        raise DataError(f"{config.path!r} gave no rows; return at least one")
    return tasks


def find_function(path: str) -> Callable[..., Any]:
    """The function at `module:function`.

    Raises:
        ConfigError: it can't be imported, or isn't one.
    """
    try:
        function = import_object(path)
    except ImportError as error:
        raise ConfigError(str(error)) from error
    if not callable(function):
        raise ConfigError(f"{path!r} is a {type(function).__name__}; write the path of a function")
    return function


def _rows(function: Callable[..., Any], *, config: FunctionSourceConfig) -> Iterator[Row]:
    """(place, row) of what the function returns. A generator raises while it is read, so both are looked after here."""
    number = 0
    try:
        rows = function(**config.parameters)
        schema = getattr(
            getattr(rows, "features", None), "arrow_schema", None
        )  # of a dataset of the `datasets` library
        read = dict if schema is None else row_reader(schema)
        for number, row in enumerate(rows, start=1):
            where = f"{config.path!r}, row {number}"
            if not isinstance(row, Mapping):
                raise DataError(f"{where} is a {type(row).__name__}; give dicts of field name to value")
            yield where, read(row)
    except DataError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise DataError(
            f"{config.path!r} with parameters {config.parameters} raised {type(error).__name__} after row "
            f"{number}: {error}"
        ) from error
